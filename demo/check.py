"""Reads every session back through Django, with the proxy gone, and compares it with what it must be.

Usage: check.py redis|database FOLDER, with the shop's environment: the new Redis as the cache and SHOP_SESSION_ENGINE=cache,
or no cache but the process's own, empty one and cached_db, which then reads the row. Reads FOLDER/filled.pickle (fill.py)
and FOLDER/live.json (drive.py), writes FOLDER/found-STORE.json.

Three things are held against the store: each session that must be there (content, user, and when it ends), each that
must not (logged out, moved to another key, expired), and that nothing else is there.
"""
import hashlib
import json
import os
import pickle
import sys
import time

import django

import show

# Redis and the row keep time in their own way, and Django itself rounds; "the stores agree within 2 s" is the promise.
TOLERANCE_SECONDS = 2.0
# Notes are for a person to read: the counts tell how many more there are.
NOTES = 10


class Store:
    """One store under test, the same questions for both."""

    def __init__(self, name):
        from importlib import import_module

        from django.conf import settings
        from django.contrib.sessions.backends.cache import KEY_PREFIX
        from django.core.cache import caches

        self.name, self.engine = name, import_module(settings.SESSION_ENGINE)
        if name == "redis":
            cache = caches["default"]
            client = cache._cache.get_client(None, write=True)
            prefix = cache.make_key(KEY_PREFIX).encode()
            keys = [key for key in client.scan_iter(match=b"*", count=1000)]
            self.foreign = sum(not key.startswith(prefix) for key in keys)
            pipeline, now = client.pipeline(transaction=False), time.time()
            for key in keys:
                pipeline.pttl(key)
            self.ends = {
                key[len(prefix):].decode(): now + left / 1000 if left >= 0 else None # None: never ends
                for key, left in zip(keys, pipeline.execute()) if key.startswith(prefix) and left != -2
            }
        else:
            from django.contrib.sessions.models import Session

            self.foreign = 0
            self.ends = {key: ends.timestamp() for key, ends in Session.objects.values_list("session_key", "expire_date")}

    def load(self, key):
        return dict(self.engine.SessionStore(session_key=key).load())

    def coerced(self, data):
        """The session as this store can hold it: a row is JSON, in which a tuple is a list and each key a text."""
        return json.loads(json.dumps(data)) if self.name == "database" else data


class Verdict:
    """Counts what is wrong; a key is a credential, so a note only has its digest."""

    def __init__(self):
        self.checked = self.differences = self.undone = 0
        self.notes = []

    def wrong(self, key, text, undone=False):
        if undone:
            self.undone += 1
        else:
            self.differences += 1
        if len(self.notes) < NOTES:
            self.notes.append(f"session {hashlib.sha256(key.encode()).hexdigest()[:8]}: {text}")


def same(found, expected):
    """Equality that also tells 1 from 1.0 and from True, -0.0 from 0.0, and a tuple from a list, at any depth."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and found.keys() == expected.keys() and all(
            same(found[name], value) for name, value in expected.items()
        ) and {type(name) for name in found} == {type(name) for name in expected}
    if isinstance(expected, (list, tuple)):
        return type(found) is type(expected) and len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and repr(found) == repr(expected)


def difference(found, expected):
    """Says where two sessions differ, without their values."""
    if not found:
        return "missing"
    names = sorted(
        str(name) for name in set(found) | set(expected)
        if name not in found or name not in expected or not same(found[name], expected[name])
    )
    return "other content: " + (", ".join(names) or "the types of its keys")


def compare(store, verdict, key, data, earliest, latest):
    """A session that must be there, and end between the two times."""
    verdict.checked += 1
    expected, found = store.coerced(data), store.load(key)
    if not same(found, expected):
        verdict.wrong(key, difference(found, expected))
        return
    ends = store.ends.get(key)
    if ends is None or not earliest - TOLERANCE_SECONDS <= ends <= latest + TOLERANCE_SECONDS:
        off = "never" if ends is None else f"{ends - latest:+.1f} s off"
        verdict.wrong(key, f"same content, but it ends at another time ({off})")


def check_filled(store, verdict, filled):
    bar = show.Bar(f"sessions read back from {'the new Redis' if store.name == 'redis' else 'the database'}", len(filled))
    for index, (key, (_, data, ends)) in enumerate(filled.items()):
        left = ends - time.time()
        if left > TOLERANCE_SECONDS:
            compare(store, verdict, key, data, ends - 1, ends)
        elif left < -TOLERANCE_SECONDS:
            verdict.checked += 1
            if store.load(key):
                verdict.wrong(key, "has expired, but is still there")
        bar.at(index)
    bar.done()


def check_live(store, verdict, live):
    from django.contrib.auth.models import User

    for session in live:
        data = dict(session["data"])
        if session["user_id"] is not None:
            user = User.objects.get(pk=session["user_id"])
            data.update(
                _auth_user_id=str(user.pk), _auth_user_backend="django.contrib.auth.backends.ModelBackend",
                _auth_user_hash=user.get_session_auth_hash(),
            )
        before, after = session["written"]
        compare(store, verdict, session["key"], data, before + session["age"] - 1, after + session["age"])


def check_absent(store, verdict, dead, known):
    """What was ended must be gone; and nothing may be there that nobody put there."""
    for key in dead:
        if key in store.ends:
            verdict.wrong(key, "was ended by a logout or a login, but is there again", undone=True)
    now = time.time()
    for key, ends in store.ends.items():
        if key not in known and key not in dead and (ends is None or ends > now):
            verdict.wrong(key, "nobody knows this session")
    if store.foreign:
        verdict.wrong("", f"{store.foreign} keys in the new Redis are no sessions")


def main(name, folder):
    django.setup()
    with open(os.path.join(folder, "filled.pickle"), "rb") as file:
        filled = pickle.load(file)
    with open(os.path.join(folder, "live.json")) as file:
        outcome = json.load(file)
    store, verdict = Store(name), Verdict()
    known = {session["key"] for session in outcome["live"]} | set(outcome["unsure"]) | set(filled)
    check_filled(store, verdict, filled)
    check_live(store, verdict, outcome["live"])
    check_absent(store, verdict, set(outcome["dead"]), known)
    with open(os.path.join(folder, f"found-{name}.json"), "w") as file:
        json.dump(vars(verdict), file)


if __name__ == "__main__":
    main(*sys.argv[1:])
