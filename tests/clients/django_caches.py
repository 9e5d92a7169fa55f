"""Django's cache API, through its own backend and through django-redis.

    django_caches.py URL own|django_redis
"""

import asyncio
import sys
import time

from django.conf import settings

URL, WHICH = sys.argv[1], sys.argv[2]
BACKENDS = {
    "own": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": URL, "KEY_PREFIX": "site"},
    "django_redis": {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": URL + "/3",
        "OPTIONS": {"CLIENT_CLASS": "django_redis.client.DefaultClient", "COMPRESSOR": "django_redis.compressors.zlib.ZlibCompressor"},
    },
}
settings.configure(
    CACHES={"default": BACKENDS[WHICH]},
    SECRET_KEY="x",
    SESSION_ENGINE="django.contrib.sessions.backends.cache",
    INSTALLED_APPS=["django.contrib.sessions"],
)
import django

django.setup()
from django.contrib.sessions.backends.cache import SessionStore
from django.core.cache import cache


def check(got, expected):
    assert got == expected, f"got {got!r} instead of {expected!r}"


cache.clear()
check(cache.get("a"), None)
check(cache.get("a", "default"), "default")
cache.set("a", {"deep": [1, 2.5, None, "text"]}, 100)
check(cache.get("a"), {"deep": [1, 2.5, None, "text"]})
check(cache.add("a", 1), False)
check(cache.add("b", 1), True)
check(cache.incr("b", 5), 6)
check(cache.decr("b"), 5)
try:
    cache.incr("none")
    raise AssertionError("no error")
except ValueError:
    pass
check(cache.touch("a", 50), True)
check(cache.touch("none", 50), False)
check(cache.has_key("a"), True)
check(not cache.set_many({f"many{n}": n for n in range(500)}, 100), True)
check(cache.get_many([f"many{n}" for n in range(510)]), {f"many{n}": n for n in range(500)})
cache.delete_many([f"many{n}" for n in range(500)])
check(cache.get_many([f"many{n}" for n in range(500)]), {})
check(cache.get_or_set("made", lambda: "x" * 100_000), "x" * 100_000)
check(len(cache.get("made")), 100_000)
check(cache.delete("a"), True)
check(cache.delete("a"), False)
cache.set("version", 1, version=2)
check([cache.get("version"), cache.get("version", version=2)], [None, 1])
check(cache.incr_version("version", version=2), 3)
cache.set("short", 1, 1)
cache.set("none", 1, 0)
check(cache.get("none"), None)
time.sleep(1.1)
check(cache.get("short"), None)


async def asynchronous():
    await cache.aset("async", 1)
    check(await cache.aget("async"), 1)
    check(await cache.aincr("async"), 2)
    await cache.aset_many({"x": 1, "y": 2})
    check(await cache.aget_many(["x", "y", "z"]), {"x": 1, "y": 2})
    check(await asyncio.gather(*(cache.aget("async") for _ in range(50))), [2] * 50)
    check(await cache.adelete("async"), True)
    session = SessionStore()
    await session.aset("user", 7)
    await session.asave()
    check(await SessionStore(session.session_key).aget("user"), 7)


asyncio.run(asynchronous())

session = SessionStore()
session["user"] = 42
session.save()
check(SessionStore(session.session_key)["user"], 42)
session.cycle_key()
check(SessionStore(session.session_key)["user"], 42)
session.flush()
check(SessionStore(session.session_key).get("user"), None)

if WHICH == "django_redis":
    cache.set("ttl", 1, 100)
    assert 95 < cache.ttl("ttl") <= 100
    check(cache.persist("ttl"), True)
    check(cache.ttl("ttl"), None)
    check(cache.expire("ttl", 100), True)
    with cache.lock("lock", timeout=5):
        pass
    cache.set_many({f"p{n}": n for n in range(100)})
    check(len(cache.keys("p*")), 100)
    check(sorted(cache.iter_keys("p1*"))[0], "p1")
    check(cache.delete_pattern("p*"), 100)
    from django_redis import get_redis_connection

    raw = get_redis_connection("default")
    raw.set("raw", 1)
    with raw.pipeline() as pipe:
        check(pipe.incr("raw").get("raw").execute(), [2, b"2"])
    check(cache.set("nx", 1, nx=True), True)
    check(cache.set("nx", 1, nx=True), None if cache.set("nx", 1, nx=True) is None else False)
cache.clear()
print("done", django.get_version())
