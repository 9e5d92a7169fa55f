"""A caller and a real worker process: results, groups, chords, retries, errors, revocation, inspection."""

import subprocess
import sys
import time
from pathlib import Path

from celery import chain, chord, group
from celery.exceptions import TaskRevokedError

import celery_tasks as tasks

worker = subprocess.Popen(
    [sys.executable, "-m", "celery", "-A", "celery_tasks", "worker", "--pool", "threads", "--concurrency", "2", "--loglevel", "warning", "--without-mingle"],
    cwd=Path(__file__).parent,
)
try:
    assert tasks.add.delay(2, 3).get(timeout=40) == 5
    results = [tasks.add.delay(number, 1) for number in range(100)]
    assert [result.get(timeout=20) for result in results] == list(range(1, 101))
    assert group(tasks.add.s(n, n) for n in range(20))().get(timeout=20) == [2 * n for n in range(20)]
    assert chord([tasks.add.s(n, n) for n in range(20)])(tasks.total.s()).get(timeout=20) == 380
    assert chain(tasks.add.s(1, 2), tasks.add.s(3), tasks.add.s(4))().get(timeout=20) == 10
    assert tasks.third_time.delay().get(timeout=20) == 2
    try:
        tasks.fail.delay().get(timeout=20)
        raise AssertionError("no error")
    except ValueError as error:
        assert "on purpose" in str(error)
    assert tasks.add.apply_async((1, 1), countdown=0.2).get(timeout=20) == 2
    # Both threads are kept busy, so that this one still waits when it is revoked.
    busy = [tasks.slow.delay(1.5), tasks.slow.delay(1.5)]
    time.sleep(0.3)
    waiting = tasks.slow.delay(0)
    waiting.revoke()
    try:
        waiting.get(timeout=20)
        raise AssertionError("not revoked")
    except TaskRevokedError:
        pass
    assert [result.get(timeout=20) for result in busy] == ["slept", "slept"]
    inspect = tasks.app.control.inspect(timeout=5, limit=1)
    assert len(inspect.ping()) == 1
    (stats,) = inspect.stats().values()
    assert stats["total"]["celery_tasks.add"] > 100, stats["total"]
    (registered,) = inspect.registered().values()
    assert "celery_tasks.add" in registered
    assert tasks.app.control.purge() == 0
    result = tasks.add.delay(1, 1)
    result.get(timeout=20)
    result.forget()
    assert result.state == "PENDING"
finally:
    worker.terminate()
    ended = worker.wait(timeout=30)
assert ended == 0, f"the worker ended with {ended}"
print("done")
