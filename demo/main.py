"""The demo: a live Django site changes its Redis under the eyes of its users, and every session is counted.

`scripts/demo` prepares the machine and calls this. The steps are the operator's own: `sessionferry check`, `run`,
`backfill`, `verify`, `cutover`, with real servers around and browsers that never stop clicking. At the end the proxy is
gone and Django reads every session from the new Redis, and again from the database alone.
"""
import argparse
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from drive import Crowd, Failure
from servers import Servers, Trouble, free_port, secret
import show

HERE = os.path.dirname(os.path.abspath(__file__))
SITE = os.path.join(HERE, "site")
# What the database may need to take the last writes, once nobody makes new ones.
DRAIN_SECONDS = 60
LATE_SABOTAGE = ("drop-row", "change-value", "change-row", "undo-logout")
SABOTAGE = LATE_SABOTAGE + ("delete-session", "http-error")
NAMES = {"sqlite": "SQLite", "postgres": "PostgreSQL", "mysql": "MariaDB"}


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.split("\n")[0])
    parser.add_argument("--binary", required=True, help="the sessionferry to run")
    parser.add_argument("--database", choices=sorted(NAMES), default="sqlite")
    parser.add_argument("--sessions", type=int, default=20000)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--sabotage", choices=SABOTAGE)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    if options.clients < 2 or options.sessions < 10 * options.clients:
        parser.error("needs two clients or more, and ten sessions or more for each")
    return options


class Demo:
    """One run."""

    def __init__(self, options, folder):
        self.options, self.folder, self.servers = options, folder, Servers(folder)
        self.secret_key, self.started = secret(), time.monotonic()
        self.binary = os.path.abspath(options.binary)
        self.crowd = self.proxy = None

    # -- the pieces ------------------------------------------------------------------------------------------------

    def shop(self, redis, engine="cache"):
        """The shop's environment with this Redis as its cache."""
        env = {name: value for name, value in os.environ.items() if name not in ("GUNICORN_CMD_ARGS", "PYTHONHOME")}
        env.update(
            SHOP_REDIS=redis, SHOP_SESSION_ENGINE=engine, SHOP_DATABASE=self.database, SHOP_SECRET_KEY=self.secret_key,
            DJANGO_SETTINGS_MODULE="shop.settings", PYTHONPATH=SITE, PYTHONDONTWRITEBYTECODE="1",
        )
        return env

    def python(self, script, *words, env):
        """One of the demo's own programs, under Django."""
        result = subprocess.run([sys.executable, os.path.join(HERE, script), *map(str, words)], env=env)
        if result.returncode != 0:
            raise Trouble(f"{script} {words[0]} failed")

    def ferry(self, command, *options, env=None):
        """An operator's command, with its own progress bar; what it prints is part of the demo."""
        show.line(f"$ sessionferry {command}")
        code = subprocess.run([self.binary, command, *options], env=env).returncode
        if code != 0:
            raise Trouble(f"sessionferry {command} ended with exit code {code}", self.proxy and self.proxy.log)

    def admin_get(self, path):
        """Status code and body; 0 where nobody answers yet."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def status(self):
        code, body = self.admin_get("/api/v1/status")
        if code != 200:
            raise Trouble(f"the proxy's status answers {code}", self.proxy.log)
        return json.loads(body)

    def traffic(self, phase, seconds=None):
        """Lets the browsers go on for a while, and tells what they saw."""
        self.crowd.tally.phase = phase
        deadline = time.monotonic() + (self.options.seconds if seconds is None else seconds)
        while time.monotonic() < deadline:
            time.sleep(0.1)
            show.moving(self.crowd.tally.line())
        self.tell()

    def step(self, command):
        """An operator's command while the browsers go on."""
        self.crowd.tally.phase = command
        self.ferry(command, "--admin", f"http://127.0.0.1:{self.admin}")
        self.tell()

    def tell(self):
        show.settled(self.crowd.tally.line())
        for server in self.servers.all:
            if not server.running() and server.name in ("sessionferry", "gunicorn"):
                raise Trouble(f"{server.name} ended by itself", server.log)

    # -- the story -------------------------------------------------------------------------------------------------

    def run(self):
        options = self.options
        print(f"{options.sessions:,} sessions and {options.clients} browsers move to a new Redis and to {NAMES[options.database]}")

        show.heading("The site as it has been so far")
        self.old, old_url = self.servers.redis("old-redis", secret())
        _, self.new_url = self.servers.redis("new-redis", secret())
        self.database = self.servers.database(options.database)
        subprocess.run(
            [sys.executable, os.path.join(SITE, "manage.py"), "migrate", "--verbosity", "0"], env=self.shop(old_url), check=True
        )
        show.line(f"an old Redis, a new and empty one, {NAMES[options.database]} with Django's own tables")
        self.python("fill.py", self.folder, options.sessions, options.clients, env=self.shop(old_url))

        show.heading("sessionferry goes between")
        listen, self.admin = free_port(), free_port()
        flags = ["--listen", f"127.0.0.1:{listen}", "--admin", f"127.0.0.1:{self.admin}",
                 "--data-dir", os.path.join(self.folder, "sessionferry-data")]
        # What holds a password goes by the environment, where a process list does not show it.
        env = {name: value for name, value in os.environ.items() if not name.startswith("SESSIONFERRY_")}
        env.update(SESSIONFERRY_SOURCE=old_url, SESSIONFERRY_TARGET=self.new_url, SESSIONFERRY_DATABASE=self.database,
                   SESSIONFERRY_SECRET_KEY=self.secret_key)
        self.ferry("check", *flags, env=env)
        self.proxy = self.servers.proxy(self.binary, flags, env, lambda: self.admin_get("/readyz")[0] == 200)
        show.line(f"$ sessionferry run        # ready on port {listen}")
        # The clients still present the old Redis's password: only the address in CACHES changes.
        self.site_url = old_url.rsplit("@", 1)[0] + f"@127.0.0.1:{listen}/0"
        port = self.servers.site(SITE, self.shop(self.site_url), threads=max(4, options.clients // 2))
        with open(os.path.join(self.folder, "browsers.json")) as file:
            self.crowd = Crowd(port, json.load(file))
        self.crowd.start()
        self.traffic("tee")

        show.heading("The sessions move while the site is in use")
        self.step("backfill")
        self.step("verify")
        self.step("cutover")
        self.hold = self.status()["cutover"]["hold_seconds"]
        self.traffic("after the cutover")

        show.heading("The old Redis is stopped for good")
        self.crowd.tally.phase = "without the old Redis"
        self.old.stop()
        self.sabotage_browsers()
        self.traffic("without the old Redis")

        show.heading("Everything stops")
        self.crowd.tally.phase = "the end"
        self.crowd.stop()
        self.drain()
        self.stop_proxy()
        with open(os.path.join(self.folder, "live.json"), "w") as file:
            json.dump(self.crowd.outcome(), file)
        if options.sabotage in LATE_SABOTAGE:
            self.python("sabotage.py", options.sabotage, self.folder, env=self.shop(self.new_url))

        show.heading("Every session is read back through Django, without the proxy")
        self.python("check.py", "redis", self.folder, env=self.shop(self.new_url))
        self.python("check.py", "database", self.folder, env=self.shop("", "cached_db"))
        return self.verdict()

    def drain(self):
        """Waits until the database has every write; what is only pending would be a lie to count as stored."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while True:
            database = self.status()["tee"]["database"]
            left = database["pending"] + database["dirty"]
            if left == 0:
                show.settled("the database has every write")
                return
            if time.monotonic() > deadline:
                raise Trouble(f"{left} writes have not reached the database after {DRAIN_SECONDS} s: {database}", self.proxy.log)
            show.moving(f"{left} writes on their way to the database")
            time.sleep(0.1)

    def stop_proxy(self):
        for server in reversed(self.servers.all):
            if server.name in ("gunicorn", "sessionferry"):
                code = server.stop()
                if code != 0 and server is self.proxy:
                    self.crowd.tally.count("errors", f"sessionferry, asked to end, ended with exit code {code}")
        show.line("the site and sessionferry have ended")

    def sabotage_browsers(self):
        """What is broken on purpose while the browsers look."""
        if self.options.sabotage == "delete-session":
            import redis

            connection = redis.Redis.from_url(self.site_url)
            for browser in self.crowd.browsers[:3]:
                if browser.key:
                    connection.delete(":1:django.contrib.sessions.cache" + browser.key)
        elif self.options.sabotage == "http-error":
            stranger = type(self.crowd.browsers[0])(self.crowd.browsers[0].port, {"key": None, "user": "stranger"},
                                                   self.crowd.tally, self.crowd.stopping)
            try:
                stranger.send("GET", "/no-such-page/")
            except Failure as failure:
                self.crowd.tally.count("errors", str(failure))

    def verdict(self):
        tally, found = self.crowd.tally, {}
        for store in ("redis", "database"):
            with open(os.path.join(self.folder, f"found-{store}.json")) as file:
                found[store] = json.load(file)
        undone = tally.undone + sum(store["undone"] for store in found.values())
        enough = tally.requests > 0 and all(store["checked"] for store in found.values())
        held = "unknown" if self.hold is None else f"{self.hold * 1000:.0f} ms"
        rows = [
            ("requests made", show.number(tally.requests), tally.requests > 0),
            ("errors", tally.errors, tally.errors == 0),
            ("users logged out unexpectedly", tally.logged_out, tally.logged_out == 0),
            ("pages with a wrong cart or user", tally.wrong, tally.wrong == 0),
            ("logouts", tally.logouts, None),
            ("logouts undone", undone, undone == 0),
        ]
        for store, name in (("redis", "the new Redis"), ("database", "the database")):
            rows += [
                (f"sessions checked in {name}", show.number(found[store]["checked"]), found[store]["checked"] > 0),
                (f"differences in {name}", found[store]["differences"], found[store]["differences"] == 0),
            ]
        rows += [
            ("held at the cutover", held, None),
            ("slowest page during the cutover", f"{tally.slowest.get('cutover', 0) * 1000:.0f} ms", None),
            ("slowest page otherwise",
             f"{max([0.0] + [seconds for phase, seconds in tally.slowest.items() if phase != 'cutover']) * 1000:.0f} ms", None),
            ("duration", f"{time.monotonic() - self.started:.0f} s", None),
        ]
        show.heading("What was lost")
        show.table(rows)
        notes = tally.notes[:10] + [f"{store}: {note}" for store in found for note in found[store]["notes"]]
        for note in notes:
            show.line(note)
        return enough and all(verdict is not False for _, _, verdict in rows)


def interrupted(number, frame):
    raise KeyboardInterrupt


def tail(path, lines=30):
    with open(path, errors="replace") as file:
        for line in file.readlines()[-lines:]:
            print("  | " + line.rstrip(), file=sys.stderr)


def main():
    options = arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    folder = tempfile.mkdtemp(prefix="ferry-demo-")
    os.chmod(folder, 0o711) # a database server that runs as its own user has its folder in here
    demo, keep, code = Demo(options, folder), options.keep, 3
    try:
        clean = demo.run()
        code = 0 if clean else 1
        keep = keep or not clean and not options.sabotage
        print("\nNothing was lost." if clean else "\nNOT CLEAN: see the lines marked WRONG.", flush=True)
    except KeyboardInterrupt:
        code = 130
        print("\ninterrupted", file=sys.stderr)
    except (Trouble, subprocess.CalledProcessError, OSError) as trouble:
        keep = True
        print(f"\nthe demo could not go on: {trouble}", file=sys.stderr)
        log = getattr(trouble, "log", None)
        for path in dict.fromkeys(filter(None, (log, demo.proxy and demo.proxy.log))):
            print(f"the end of {path}:", file=sys.stderr)
            tail(path)
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): # the cleaning up is not to be cut short
            signal.signal(number, signal.SIG_IGN)
        if demo.crowd:
            demo.crowd.stopping.set()
        demo.servers.stop_all()
        if keep:
            print(f"data and logs are kept in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if code == 1 and demo.proxy and not options.sabotage:
        print(f"the end of {demo.proxy.log}:", file=sys.stderr)
        tail(demo.proxy.log)
    return code


if __name__ == "__main__":
    sys.exit(main())
