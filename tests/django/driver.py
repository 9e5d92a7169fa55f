#!/usr/bin/env python3
"""Real Django sessions, driven from the integration tests.

Nothing here imitates Django: sessions are made, saved, loaded and deleted by its own SessionStore, through its own
Redis cache backend and its own models. Settings are made in-process from the command line.

    driver.py [settings] migrate                       create django_session as Django's own migrations do
    driver.py [settings] write                         one session of every kind; a JSON line for each
    driver.py [settings] read KEY...                   a JSON line for each key, through --engine
    driver.py [settings] hammer --log FILE ...         many sessions at once, changed until standard input closes
    driver.py [settings] check --log FILE              is everything that the hammer was told still true?
    driver.py [settings] serve                         the same and more, one JSON request per line on standard input

Settings: --engine cache|cached_db|db, --cache NAME=URL (several; the first is the default; the name `empty` is always
there: a cache in this process, emptied before each load), --cache-options JSON (what else these caches have: another
BACKEND, OPTIONS), --settings JSON (further settings), --database URL, --secret KEY.
"""
import argparse
import datetime
import decimal
import json
import math
import pickle
import random
import sys
import threading
import time
import traceback
import urllib.parse
import uuid

EMPTY = "empty"


# ------------------------------------------------------------------------------------------------ settings
def database_settings(url):
    if not url:
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "sqlite":
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": parts.path, "OPTIONS": {"timeout": 30}}
    engine = {"postgres": "postgresql", "postgresql": "postgresql", "mysql": "mysql"}[parts.scheme]
    if engine == "mysql":
        import pymysql

        pymysql.version_info = (2, 2, 7, "final", 0)  # Django asks for a recent mysqlclient; PyMySQL speaks for it
        pymysql.__version__ = "2.2.7"
        pymysql.install_as_MySQLdb()
    return {
        "ENGINE": "django.db.backends." + engine,
        "NAME": parts.path.lstrip("/"),
        "USER": urllib.parse.unquote(parts.username or ""),
        "PASSWORD": urllib.parse.unquote(parts.password or ""),
        "HOST": parts.hostname,
        "PORT": parts.port,
    }


def configure(args):
    import django
    from django.conf import settings

    caches = {EMPTY: {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "OPTIONS": {"MAX_ENTRIES": 10**6}}}
    for named in args.cache:
        name, url = named.split("=", 1)
        caches[name] = {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": url,
            "KEY_PREFIX": args.key_prefix,
            **json.loads(args.cache_options),
        }
    caches["default"] = caches[args.cache[0].split("=", 1)[0] if args.cache else EMPTY]
    settings.configure(
        SECRET_KEY=args.secret,
        INSTALLED_APPS=[
            "django.contrib.contenttypes",
            "django.contrib.auth",
            "django.contrib.sessions",
            "django.contrib.messages",
        ],
        DATABASES={"default": database_settings(args.database)},
        CACHES=caches,
        SESSION_ENGINE="django.contrib.sessions.backends." + args.engine,
        SESSION_CACHE_ALIAS="default",
        USE_TZ=args.use_tz,
        TIME_ZONE=args.time_zone,
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        **json.loads(args.settings),
    )
    django.setup()


def store(engine, cache, key=None):
    """A SessionStore of that engine on that cache."""
    import importlib

    from django.conf import settings
    from django.core.cache import caches

    settings.SESSION_CACHE_ALIAS = cache or "default"
    if cache == EMPTY:
        caches[EMPTY].clear()
    return importlib.import_module("django.contrib.sessions.backends." + engine).SessionStore(key)


# ------------------------------------------------------------------------------------------------ comparing
def canonical(value):
    """A text that is equal for two values exactly if they are equal in type and content."""
    kind = type(value)
    if kind is dict:
        inner = sorted((canonical(key), canonical(item)) for key, item in value.items())
        return "dict{" + ",".join(key + ":" + item for key, item in inner) + "}"
    if kind in (list, tuple):
        return kind.__name__ + "[" + ",".join(canonical(item) for item in value) + "]"
    if kind in (set, frozenset):
        return kind.__name__ + "[" + ",".join(sorted(canonical(item) for item in value)) + "]"
    return kind.__name__ + ":" + ascii(value)


def as_json(data):
    """What a database row gives back for this session; None where Django itself could not write the row."""
    from django.contrib.sessions.serializers import JSONSerializer

    try:
        return canonical(JSONSerializer().loads(JSONSerializer().dumps(data)))
    except (TypeError, ValueError):
        return None


def describe(key, data, **more):
    return {"key": key, "exact": canonical(data), "json": as_json(data), **more}


def load(engine, cache, key):
    session = store(engine, cache, key)
    data = session.load()
    return describe(key, data, found=session.session_key is not None)


# ------------------------------------------------------------------------------------------------ the cases
def nested(depth):
    value = {"bottom": True}
    for level in range(depth):
        value = {"level": level, "inner": [value, None]}
    return value


def json_cases():
    """Session contents that a database row can carry."""
    return {
        "empty": {},
        "text": {"name": "Ada", "empty": "", "quotes": "\"'\\/\b\f\n\r\t\0\x7f"},
        "unicode": {"grüße": "naïve café", "日本": "語", "emoji": "🚢🧳", "bidi": "\u202eabc", "line": "\u2028\u2029"},
        "integers": {"zero": 0, "one": 1, "minus": -1, "byte": 255, "short": 65535, "int": 2**31 - 1, "low": -(2**31)},
        "big integers": {"a": 2**31, "b": 2**53 + 1, "c": 2**63, "d": -(2**63) - 1, "e": 2**64, "f": 10**100, "g": -(7**400)},
        "floats": {"half": 0.5, "hundred": 100.0, "minus zero": -0.0, "small": 5e-324, "large": 1.7976931348623157e308,
                   "third": 1 / 3, "exponent": 1e22, "tenth": 0.1},
        "not numbers": {"nan": math.nan, "infinite": math.inf, "minus": -math.inf},
        "none and booleans": {"none": None, "true": True, "false": False, "list": [None, True, False]},
        "nested": nested(30),
        "lists": {"empty": [], "mixed": [1, "two", 3.0, None, [4, [5]], {"six": 6}], "long": list(range(2500))},
        "tuple": {"pair": (1, 2), "deep": [((),)], "triple": ("a", ("b",), 3)},
        "keys that are not text": {1: "one", 2.5: "float", None: "none", True: "true"},
        "repeated": {"same": [{"key": "value"}] * 50},
        "many keys": {"key %d" % number: number for number in range(1500)},
        "compressible": {"text": "abc " * 20_000},
        "random": {"text": "".join(random.Random(7).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=70_000))},
        "one megabyte": {"text": "x" * 1_000_000 + "ü"},
        "cart": {"cart": [{"sku": "A-%d" % n, "count": n, "price": "9.9%d" % n} for n in range(20)], "coupon": None},
    }


def object_cases():
    """Session contents that Redis carries and a row does not."""
    return {
        "datetime": {"seen": datetime.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=datetime.timezone.utc)},
        "date and time": {"day": datetime.date(2026, 1, 2), "time": datetime.time(3, 4), "delta": datetime.timedelta(1, 2, 3)},
        "decimal": {"price": decimal.Decimal("9.90")},
        "set": {"tags": {"a", "b", 3}, "frozen": frozenset([1])},
        "bytes": {"raw": bytes(range(256)), "array": bytearray(b"\0\xff")},
        "uuid": {"id": uuid.UUID(int=7)},
        "complex": {"z": 1 + 2j},
        "tuple keys": {("a", 1): "x"},
    }


def expiry_cases():
    from django.utils import timezone

    return {
        "expiry int": 300,
        "expiry float": 1234.5,
        "expiry at browser close": 0,
        "expiry default": None,
        "expiry datetime": timezone.now() + datetime.timedelta(days=3),
        "expiry timedelta": datetime.timedelta(hours=5),
        "expiry far": 10 * 365 * 86400,
    }


def request_with(session):
    from django.http import HttpRequest

    request = HttpRequest()
    request.session = session
    request.META["REMOTE_ADDR"] = "127.0.0.1"
    return request


def write_all(engine, cache, objects=True):
    """Make one session of every kind and say what it holds."""
    from django.contrib.auth import login
    from django.contrib.auth.models import User
    from django.contrib.auth.signals import user_logged_in
    from django.contrib.messages.storage.session import SessionStorage
    from django.http import HttpResponse

    def finished(name, session):
        session.save()
        return describe(session.session_key, session._session, name=name, age=session.get_expiry_age())

    cases = json_cases()
    if objects:
        cases.update(object_cases())
    for name, data in cases.items():
        session = store(engine, cache)
        session.update(data)
        yield finished(name, session)
    for name, value in expiry_cases().items():
        session = store(engine, cache)
        session["kept"] = name
        session.set_expiry(value)
        yield finished(name, session)

    session = store(engine, cache)
    session["before"] = "login"
    session.save()
    anonymous = session.session_key
    user_logged_in.disconnect(dispatch_uid="update_last_login")
    user = User(pk=7, username="ada", password="pbkdf2_sha256$1$x$y")
    login(request_with(session), user, backend="django.contrib.auth.backends.ModelBackend")
    yield finished("login", session)
    yield {"key": anonymous, "name": "left behind by login", "gone": True}

    session = store(engine, cache)
    messages = SessionStorage(request_with(session))
    messages.add(20, "Saved – ünïcode <b>")
    messages.add(40, "Again", "tag")
    messages.update(HttpResponse())
    yield finished("messages", session)

    session = store(engine, cache)
    session["short"] = "life"
    session.save()
    gone = session.session_key
    session.flush()
    yield {"key": gone, "name": "logged out", "gone": True}

    session = store(engine, cache)
    session["first"] = 1
    session.save()
    again = store(engine, cache, session.session_key)
    again["second"] = 2
    del again["first"]
    yield finished("changed", again)


# ------------------------------------------------------------------------------------------------ the hammer
class Log:
    """One JSON line per event, complete even if the process is killed."""

    def __init__(self, path):
        self.file = open(path, "a", buffering=1, encoding="utf-8")
        self.lock = threading.Lock()
        self.counts = {}

    def add(self, kind, began, **fields):
        line = json.dumps({"kind": kind, "began": began, "ended": time.time(), **fields}) + "\n"
        with self.lock:
            self.counts[kind] = self.counts.get(kind, 0) + 1
            self.file.write(line)


def hammer(args):
    """Each thread is one visitor: it changes its own session, now and then logs out and starts again."""
    from django.conf import settings

    settings.SESSION_CACHE_ALIAS = "default"
    log = Log(args.log)
    over = threading.Event()
    import importlib

    engines = ["django.contrib.sessions.backends." + name for name in args.engines.split(",") if name]
    stores = [importlib.import_module(engine).SessionStore for engine in engines or [settings.SESSION_ENGINE]]

    def attempt(op, key, n, call):
        """Did it happen, as far as the visitor was told? What was about to be written is logged before."""
        began = time.time()
        log.add("try", began, op=op, key=key, n=n)
        try:
            call()
        except Exception as error:
            log.add("error", began, op=op, key=key, n=n, error=type(error).__name__ + ": " + str(error)[:200])
            return False
        log.add(op, began, key=key, n=n)
        return True

    def visitor(number):
        dice = random.Random(args.seed * 1000 + number)
        key, n, tried = None, 0, 0
        while not over.is_set():
            if args.think:
                over.wait(dice.random() * 2 * args.think / 1000)
            Store = dice.choice(stores) if len(stores) > 1 else stores[0]
            if key is None:
                session = Store()
                session["n"], session["visitor"], session["pad"] = 1, "Zoë %d" % number, "x" * dice.randrange(2000)
                began = time.time()
                try:
                    session.save()
                except Exception as error:
                    log.add("error", began, op="create", key=None, n=1, error=type(error).__name__ + ": " + str(error)[:200])
                    over.wait(args.pause)
                    continue
                key, n, tried = session.session_key, 1, 1
                log.add("create", began, key=key, n=1)
                continue
            began = time.time()
            session = Store(key)
            if "n" not in session:
                # Django turns any error into an empty session. Ask once more, where an error is seen as one.
                try:
                    probe = Store()._cache.get(Store(key).cache_key) if hasattr(session, "_cache") else Store(key).load()
                except Exception as error:
                    log.add("error", began, op="load", key=key, n=n, error=type(error).__name__ + ": " + str(error)[:200])
                    over.wait(args.pause)
                    continue
                if probe:
                    log.add("error", began, op="load", key=key, n=n, error="Django got an error where it loads a session")
                    over.wait(args.pause)
                else:
                    log.add("lost", began, key=key, n=n)
                    key = None
                continue
            if not n <= session["n"] <= tried:
                log.add("stale", began, key=key, n=n, got=session["n"])
            n = max(n, min(session["n"], tried))
            if dice.random() < args.leave:
                # Gone, and its session stays as it is.
                key = None
                continue
            if dice.random() < args.logout:
                attempt("logout", key, n, session.flush)
                key = None
                continue
            tried = max(tried, n) + 1
            session["n"], session["pad"] = tried, "y" * dice.randrange(2000)
            if attempt("write", key, tried, session.save):
                n = tried
            else:
                over.wait(args.pause)

    def guarded(number):
        try:
            visitor(number)
        except Exception:
            log.add("crashed", time.time(), key=None, error=traceback.format_exc())

    threads = [threading.Thread(target=guarded, args=(number,), daemon=True) for number in range(args.sessions)]
    for thread in threads:
        thread.start()
    if args.seconds:
        time.sleep(args.seconds)
    else:
        sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join(60)
    if any(thread.is_alive() for thread in threads):
        log.add("crashed", time.time(), key=None, error="a visitor still waits for its answer after 60 s")
    for kind in ("create", "write", "logout", "error", "lost", "stale", "crashed"):
        log.counts.setdefault(kind, 0)
    print(json.dumps(log.counts), flush=True)


def check(path, engine, cache):
    """Hold the stores against what the hammer's visitors were told."""
    told = {}
    for line in open(path, encoding="utf-8"):
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the last line of a hammer that was killed
        key = event.get("key")
        if key is None:
            continue
        state = told.setdefault(key, {"acked": 0, "tried": 0, "logout": None, "lost": False})
        kind = event["kind"]
        if kind == "try":
            if event["op"] == "logout":
                state["logout"] = state["logout"] or "tried"
            state["tried"] = max(state["tried"], event["n"])
        elif kind in ("create", "write"):
            state["acked"] = max(state["acked"], event["n"])
            state["tried"] = max(state["tried"], event["n"])
        elif kind == "logout":
            state["logout"] = "acked"
        elif kind == "lost":
            state["lost"] = True
    result = {"checked": 0, "logged_out": 0, "unsure": 0, "missing": [], "behind": [], "revived": []}
    for key, state in told.items():
        session = store(engine, cache, key)
        data = session.load()
        found = session.session_key is not None
        where = {"key": key, "acked": state["acked"], "tried": state["tried"], "got": data.get("n")}
        if state["logout"] == "tried" or (state["logout"] is None and state["acked"] == 0):
            result["unsure"] += 1
        elif state["logout"] == "acked":
            result["logged_out"] += 1
            if found:
                result["revived"].append(where)
        else:
            result["checked"] += 1
            if not found or "n" not in data:
                result["missing"].append(where)
            elif not state["acked"] <= data["n"] <= state["tried"]:
                result["behind"].append(where)
    return result


# ------------------------------------------------------------------------------------------------ serve
def migrate():
    from django.core.management import call_command

    call_command("migrate", "sessions", verbosity=0, interactive=False)


def rows():
    """Every row as Django decodes it, with the instant at which it ends."""
    from django.contrib.sessions.models import Session

    answer = []
    for row in Session.objects.all().iterator():
        data = row.get_decoded()
        ends = row.expire_date
        if ends.tzinfo is None:
            from django.utils import timezone

            ends = timezone.make_aware(ends)
        answer.append(describe(row.session_key, data, ends=ends.timestamp()))
    return answer


def fill(engine, cache, count, seed):
    dice = random.Random(seed)
    keys = []
    for number in range(count):
        session = store(engine, cache)
        session["n"] = number
        session["name"] = "visitor ü %d" % number
        session["pad"] = "z" * dice.randrange(1500)
        if number % 3:
            session.set_expiry(600 + dice.randrange(10**6))
        session.save()
        keys.append(session.session_key)
    return keys


# ------------------------------------------------------------------------------------------------ drawing
TEXTS = ["", "a", "Zoë", "日本語", "😀", "\x00\x1f\x7f", "</script>", "\u2028", "line\nbreak", '"quoted"\\', "x" * 300]


def drawn(dice, plain, depth=0):
    """Whatever a session may hold; `plain`: what every serializer has a form for."""
    kind = dice.randrange(11 if depth < 4 else 6)
    if kind == 0:
        return dice.choice([None, True, False])
    if kind == 1:
        return dice.choice([0, -1, 255, 256, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63), dice.randrange(10**9)])
    if kind == 2:
        return dice.choice([0.0, -0.0, 0.1, 1e300, -1e-300, 100.0, float("inf"), float("nan"), dice.random() * 10**6])
    if kind in (3, 4):
        return dice.choice(TEXTS)
    if kind == 5:
        return "".join(chr(dice.choice([dice.randrange(32, 127), dice.randrange(160, 0xD800), dice.randrange(0x10000, 0x20000)]))
                       for _ in range(dice.randrange(40)))
    if kind in (6, 7):
        return [drawn(dice, plain, depth + 1) for _ in range(dice.randrange(5))]
    if kind in (8, 9) or plain:
        return {dice.choice(TEXTS) + str(n): drawn(dice, plain, depth + 1) for n in range(dice.randrange(5))}
    zone = dice.choice([None, datetime.timezone.utc, datetime.timezone(datetime.timedelta(hours=-5, minutes=-30))])
    return dice.choice([
        lambda: tuple(drawn(dice, plain, depth + 1) for _ in range(dice.randrange(5))),
        lambda: {dice.choice([dice.randrange(9), 1.5, True, None, "1"]): drawn(dice, plain, depth + 1) for _ in range(3)},
        lambda: dice.randrange(10**30) - 10**29,
        lambda: datetime.datetime(2026, 1, 2, 3, 4, 5, dice.randrange(10**6), tzinfo=zone),
        lambda: decimal.Decimal(dice.randrange(10**6)) / 100,
        lambda: uuid.UUID(int=dice.randrange(2**128)),
        lambda: {1, 2, dice.randrange(99)},
        lambda: bytes(dice.randrange(256) for _ in range(dice.randrange(9))),
    ])()


def draw(engine, cache, count, seed, plain):
    """Sessions as they come back from that cache, which may not be what was put in."""
    dice = random.Random(seed)
    answer = []
    for _ in range(count):
        session = store(engine, cache)
        for number in range(dice.randrange(7)):
            session["key%d" % number] = drawn(dice, plain)
        if dice.randrange(3) == 0:
            session.set_expiry(600 + dice.randrange(10**6))
        session.save()
        answer.append(load(engine, cache, session.session_key))
    return answer


def answer_one(request):
    do = request.pop("do")
    if do == "migrate":
        return migrate()
    if do == "write":
        return list(write_all(**request))
    if do == "load":
        return [load(request["engine"], request["cache"], key) for key in request["keys"]]
    if do == "rows":
        return rows()
    if do == "fill":
        return fill(**request)
    if do == "draw":
        return draw(**request)
    if do == "check":
        return check(**request)
    if do == "pickle":
        return pickle.dumps(request["data"], request.get("protocol", pickle.HIGHEST_PROTOCOL)).hex()
    if do == "pickle_object":
        return pickle.dumps(object_cases()[request["name"]], pickle.HIGHEST_PROTOCOL).hex()
    if do == "save":
        session = store(request["engine"], request["cache"], request.get("key"))
        session.update(request["data"])
        if "expiry" in request:
            session.set_expiry(request["expiry"])
        session.save()
        return session.session_key
    if do == "delete":
        return store(request["engine"], request["cache"]).delete(request["key"])
    if do == "sql":
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(request["statement"])
            return [list(map(str, row)) for row in cursor.fetchall()] if cursor.description else None
    raise ValueError("unknown request " + do)


def serve():
    from django.db import close_old_connections

    for line in sys.stdin:
        try:
            close_old_connections()
            answer = {"ok": answer_one(json.loads(line))}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="cache", choices=["cache", "cached_db", "db"])
    parser.add_argument("--cache", action="append", default=[], metavar="NAME=URL")
    parser.add_argument("--cache-options", default="{}")
    parser.add_argument("--settings", default="{}")
    parser.add_argument("--database", default="")
    parser.add_argument("--secret", default="a key for tests only")
    parser.add_argument("--key-prefix", default="")
    parser.add_argument("--no-use-tz", dest="use_tz", action="store_false")
    parser.add_argument("--time-zone", default="UTC")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("migrate")
    commands.add_parser("serve")
    commands.add_parser("write").add_argument("--json-only", action="store_true")
    commands.add_parser("read").add_argument("keys", nargs="+")
    hammering = commands.add_parser("hammer")
    hammering.add_argument("--log", required=True)
    hammering.add_argument("--sessions", type=int, default=50)
    hammering.add_argument("--engines", default="", help="several: each request is served by a worker with one of them")
    hammering.add_argument("--seconds", type=float, default=0, help="0: until standard input closes")
    hammering.add_argument("--think", type=float, default=0, help="mean milliseconds between a visitor's requests")
    hammering.add_argument("--logout", type=float, default=0.05, help="share of requests that log out")
    hammering.add_argument("--leave", type=float, default=0, help="share of requests after which a visitor never comes back")
    hammering.add_argument("--pause", type=float, default=0.05, help="seconds to wait after an error")
    hammering.add_argument("--seed", type=int, default=1)
    checking = commands.add_parser("check")
    checking.add_argument("--log", required=True)
    args = parser.parse_args()
    configure(args)
    default = "default" if args.engine == "cache" else EMPTY
    if args.command == "migrate":
        migrate()
    elif args.command == "serve":
        serve()
    elif args.command == "write":
        for line in write_all(args.engine, "default", objects=not args.json_only):
            print(json.dumps(line))
    elif args.command == "read":
        for key in args.keys:
            print(json.dumps(load(args.engine, default, key)))
    elif args.command == "hammer":
        hammer(args)
    elif args.command == "check":
        result = check(args.log, args.engine, default)
        print(json.dumps(result))
        sys.exit(1 if result["missing"] or result["behind"] or result["revived"] else 0)


if __name__ == "__main__":
    main()
