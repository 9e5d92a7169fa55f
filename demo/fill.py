"""Creates the shop's users and fills the old Redis with sessions, as if the site had been running for weeks.

The sessions are Django's own: made through its SessionStore, pickled by its cache, stored under its key names with its
time to live. Only the round trips are saved, by a pipeline; one session of each kind is also saved by the SessionStore
itself and must come out byte for byte the same.

Usage: fill.py FOLDER SESSIONS CLIENTS, with the shop's environment. Writes FOLDER/filled.pickle (what check.py
expects) and FOLDER/browsers.json (the users whose browsers drive.py plays, half of them logged in already).
"""
import json
import os
import pickle
import random
import sys
import time
from datetime import datetime, timedelta, timezone

import django

import show

BATCH = 500
PASSWORD = "correct horse battery staple"
PRODUCTS = [
    "coffee", "Žluťoučký kůň", "東京ばな奈", "🍣 寿司セット", "Ελληνικός καφές", "Борщ", "قهوة", "crème brûlée", "नमकीन", "tea <&\"'>",
]


def cart(lines):
    return [
        {"name": f"{random.choice(PRODUCTS)} {index}", "count": random.randint(1, 9), "note": random.choice(PRODUCTS)}
        for index in range(lines)
    ]


def login(store, user):
    """What django.contrib.auth.login() puts into a session."""
    store["_auth_user_id"] = str(user.pk)
    store["_auth_user_backend"] = "django.contrib.auth.backends.ModelBackend"
    store["_auth_user_hash"] = user.get_session_auth_hash()


def visitor(store, user):
    store["cart"] = cart(random.randint(1, 4))


def customer(store, user):
    login(store, user)
    store["cart"] = cart(random.randint(0, 6))
    store["pages"] = random.randint(1, 500)


def customer_for_a_month(store, user):
    customer(store, user)
    store.set_expiry(30 * 24 * 3600)


def customer_until_the_browser_closes(store, user):
    customer(store, user)
    store.set_expiry(0)


def customer_until_a_date(store, user):
    customer(store, user)
    store.set_expiry(datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=random.randint(1, 60)))


def collector(store, user):
    """A cart of many kilobytes, most of it not ASCII: its row is compressed, and every character escaped in it."""
    login(store, user)
    store["cart"] = cart(random.randint(80, 300))


def odd_values(store, user):
    """Values on which a decoder of pickles or a writer of JSON may stumble; JSON turns the tuple and the keys into others."""
    store["wizard"] = {"steps": (1, 2, 3), "seen": {1: "one", 22: "two"}, "left": None, "empty": {}, "none": [], "ok": True}
    store["amounts"] = [0, -1, 255, 65536, -(2**31), 2**63, 2**70, 0.1, 100.0, 1e300, -0.0]
    store["text"] = "quote \" backslash \\ newline \n nul \0 delete \x7f line separator \u2028 astral 🜁 " + "é" * random.randint(0, 300)


def other_applications(store, user):
    store["_messages"] = json.dumps([["__json_message", 0, 25, "Uloženo ✓"]])
    store["_language"] = "cs"
    store["_password_reset_token"] = "c1x2y3-" + "0" * 32


def ends_soon(store, user):
    """Ends while the demo runs: a migration must not keep it alive."""
    visitor(store, user)
    store.set_expiry(random.randint(8, 30))


KINDS = [ # and how many in a hundred
    (visitor, 40), (customer, 25), (customer_for_a_month, 8), (customer_until_the_browser_closes, 6), (customer_until_a_date, 5),
    (odd_values, 6), (other_applications, 6), (collector, 3), (ends_soon, 1),
]


def make_users(count):
    from django.contrib.auth.hashers import make_password
    from django.contrib.auth.models import User

    User.objects.bulk_create([User(username=f"user{index}", password=make_password(PASSWORD)) for index in range(count)])
    return list(User.objects.order_by("pk"))


def twin_is_equal(cache, client, key, store, data):
    """Saves the same session the long way, and compares what is in Redis; removes it again."""
    twin = type(store)()
    twin.update(data)
    twin.create()
    twin.update(data)
    twin.save()
    ours, theirs = (cache.make_and_validate_key(store.cache_key_prefix + one) for one in (key, twin.session_key))
    equal = client.get(ours) == client.get(theirs) and abs(client.ttl(ours) - client.ttl(theirs)) <= 1
    client.delete(theirs)
    return equal


def main(folder, sessions, clients):
    django.setup()
    from django.contrib.sessions.backends.base import VALID_KEY_CHARS
    from django.contrib.sessions.backends.cache import SessionStore
    from django.core.cache import caches
    from django.db import connection
    from django.utils.crypto import get_random_string

    if connection.vendor == "sqlite":
        with connection.cursor() as cursor: # readers and the one writer do not wait for each other; the file remembers it
            cursor.execute("PRAGMA journal_mode=WAL")

    users = make_users(clients + 200)
    cache = caches["default"]
    client = cache._cache.get_client(None, write=True)
    filled, browsers, seen = {}, [], set()
    choices = random.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS], k=sessions)
    bar = show.Bar("sessions into the old Redis", sessions)
    for start in range(0, sessions, BATCH):
        pipeline, fresh = client.pipeline(transaction=False), []
        for index in range(start, min(start + BATCH, sessions)):
            mine = index < clients // 2 # the browser with this number is logged in already
            kind = customer if mine else choices[index]
            user = users[index] if mine else random.choice(users)
            store = SessionStore()
            kind(store, user)
            key, data, age = get_random_string(32, VALID_KEY_CHARS), dict(store.items()), store.get_expiry_age()
            pipeline.set(
                cache.make_and_validate_key(store.cache_key_prefix + key), cache._cache._serializer.dumps(data), ex=int(age)
            )
            if mine:
                own = {name: value for name, value in data.items() if not name.startswith("_auth")}
                browsers.append({"key": key, "data": own, "age": age, "written": [time.time(), time.time() + 1]})
            else:
                filled[key] = (kind.__name__, data, time.time() + int(age))
            fresh.append((kind, key, store, data))
        if not all(pipeline.execute()):
            raise SystemExit("the old Redis did not take a session")
        for kind, key, store, data in fresh:
            if kind not in seen and not twin_is_equal(cache, client, key, store, data):
                raise SystemExit(f"a session of kind {kind.__name__} is not as Django itself writes it")
            seen.add(kind)
        bar.at(start + len(fresh))
    bar.done()

    for index in range(clients):
        browser = browsers[index] if index < len(browsers) else {"key": None}
        if index >= len(browsers):
            browsers.append(browser)
        browser.update(user=users[index].username, user_id=users[index].pk, password=PASSWORD)
    with open(os.path.join(folder, "filled.pickle"), "wb") as file:
        pickle.dump(filled, file)
    with open(os.path.join(folder, "browsers.json"), "w") as file:
        json.dump(browsers, file)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
