"""Locust's users on the shop while its sessions move: backfill, verify, cutover, rollback; then the verdict.

Usage: load.py FOLDER [--seconds N], in the container `load` of docker-compose.yml, which sets the shop's environment and

LOAD_SITE                        host:port of the shop
LOAD_ADMIN, LOAD_ADMIN_TOKEN     the proxy's admin address
LOAD_OLD_REDIS, LOAD_NEW_REDIS   to read every session back in the end

Each user is a browser of drive.py, which knows what its next page must show. Exit codes: 0 nothing lost, 1 something was, 3 the
load itself could not run.
"""
import gevent.monkey

gevent.monkey.patch_all()

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import gevent
import locust
import locust.env
import locust.stats

import drive
import show

OPERATION_SECONDS = 120
SETTLE_SECONDS = 60
# Verify finds the new Redis behind while it is away: it is asked again.
TRIES = 20


class Trouble(Exception):
    """The load cannot go on."""


class Admin:
    """The operator."""

    def __init__(self, url, token):
        self.url, self.headers = url, {"Authorization": "Bearer " + token}

    def ask(self, method, path):
        request = urllib.request.Request(self.url + path, method=method, headers=self.headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def status(self):
        return self.ask("GET", "/api/v1/status")[1]

    def run(self, kind):
        """One operation, from beginning to end. Answers why it failed, if it did."""
        code, answer = self.ask("POST", "/api/v1/" + kind)
        if code != 202:
            return answer["error"]
        deadline = time.monotonic() + OPERATION_SECONDS
        while time.monotonic() < deadline:
            operation = self.ask("GET", f"/api/v1/operations/{answer['operation']}")[1]
            if operation["state"] != "running":
                return operation["error"]
            time.sleep(0.1)
        return f"not done after {OPERATION_SECONDS} s"

    def must(self, kind, tally):
        """The same, again and again until it is done: what stands in its way passes."""
        tally.phase = kind
        for _ in range(TRIES):
            error = self.run(kind)
            if error is None:
                show.line(f"{kind}: done. {tally.line()}")
                return
            show.line(f"{kind}: {error}")
            time.sleep(3)
        raise Trouble(f"{kind}: {error}")


class Visitor(locust.User):
    """A browser, as Locust's user."""

    wait_time = locust.between(*drive.THINK_SECONDS)
    people = []
    browsers = []
    tally = drive.Tally()
    stop_all = threading.Event()

    def on_start(self):
        host, port = os.environ["LOAD_SITE"].rsplit(":", 1)
        self.browser = drive.Browser(int(port), self.people.pop(), self.tally, self.stop_all, host)
        self.browsers.append(self.browser)
        send = self.browser.send

        def measured(method, path, *words, **named):
            before, failure = time.perf_counter(), None
            try:
                return send(method, path, *words, **named)
            except drive.Failure as error:
                failure = error
                raise
            finally:
                taken = (time.perf_counter() - before) * 1000
                self.environment.events.request.fire(
                    request_type=method, name=path, response_time=taken, response_length=0, exception=failure, context={}
                )

        self.browser.send = measured

    @locust.task
    def click(self):
        if not self.stop_all.is_set():
            self.browser.go_on()


def read_back(folder, name, redis, engine):
    """What check.py finds in a store, without the proxy."""
    env = dict(os.environ, SHOP_REDIS=redis, SHOP_SESSION_ENGINE=engine)
    store = "redis" if redis else "database"
    result = subprocess.run([sys.executable, os.path.join(os.path.dirname(__file__), "check.py"), store, folder], env=env)
    if result.returncode != 0:
        raise Trouble(f"reading back {name} failed")
    with open(os.path.join(folder, f"found-{store}.json")) as file:
        return json.load(file)


def settle(admin):
    """Waits until every store has every write."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        tee = admin.status()["tee"]
        if not any(tee[sink]["pending"] for sink in ("target", "database")):
            return
        if time.monotonic() > deadline:
            raise Trouble(f"writes are still on their way after {SETTLE_SECONDS} s: {tee}")
        time.sleep(0.2)


def run(folder, seconds):
    admin = Admin(os.environ["LOAD_ADMIN"], os.environ["LOAD_ADMIN_TOKEN"])
    with open(os.path.join(folder, "browsers.json")) as file:
        Visitor.people = json.load(file)
    random.shuffle(Visitor.people)
    tally, users = Visitor.tally, len(Visitor.people)
    # Each browser finishes what it is doing: half a page is one that its oracle has not counted.
    environment = locust.env.Environment(user_classes=[Visitor], stop_timeout=2 * drive.TIMEOUT_SECONDS)
    runner = environment.create_local_runner()
    gevent.spawn(locust.stats.stats_history, runner)
    show.heading(f"{users} browsers for {seconds:.0f} s")
    began, holds = time.monotonic(), {}

    def until(share):
        gevent.sleep(max(0.0, began + seconds * share - time.monotonic()))

    runner.start(users, spawn_rate=users)
    tally.phase = "tee"
    until(0.05)
    admin.must("backfill", tally)
    admin.must("verify", tally)
    until(0.45)
    admin.must("verify", tally)
    for kind, share in (("cutover", 0.65), ("rollback", 0.85)):
        admin.must(kind, tally)
        holds[kind] = admin.status()["cutover"]["hold_seconds"]
        tally.phase = "after the " + kind
        until(share)
    admin.must("verify", tally)
    until(1.0)
    Visitor.stop_all.set()
    runner.quit()
    settle(admin)
    status = admin.status()
    with open(os.path.join(folder, "live.json"), "w") as file:
        json.dump(drive.outcome(Visitor.browsers), file)

    show.heading("Every session is read back through Django, without the proxy")
    found = {
        "the old Redis": read_back(folder, "the old Redis", os.environ["LOAD_OLD_REDIS"], "cache"),
        "the new Redis": read_back(folder, "the new Redis", os.environ["LOAD_NEW_REDIS"], "cache"),
        "the database": read_back(folder, "the database", "", "cached_db"),
    }
    undone = tally.undone + sum(store["undone"] for store in found.values())
    total = environment.stats.total
    rows = [
        ("requests made", show.number(tally.requests), tally.requests > 0),
        ("requests a second", f"{tally.requests / seconds:.0f}", None),
        ("median and 99th percentile", f"{total.get_response_time_percentile(0.5)} and {total.get_response_time_percentile(0.99)} ms", None),
        ("errors", tally.errors, tally.errors == 0),
        ("users logged out unexpectedly", tally.logged_out, tally.logged_out == 0),
        ("pages with a wrong cart or user", tally.wrong, tally.wrong == 0),
        ("logouts", tally.logouts, tally.logouts > 0),
        ("logouts undone", undone, undone == 0),
    ]
    for kind, hold in holds.items():
        rows.append((f"held at the {kind}", "unknown" if hold is None else f"{hold * 1000:.0f} ms", None))
    for name, store in found.items():
        rows.append((f"sessions checked in {name}", show.number(store["checked"]), store["checked"] > 0))
        rows.append((f"differences in {name}", store["differences"], store["differences"] == 0))
    rows.append(("put back, rescued", f"{status['sessions']['restored']}, {status['sessions']['rescued_reads']}", None))
    show.heading("What was lost")
    show.table(rows)
    for note in tally.notes[:10] + [f"{name}: {note}" for name, store in found.items() for note in store["notes"]]:
        show.line(note)
    return all(verdict is not False for _, _, verdict in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--seconds", type=float, default=300)
    options = parser.parse_args()
    try:
        clean = run(options.folder, options.seconds)
    except (Trouble, OSError) as trouble:
        print(f"\nthe load could not go on: {trouble}", file=sys.stderr)
        return 3
    print("\nVERDICT: nothing was lost." if clean else "\nVERDICT: NOT CLEAN, see the lines marked WRONG.", flush=True)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
