"""How fast the sessions that are already there are copied: backfill and verify beside a loop that saves each session with
Django's ORM, in one run. See scripts/bench-copy."""
import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "peers"))
from endpoints import free_port  # noqa: E402

PREFIX = ":1:django.contrib.sessions.cache"
SECRET = "a key for this measurement only"
LOOP_SECONDS = 10
PACE, PACED_CLIENTS = 5000, 10
LATENCY_SECONDS, LATENCY_ROUNDS = 6, 5
PAD = 240


def value(number):
    """What Django's cache holds for a small session: a pickled dictionary."""
    return b"\x80\x04}(\x8c\x01nJ" + struct.pack("<i", number) + b"\x8c\x03padX" + struct.pack("<I", PAD) + b"x" * PAD + b"u."


class Servers:
    """Two Redis servers and PostgreSQL, ended when left."""

    def __init__(self, directory, postgres_bin):
        self.directory, self.bin = Path(directory), Path(postgres_bin)
        self.processes = []

    def __enter__(self):
        os.chmod(self.directory, 0o755)
        self.source, self.target, self.postgres = free_port(), free_port(), free_port()
        for port in (self.source, self.target):
            self.start("redis-server", "--port", port, "--save", "", "--dir", self.directory, "--bind", "127.0.0.1")
        data = self.directory / "postgres"
        data.mkdir()
        self.user = []
        if os.geteuid() == 0:
            shutil.chown(data, "postgres")
            self.user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
        subprocess.run(
            [*self.user, self.bin / "initdb", "--no-sync", "--auth", "trust", "--username", "site", "--pgdata", data / "data"],
            check=True, stdout=subprocess.DEVNULL, cwd=data,
        )
        self.start(*self.user, self.bin / "postgres", "-p", self.postgres, "-k", data, "-D", data / "data", cwd=data)
        return self

    def start(self, *command, cwd=None):
        log = open(self.directory / f"log{len(self.processes)}", "w")
        process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log, cwd=cwd)
        self.processes.append(process)
        return process

    def __exit__(self, *_):
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()

    @property
    def database(self):
        return f"postgres://site@127.0.0.1:{self.postgres}/postgres"


def fill(port, count):
    """Sessions as Django leaves them, through redis-cli's own mass insertion."""
    pipe = subprocess.Popen(["redis-cli", "-p", str(port), "--pipe"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    for number in range(count):
        key, data = b"%s%032d" % (PREFIX.encode(), number), value(number)
        pipe.stdin.write(b"*4\r\n$5\r\nSETEX\r\n$%d\r\n%s\r\n$7\r\n1209600\r\n$%d\r\n%s\r\n" % (len(key), key, len(data), data))
    pipe.stdin.close()
    if pipe.wait() != 0:
        raise SystemExit("the source could not be filled")


def patiently(what, attempt):
    for _ in range(200):
        try:
            return attempt()
        except Exception:  # whatever it is, it is not there yet
            time.sleep(0.1)
    raise SystemExit(f"waited in vain for {what}")


def load(paced, port):
    """Clients of the source that ask at a fixed rate."""
    return subprocess.Popen([paced, str(port), str(PACE), str(PACED_CLIENTS), str(LATENCY_SECONDS)], stdout=subprocess.PIPE)


def finished(load):
    """The p99 of what they waited, µs."""
    out, _ = load.communicate()
    if load.returncode != 0:
        raise SystemExit("the load could not be made")
    return json.loads(out)["p99"]


def operation(arguments, admin, name):
    """Seconds that it took."""
    began = time.monotonic()
    done = subprocess.run([arguments.binary, name, "--admin", f"http://127.0.0.1:{admin}", "--json"], capture_output=True)
    if done.returncode != 0:
        raise SystemExit(f"{name}: {done.stdout.decode()}{done.stderr.decode()}")
    return time.monotonic() - began


def ask(admin, method, path):
    request = urllib.request.Request(f"http://127.0.0.1:{admin}/api/v1/{path}", method=method, data=b"{}" if method == "POST" else None,
                                     headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)


def stopped(binary, admin, number):
    subprocess.run([binary, "stop", str(number), "--admin", f"http://127.0.0.1:{admin}"], check=False, capture_output=True)
    while ask(admin, "GET", f"operations/{number}")["state"] == "running":
        time.sleep(0.05)


def peak_mib(process):
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def loop(arguments, servers):
    """Rows per second of the loop that people write today."""
    environment = dict(os.environ, REDIS=f"redis://127.0.0.1:{servers.source}", DATABASE=str(servers.postgres))
    script = Path(__file__).parent / "loop.py"
    out = subprocess.run([arguments.python, script, str(LOOP_SECONDS), SECRET], check=True, capture_output=True, env=environment)
    return json.loads(out.stdout)["rows_per_second"]


def main():
    parser = argparse.ArgumentParser()
    for name in ("binary", "paced", "python", "postgres-bin"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--sessions", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Servers(directory, arguments.postgres_bin) as servers:
        patiently("Redis", lambda: subprocess.run(["redis-cli", "-p", str(servers.source), "ping"], check=True, capture_output=True))
        environment = dict(os.environ, REDIS=f"redis://127.0.0.1:{servers.source}", DATABASE=str(servers.postgres))
        patiently("PostgreSQL", lambda: subprocess.run(
            [arguments.python, Path(__file__).parent / "loop.py", "0", SECRET], check=True, capture_output=True, env=environment))
        fill(servers.source, arguments.sessions)
        python = loop(arguments, servers)
        listen, admin = free_port(), free_port()
        environment = dict(os.environ, SESSIONFERRY_SECRET_KEY=SECRET)
        log = open(Path(directory) / "sessionferry.log", "w")
        proxy = subprocess.Popen(
            [arguments.binary, "run", "--listen", f"127.0.0.1:{listen}", "--admin", f"127.0.0.1:{admin}",
             "--source", f"redis://127.0.0.1:{servers.source}", "--target", f"redis://127.0.0.1:{servers.target}",
             "--database", servers.database, "--data-dir", str(Path(directory) / "data")],
            env=environment, stdout=log, stderr=log)
        servers.processes.append(proxy)
        patiently("the proxy", lambda: urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz", timeout=2))
        backfill = operation(arguments, admin, "backfill")
        verify = operation(arguments, admin, "verify")
        # The same load without a copy and with one, in turns. A copy that is stopped goes on where it was.
        alone, beside, over = [], [], False
        for _ in range(LATENCY_ROUNDS):
            alone.append(finished(load(arguments.paced, servers.source)))
            loaded = load(arguments.paced, servers.source)
            time.sleep(0.5)
            number = ask(admin, "POST", "backfill")["operation"]
            beside.append(finished(loaded))
            over |= ask(admin, "GET", f"operations/{number}")["state"] != "running"
            stopped(arguments.binary, admin, number)
        ratio = statistics.median(beside) / statistics.median(alone)
        rate = arguments.sessions / backfill
        print(f"{arguments.sessions:,} sessions of {len(value(1))} bytes, from one Redis to another and into PostgreSQL")
        print(f"  a loop with Django's ORM     {python:10,.0f} rows/s")
        print(f"  sessionferry backfill        {rate:10,.0f} sessions/s into both stores, {rate / python:.0f} times the loop  ({backfill:.1f} s)")
        print(f"  sessionferry verify          {arguments.sessions / verify:10,.0f} sessions/s in three stores  ({verify:.1f} s)")
        print(f"  memory of the proxy, at most {peak_mib(proxy):10.0f} MiB")
        told = "  (a copy was over before the load)" if over else ""
        print(f"  the source's p99 at {PACE:,} commands/s: {ratio:.2f} times that without a backfill{told}")


main()
