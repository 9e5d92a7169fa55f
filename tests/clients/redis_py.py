"""redis-py as programs use it: both protocols, both parsers, with and without asyncio.

    redis_py.py URL [hiredis|pure]
"""

import asyncio
import sys
import threading
import time

import redis
import redis.asyncio
from redis._parsers import (
    _AsyncHiredisParser,
    _AsyncRESP2Parser,
    _AsyncRESP3Parser,
    _HiredisParser,
    _RESP2Parser,
    _RESP3Parser,
)

URL, PARSER = sys.argv[1], sys.argv[2]


def parser(protocol, asynchronous):
    if PARSER == "hiredis":
        return _AsyncHiredisParser if asynchronous else _HiredisParser
    if asynchronous:
        return _AsyncRESP3Parser if protocol == 3 else _AsyncRESP2Parser
    return _RESP3Parser if protocol == 3 else _RESP2Parser


def connect(protocol, **options):
    pool = redis.ConnectionPool.from_url(URL, protocol=protocol, parser_class=parser(protocol, False), decode_responses=True, socket_timeout=20, **options)
    return redis.Redis(connection_pool=pool)


def check(got, expected):
    assert got == expected, f"got {got!r} instead of {expected!r}"


def plain(r):
    r.flushall()
    check(r.ping(), True)
    check(r.set("a", 1), True)
    check(r.set("a", 2, nx=True), None)
    check(r.set("a", 2, get=True), "1")
    check(r.incr("a"), 3)
    check(r.mget("a", "none"), ["3", None])
    check(r.hset("h", mapping={"x": 1, "y": 2}), 2)
    check(r.hgetall("h"), {"x": "1", "y": "2"})
    check(r.zadd("z", {"one": 1, "two": 2.5}), 2)
    check(r.zrange("z", 0, -1, withscores=True)[-1][-1], 2.5)
    check(r.sadd("s", "m"), 1)
    check(r.smembers("s"), {"m"})
    check(r.lpush("l", 1, 2, 3), 3)
    check(r.lrange("l", 0, -1), ["3", "2", "1"])
    check(r.setex("e", 100, "v"), True)
    assert 95 < r.ttl("e") <= 100
    check(r.type("z"), "zset")
    check(r.object("encoding", "a"), "int")
    check(r.get("l2"), None)
    try:
        r.incr("l")
        raise AssertionError("no error")
    except redis.ResponseError as error:
        assert "WRONGTYPE" in str(error), error
    check(r.client_setname("me"), True)
    assert isinstance(r.client_id(), int)
    check(r.client_getname(), "me")
    assert r.info("server")["redis_version"]
    assert r.config_get("maxmemory") == {"maxmemory": "0"}
    check(r.dump("none"), None)


def pipelines(r):
    with r.pipeline(transaction=False) as pipe:
        for number in range(5_000):
            pipe.set(f"p{number}", number).get(f"p{number}")
        answers = pipe.execute()
    check(answers[1::2], [str(number) for number in range(5_000)])
    with r.pipeline() as pipe:
        check(pipe.incr("n").incr("n").get("n").execute(), [1, 2, "2"])
    with r.pipeline() as pipe:
        pipe.set("n", "text").incr("n").set("after", 1)
        answers = pipe.execute(raise_on_error=False)
        check([type(answer) for answer in answers], [bool, redis.ResponseError, bool])
    with r.pipeline() as pipe:
        pipe.watch("w")
        r.set("w", "changed")
        pipe.multi()
        pipe.set("w", "mine")
        try:
            pipe.execute()
            raise AssertionError("not noticed")
        except redis.WatchError:
            pass

    def append(pipe):
        now = pipe.get("w")
        pipe.multi()
        pipe.set("w", now + "!")

    r.transaction(append, "w")
    check(r.get("w"), "changed!")


def publishing(r):
    three = r.connection_pool.connection_kwargs["protocol"] == 3
    with r.pubsub() as heard:
        heard.subscribe("c1")
        heard.psubscribe("news.*")
        wait = lambda: heard.get_message(timeout=5)
        check([wait()["type"], wait()["type"]], ["subscribe", "psubscribe"])
        check(r.publish("c1", "hello"), 1)
        check(wait()["data"], "hello")
        check(r.publish("news.a", "new"), 1)
        check(wait()["type"], "pmessage")
        if not three:  # in RESP3, redis-py 6 cannot tell this reply from a message
            heard.ping()
            check(wait()["type"], "pong")
        heard.unsubscribe()
        heard.punsubscribe()
        check([wait()["type"], wait()["type"]], ["unsubscribe", "punsubscribe"])
    got = []
    heard = r.pubsub()
    heard.subscribe(c2=lambda message: got.append(message["data"]))
    thread = heard.run_in_thread(sleep_time=0.05)
    while r.publish("c2", "x") == 0:
        time.sleep(0.01)
    for number in range(100):
        r.publish("c2", number)
    end = time.time() + 5
    while len(got) < 101 and time.time() < end:
        time.sleep(0.01)
    thread.stop()
    thread.join()
    check(got, ["x"] + [str(number) for number in range(100)])


def locks(r):
    held = []

    def work():
        for _ in range(10):
            with r.lock("lock", timeout=10, blocking_timeout=20, sleep=0.002):
                held.append(1)
                check(len(held), 1)
                held.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lock = r.lock("other", timeout=10)
    check(lock.acquire(), True)
    check(r.lock("other", blocking=False).acquire(), False)
    check(lock.extend(10), True)
    check(lock.reacquire(), True)
    lock.release()


def scripts(r):
    r.script_flush()
    double = r.register_script("return tonumber(redis.call('INCRBY', KEYS[1], ARGV[1])) * 2")
    check(double(keys=["scripted"], args=[21]), 42)
    check(double(keys=["scripted"], args=[1]), 44)
    with r.pipeline() as pipe:
        double(keys=["scripted"], args=[1], client=pipe)
        check(pipe.execute(), [46])
    r.function_flush()
    check(r.function_load("#!lua name=l\nredis.register_function('f', function(k, a) return a[1] end)"), "l")
    check(r.fcall("f", 0, "x"), "x")


def streams(r):
    first = r.xadd("stream", {"n": 1})
    r.xgroup_create("stream", "group", id="0")
    read = r.xreadgroup("group", "me", {"stream": ">"}, count=10, block=100)
    assert first in str(read), read
    check(r.xack("stream", "group", first), 1)
    assert not r.xreadgroup("group", "me", {"stream": ">"}, block=20)
    got = []
    reader = threading.Thread(target=lambda: got.append(r.xread({"stream": "$"}, block=5_000)))
    reader.start()
    time.sleep(0.1)
    second = r.xadd("stream", {"n": 2})
    reader.join()
    assert second in str(got), got
    check(r.xlen("stream"), 2)
    check(r.xpending("stream", "group")["pending"], 0)


def blocking(r):
    began = time.time()
    check(r.blpop("queue", timeout=0.2), None)
    assert 0.15 < time.time() - began < 2
    got = []
    threads = [threading.Thread(target=lambda: got.append(r.blpop("queue", timeout=10))) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    for number in range(8):
        r.rpush("queue", number)
    for thread in threads:
        thread.join()
    check(sorted(item[1] for item in got), [str(number) for number in range(8)])
    check(r.bzpopmin("zqueue", timeout=0.05), None)
    r.rpush("from", "x")
    check(r.blmove("from", "to", 1), "x")


def scanning(r):
    with r.pipeline(transaction=False) as pipe:
        for number in range(1_000):
            pipe.set(f"scan:{number}", number)
            pipe.hset("large", f"f{number}", number)
        pipe.execute()
    check(len(set(r.scan_iter("scan:*", count=50))), 1_000)
    check(len(dict(r.hscan_iter("large", count=50))), 1_000)
    check(r.delete(*r.keys("scan:*")), 1_000)


def databases(protocol):
    one, two = connect(protocol, db=1), connect(protocol, db=2, client_name="two")
    one.set("which", 1)
    two.set("which", 2)
    check([one.get("which"), two.get("which")], ["1", "2"])
    check(two.client_getname(), "two")
    check(one.swapdb(1, 2), True)
    check([one.get("which"), two.get("which")], ["2", "1"])


def caching():
    from redis.cache import CacheConfig

    options = dict(protocol=3, decode_responses=True, socket_timeout=20)
    cached = redis.Redis.from_url(URL, cache_config=CacheConfig(), **options)
    other = redis.Redis.from_url(URL, **options)
    other.set("cached", "old")
    check(cached.get("cached"), "old")
    check(cached.get("cached"), "old")
    other.set("cached", "new")
    end = time.time() + 5
    while cached.get("cached") != "new":
        assert time.time() < end, "never told of the change"
        time.sleep(0.01)


async def with_asyncio(protocol):
    pool = redis.asyncio.ConnectionPool.from_url(URL, protocol=protocol, parser_class=parser(protocol, True), decode_responses=True, socket_timeout=20, max_connections=500)
    r = redis.asyncio.Redis(connection_pool=pool)
    await r.flushall()
    await asyncio.gather(*(r.set(f"k{number}", number) for number in range(200)))
    check(await asyncio.gather(*(r.get(f"k{number}") for number in range(200))), [str(number) for number in range(200)])
    async with r.pipeline(transaction=True) as pipe:
        check(await pipe.incr("n").incr("n").execute(), [1, 2])
    async with r.pubsub() as heard:
        await heard.subscribe("c")
        check((await heard.get_message(timeout=5))["type"], "subscribe")
        await r.publish("c", "hello")
        check((await heard.get_message(timeout=5))["data"], "hello")
    waiting = asyncio.create_task(r.blpop("queue", timeout=10))
    await asyncio.sleep(0.05)
    await r.rpush("queue", "x")
    check((await waiting)[1], "x")
    # One that is cancelled while it waits takes nothing.
    waiting = asyncio.create_task(r.blpop("queue", timeout=10))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await asyncio.sleep(0.2)
    await r.rpush("queue", "kept")
    check(await r.lpop("queue"), "kept")
    async with r.lock("lock", timeout=5):
        check(await r.exists("lock"), 1)
    check(len([key async for key in r.scan_iter("k*")]), 200)
    await r.aclose()
    await pool.disconnect()


for protocol in (2, 3):
    r = connect(protocol)
    for part in (plain, pipelines, publishing, locks, scripts, streams, blocking, scanning):
        try:
            part(r)
        except BaseException:
            print(f"in {part.__name__}, RESP{protocol}, {PARSER}", file=sys.stderr)
            raise
    databases(protocol)
    asyncio.run(with_asyncio(protocol))
# redis-py asks for this version.
if PARSER == "pure" and r.info("server")["redis_version"] >= "7.4":
    caching()
print("done", redis.__version__)
