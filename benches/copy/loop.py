"""The loop that people write: each session of the cache, saved as a row in a transaction of its own, with
Django's ORM. loop.py SECONDS SECRET"""
import datetime
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

from django.contrib.sessions.backends.db import SessionStore  # noqa: E402
from django.contrib.sessions.models import Session  # noqa: E402
from django.core.cache import cache  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import transaction  # noqa: E402
from django.utils import timezone  # noqa: E402

call_command("migrate", verbosity=0)
PREFIX = ":1:django.contrib.sessions.cache"
AGE = datetime.timedelta(seconds=settings.SESSION_COOKIE_AGE)
client = redis.Redis.from_url(os.environ["REDIS"])
began, rows = time.monotonic(), 0
for key in client.scan_iter(PREFIX + "*", count=1000):
    if time.monotonic() - began > seconds:
        break
    session_key = key.decode().removeprefix(PREFIX)
    data = cache.get(key.decode().removeprefix(":1:"))
    store = SessionStore(session_key)
    row = Session(session_key=session_key, session_data=store.encode(data), expire_date=timezone.now() + AGE)
    with transaction.atomic():
        row.save()
    rows += 1
print(json.dumps({"rows_per_second": rows / max(seconds, 0.001)}))
