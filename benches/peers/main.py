"""Measures every endpoint row by row, in interleaved rounds, and prints one table. See scripts/bench."""
import argparse
import json
import signal
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from endpoints import Endpoints, allow_files
from load import Idle, Slow, flood, paced, preload

PACE, PACED_CLIENTS = 5000, 10
SLOW_CLIENTS = 20
IDLE_CLIENTS = 10_000


@dataclass
class Row:
    """One kind of work, and what the proxy is to reach in it: at least so much of another endpoint's throughput."""

    name: str
    kind: str
    clients: int
    pipeline: int
    count: int
    goals: dict
    # At most so much of twemproxy's CPU time per command.
    cpu_goal: float | None = None
    rates: dict = field(default_factory=dict)
    cpu: dict = field(default_factory=dict)
    # Seconds from the end of the load until every store had everything.
    behind: list = field(default_factory=list)

    def ratio(self, name, to="direct"):
        """Median over the rounds, each compared within itself."""
        return statistics.median(a / b for a, b in zip(self.rates[name], self.rates[to]))

    def cpu_us(self, name):
        return statistics.median(self.cpu[name])

    def verdict(self):
        found = []
        for to, least in self.goals.items():
            reached = self.ratio("sessionferry", to)
            found.append(f"{reached:.2f} of {to}'s (>= {least:.2f}) {'yes' if reached >= least else 'NO'}")
        if self.cpu_goal:
            reached = self.cpu_us("sessionferry") / self.cpu_us("twemproxy")
            found.append(f"CPU {reached:.2f} of twemproxy's (<= {self.cpu_goal:.2f}) {'yes' if reached <= self.cpu_goal else 'NO'}")
        return "; ".join(found)


def rows():
    plain = {"direct": 1.0, "twemproxy": 1.1}
    piped = {"direct": 0.8, "haproxy": 1.0}
    return [
        Row("SET 300 B, 50 clients", "set", 50, 1, 150_000, plain, 0.9),
        Row("GET 300 B, 50 clients", "get", 50, 1, 150_000, plain, 0.9),
        Row("SET 300 B, 50 clients, pipeline 16", "set", 50, 16, 900_000, piped),
        Row("GET 300 B, 50 clients, pipeline 16", "get", 50, 16, 900_000, piped),
        Row("session SETEX, 50 clients", "session", 50, 1, 150_000, {"direct": 0.8, "envoy": 1.8}),
        Row("session SETEX, 50 clients, pipeline 16", "session", 50, 16, 600_000, {"direct": 0.6, "envoy": 1.8}),
        Row("GET 300 B, 500 clients", "get", 500, 1, 150_000, {"direct": 1.0}),
    ]


def rotated(items, by):
    by %= len(items)
    return items[by:] + items[:by]


def measure(row, endpoints, rounds, part):
    """The first round only warms up."""
    count = int(row.count * part)
    for number in range(rounds + 1):
        for endpoint in rotated(endpoints, number):
            before = endpoint.cpu_seconds()
            rate = flood(endpoint.port, row.kind, row.clients, row.pipeline, count)
            behind = endpoint.settle()
            used = (endpoint.cpu_seconds() - before) / count * 1e6
            if number:
                row.rates.setdefault(endpoint.name, []).append(rate)
                row.cpu.setdefault(endpoint.name, []).append(used)
                if endpoint.admin:
                    row.behind.append(behind)


def latency(endpoints, program, rounds, seconds):
    """What each reaches at a fixed rate, round by round."""
    found = {}
    for number in range(rounds):
        for endpoint in rotated(endpoints, number):
            percentiles = paced(program, endpoint.port, PACE, PACED_CLIENTS, seconds)
            found.setdefault(endpoint.name, []).append(percentiles)
    return found


def latency_row(name, found, goal):
    """The median over the rounds, each compared within itself."""
    def of(endpoint, percentile):
        return statistics.median(round[percentile] for round in found[endpoint])

    ratio = {endpoint: statistics.median(a["p50"] / b["p50"] for a, b in zip(rounds, found["direct"]))
             for endpoint, rounds in found.items()}
    cells = [f"{ratio[endpoint]:.2f} ({of(endpoint, 'p50'):.0f} µs, p99 {of(endpoint, 'p99'):.0f} µs)" for endpoint in found]
    reached = ratio["sessionferry"]
    verdict = f"{reached:.2f} (<= {goal:.2f}) {'yes' if reached <= goal else 'NO'}"
    return f"| {name} | " + " | ".join(cells) + f" | {verdict} |"


def slow_row(name, endpoints, program, rounds, seconds):
    """The 99th percentile of fast clients beside slow ones, as a multiple of theirs without."""
    found = {endpoint.name: [] for endpoint in endpoints}
    for number in range(rounds):
        for endpoint in rotated(endpoints, number):
            alone = paced(program, endpoint.port, PACE, PACED_CLIENTS, seconds)["p99"]
            with Slow(endpoint.port, SLOW_CLIENTS):
                beside = paced(program, endpoint.port, PACE, PACED_CLIENTS, seconds)["p99"]
            found[endpoint.name].append({"alone": alone, "beside": beside})
    ratio = {of: statistics.median(x["beside"] / x["alone"] for x in xs) for of, xs in found.items()}
    cells = [f"{ratio[of]:.2f} ({statistics.median(x['beside'] for x in xs):.0f} µs)" for of, xs in found.items()]
    reached = ratio["sessionferry"]
    print(f"| {name} | " + " | ".join(cells) + f" | {reached:.2f} (<= 2.00) {'yes' if reached <= 2 else 'NO'} |", flush=True)
    return found


def main():
    # So that what was started is ended then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    parser = argparse.ArgumentParser()
    for name in ("--binary", "--paced", "--envoy", "--python"):
        parser.add_argument(name, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", default="")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    rounds, part, seconds = (2, 0.2, 1) if options.quick else (options.rounds, 1.0, 4)
    wanted = [word for word in options.rows.split(",") if word]
    chosen = lambda name: not wanted or any(word.lower() in name.lower() for word in wanted)
    allow_files()
    kept = {}
    with tempfile.TemporaryDirectory(prefix="sessionferry-bench-") as directory, \
            Endpoints(directory, options.binary, options.envoy) as started:
        endpoints = started.all
        for source in started.sources:
            preload(source.port)
        names = [endpoint.name for endpoint in endpoints]
        print("| work | " + " | ".join(names) + " | goal |\n|---|" + "---|" * (len(names) + 1), flush=True)
        for row in filter(lambda row: chosen(row.name), rows()):
            measure(row, endpoints, rounds, part)
            cells = [f"{row.ratio(name):.2f} ({row.cpu_us(name):.1f} µs)" for name in names]
            print(f"| {row.name} | " + " | ".join(cells) + f" | {row.verdict()} |", flush=True)
            kept[row.name] = {"commands_per_second": row.rates, "cpu_us": row.cpu, "behind_seconds": row.behind}
        programs = {"": [options.paced], " of redis-py": [options.python, str(Path(__file__).with_name("paced.py"))]}
        for whose, program in programs.items():
            name = f"p50 latency{whose} at {PACE:,}/s, {PACED_CLIENTS} clients"
            if chosen(name):
                kept[name] = latency(endpoints, program, rounds, seconds)
                print(latency_row(name, kept[name], 1.15), flush=True)
        name = f"memory at {IDLE_CLIENTS:,} idle clients"
        if chosen(name):
            proxy = endpoints[-1]
            with Idle(proxy.port, IDLE_CLIENTS):
                mib = proxy.resident_mib()
            cells = ["" for _ in names[:-1]] + [f"{mib:.0f} MiB"]
            print(f"| {name} | " + " | ".join(cells) + f" | <= 200 MiB {'yes' if mib <= 200 else 'NO'} |", flush=True)
            kept[name] = mib
        name = f"p99 latency beside {SLOW_CLIENTS} slow readers and writers, to without"
        if chosen(name):
            kept[name] = slow_row(name, endpoints, [options.paced], rounds, seconds)
    for name, row in kept.items():
        if isinstance(row, dict) and row.get("behind_seconds") and "session" in name:
            print(f"{name}: every store had everything {statistics.median(row['behind_seconds']):.2f} s after the load's end")
    if options.json:
        with open(options.json, "w") as out:
            json.dump(kept, out, indent=1)


main()
