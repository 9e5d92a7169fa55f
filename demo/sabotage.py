"""Breaks one thing, so that the demo's own verdict can be seen to fail.

Usage: sabotage.py WHAT FOLDER, with the shop's environment and the new Redis as the cache. (main.py itself does the two
that happen under the eyes of the browsers: delete-session and http-error.)
"""
import json
import os
import pickle
import sys

import django


def main(what, folder):
    django.setup()
    from django.contrib.sessions.backends import cache, db
    from django.contrib.sessions.models import Session

    with open(os.path.join(folder, "filled.pickle"), "rb") as file:
        key = next(key for key, (kind, _, _) in pickle.load(file).items() if kind == "customer")
    if what == "drop-row":
        Session.objects.filter(pk=key).delete()
    elif what in ("change-value", "change-row"): # the least that can differ: a count that became one less
        store = (cache if what == "change-value" else db).SessionStore(session_key=key)
        store["pages"] -= 1
        store.save()
    elif what == "undo-logout":
        with open(os.path.join(folder, "live.json")) as file:
            dead = json.load(file)["dead"]
        store = cache.SessionStore(session_key=dead[0])
        store._cache.set(store.cache_key, {"_auth_user_id": "1"}, 1000)


if __name__ == "__main__":
    main(*sys.argv[1:])
