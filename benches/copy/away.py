"""What a database that is away for long costs: memory and disk while sessions are written all the time. See scripts/bench-away."""
import argparse
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from servers import SECRET, Servers, mib, patiently, proxy

SAMPLES = 24


def disk_mib(directory):
    return sum(file.stat().st_blocks * 512 for file in Path(directory).rglob("*") if file.is_file()) / 2**20


def pending(admin):
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/api/v1/status", timeout=5) as answer:
        return json.load(answer)["tee"]["database"]["pending"]


def rows(arguments, servers):
    count = "SELECT count(*) FROM django_session"
    out = subprocess.run(["psql", "-h", "127.0.0.1", "-p", str(servers.postgres), "-U", "site", "-Atc", count, "postgres"],
                         check=True, capture_output=True)
    return int(out.stdout)


def main():
    parser = argparse.ArgumentParser()
    for name in ("binary", "lag", "python", "postgres-bin"):
        parser.add_argument(f"--{name}", required=True)
    for name, usual in (("rate", 2000), ("sessions", 100_000), ("seconds", 3600)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Servers(directory, arguments.postgres_bin) as servers:
        postgres = servers.processes[-1]
        environment = dict(os.environ, REDIS=f"redis://127.0.0.1:{servers.source}", DATABASE=str(servers.postgres))
        patiently("PostgreSQL", lambda: subprocess.run(
            [arguments.python, Path(__file__).parent / "loop.py", "0", SECRET], check=True, capture_output=True, env=environment))
        process, listen, admin = proxy(servers, arguments.binary)
        postgres.send_signal(signal.SIGINT)  # does not wait for the proxy to leave
        postgres.wait()
        load = subprocess.Popen(
            [str(word) for word in (arguments.lag, listen, servers.target, admin, arguments.rate, arguments.sessions, arguments.seconds)],
            stdout=subprocess.PIPE)
        back = threading.Timer(arguments.seconds - 1, servers.start_postgres)
        back.daemon = True
        back.start()
        print(f"{arguments.rate:,} writes/s to {arguments.sessions:,} sessions, the database away for {arguments.seconds:,} s")
        print("       s    memory, MiB    data_dir, MiB    sessions waiting")
        began = time.monotonic()
        for sample in range(1, SAMPLES + 1):
            time.sleep(max(0, began + sample * (arguments.seconds - 5) / SAMPLES - time.monotonic()))
            print(f"{time.monotonic() - began:8,.0f} {mib(process, 'VmRSS'):14.1f} "
                  f"{disk_mib(Path(directory) / 'data'):16.1f} {pending(admin):19,}", flush=True)
        out, _ = load.communicate()
        if load.returncode != 0:
            raise SystemExit("the load could not be made")
        back.join()
        print(f"rows in the end: {rows(arguments, servers):,}; the load says {out.decode().strip()}")


main()
