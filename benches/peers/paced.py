"""What an application sees: redis-py asks at a fixed rate from several processes. Prints percentiles in µs as JSON.

usage: paced.py PORT COMMANDS_PER_SECOND CLIENTS SECONDS
"""
import json
import multiprocessing
import sys
import time

import redis


def client(port, first, interval, seconds, results):
    # Without CLIENT SETINFO, which some proxies do not know.
    connection = redis.Redis("127.0.0.1", port, lib_name=None, lib_version=None)
    connection.set("paced", b"v" * 300)
    took, due = [], first
    while due < first + seconds:
        time.sleep(max(0.0, due - time.monotonic()))
        sent = time.perf_counter()
        connection.get("paced")
        took.append((time.perf_counter() - sent) * 1e6)
        due += interval
    # The first ones find cold connections.
    results.put(took[len(took) // 10:])


def main():
    port, rate, clients, seconds = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    interval, start, results = clients / rate, time.monotonic() + 1, multiprocessing.Queue()
    processes = [multiprocessing.Process(target=client, daemon=True,
                                         args=(port, start + interval * number / clients, interval, seconds, results))
                 for number in range(clients)]
    for process in processes:
        process.start()
    took = sorted(value for _ in processes for value in results.get(timeout=seconds + 30))
    print(json.dumps({"p50": took[len(took) // 2], "p99": took[len(took) * 99 // 100]}))


if __name__ == "__main__":
    main()
