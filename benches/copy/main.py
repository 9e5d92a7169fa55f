"""How fast the sessions that are already there are copied: backfill and verify beside a loop that saves each session with
Django's ORM, in one run. See scripts/bench-copy."""
import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

from servers import SECRET, Servers, fill, mib, patiently, proxy, value

LOOP_SECONDS = 10
PACE, PACED_CLIENTS = 5000, 10
LATENCY_SECONDS, LATENCY_ROUNDS = 6, 5


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
        process, _, admin = proxy(servers, arguments.binary)
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
        print(f"  memory of the proxy, at most {mib(process, 'VmHWM'):10.0f} MiB")
        told = "  (a copy was over before the load)" if over else ""
        print(f"  the source's p99 at {PACE:,} commands/s: {ratio:.2f} times that without a backfill{told}")


main()
