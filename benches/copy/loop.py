"""The loop that people write, as it goes round in the forums: each session of the cache is saved as a row with Django's
ORM, in a transaction of its own. loop.py SECONDS SECRET"""
import json
import os
import sys
import time

import django
import redis
from django.conf import settings

seconds, secret = float(sys.argv[1]), sys.argv[2]
settings.configure(
    SECRET_KEY=secret,
    USE_TZ=True,
    INSTALLED_APPS=["django.contrib.sessions"],
    SESSION_ENGINE="django.contrib.sessions.backends.db",
    CACHES={"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": os.environ["REDIS"]}},
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "USER": "site",
                           "HOST": "127.0.0.1", "PORT": os.environ["DATABASE"]}},
)
django.setup()

from django.contrib.sessions.backends import cache, db  # noqa: E402
from django.core.cache import caches  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import router, transaction  # noqa: E402

call_command("migrate", verbosity=0)
client = redis.Redis.from_url(os.environ["REDIS"])


class SessionStore(db.SessionStore, cache.SessionStore):
    def save_to_db(self, cache_key, session_key):
        data = self._cache.get(cache_key)
        row = self.model(session_key=session_key, session_data=self.encode(data), expire_date=self.get_expiry_date())
        using = router.db_for_write(self.model, instance=row)
        with transaction.atomic(using=using):
            row.save(using=using)


pattern = caches["default"].make_key(SessionStore.cache_key_prefix + "*", version=None)
began, rows = time.monotonic(), 0
for key in client.scan_iter(match=pattern):
    if time.monotonic() - began > seconds:
        break
    cache_key = key.decode().removeprefix(":1:")
    session_key = cache_key.removeprefix(SessionStore.cache_key_prefix)
    SessionStore(session_key=session_key).save_to_db(cache_key, session_key)
    rows += 1
print(json.dumps({"rows_per_second": rows / max(seconds, 0.001)}))
