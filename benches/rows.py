"""What Python and Django take for what benches/rows.rs measures, beside it in one table. See scripts/bench-rows."""
import base64
import json
import pickle
import statistics
import sys
import time
from pathlib import Path

from django.conf import settings

settings.configure(SECRET_KEY="a key for this measurement only")

from django.contrib.sessions.backends.db import SessionStore  # noqa: E402

ROUNDS, ROUND_SECONDS = 5, 1.0
root = Path(__file__).parent.parent
vectors = json.loads((root / "tests/vectors/redis-dj5.2-builtin.json").read_text())["vectors"]
value = base64.b64decode(next(v for v in vectors if v["case"] == "django_login")["redis_value_b64"])
store = SessionStore()
row = store.encode(pickle.loads(value))


def rate(work):
    """Sessions per second: the median of a few rounds."""
    rates = []
    for _ in range(ROUNDS):
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < ROUND_SECONDS:
            for _ in range(100):
                work()
            count += 100
        rates.append(count / (time.perf_counter() - began))
    return statistics.median(rates)


python = {
    "encode": rate(lambda: store.encode(pickle.loads(value))),
    "compare": rate(lambda: store.decode(row) == pickle.loads(value)),
    "value": rate(lambda: pickle.dumps(store.decode(row), pickle.HIGHEST_PROTOCOL)),
}
print(f"a session of {len(value)} bytes, per second and core")
print("                                      sessionferry    Python and Django")
for name, what in (("encode", "its value into a signed row"), ("compare", "whether both hold the same"), ("value", "the row into a value again")):
    estimate = json.loads((Path(sys.argv[1]) / "criterion/rows" / name / "new/estimates.json").read_text())
    ours = 1e9 / estimate["median"]["point_estimate"]
    print(f"  {what:<30} {ours:15,.0f} {python[name]:20,.0f}    {ours / python[name]:5.1f} times")
