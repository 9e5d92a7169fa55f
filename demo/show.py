"""What the demo prints: headings, plain lines, one line that moves on a terminal, and the table at the end."""
import sys
import time

TERMINAL = sys.stdout.isatty()
BAR_WIDTH = 32
BOLD, GREEN, RED, PLAIN = ("\033[1m", "\033[32m", "\033[31m", "\033[0m") if TERMINAL else ("", "", "", "")


def heading(text):
    print(f"\n{BOLD}{text}{PLAIN}", flush=True)


def line(text):
    print(f"  {text}", flush=True)


def number(value):
    return f"{value:,}"


def moving(text):
    """Replaces the line that moves; nothing where the output is not a terminal, as it would fill a log."""
    if TERMINAL:
        print(f"\r\033[K  {text}", end="", flush=True)


def settled(text):
    """The last state of the line that moves, which stays."""
    print(f"\r\033[K  {text}" if TERMINAL else f"  {text}", flush=True)


class Bar:
    """Progress towards a known end."""

    def __init__(self, label, total):
        self.label, self.total, self.started, self.shown = label, total, time.monotonic(), 0.0

    def at(self, done):
        now = time.monotonic()
        if now - self.shown < 0.1:
            return
        self.shown = now
        filled = BAR_WIDTH * done // max(self.total, 1)
        moving(f"{self.label} [{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {number(done)}/{number(self.total)}")

    def done(self):
        settled(f"{self.label}: {number(self.total)} in {time.monotonic() - self.started:.1f} s")


def table(rows):
    """`rows` are (name, value, verdict); the verdict is None for what is only told, else whether it is as it must be."""
    width = max(len(name) for name, _, _ in rows)
    for name, value, verdict in rows:
        mark = "" if verdict is None else f"  {GREEN}ok{PLAIN}" if verdict else f"  {RED}WRONG{PLAIN}"
        print(f"  {name:<{width}}  {value:>12}{mark}")
    sys.stdout.flush()
