"""The shop before the move: its tables, its users, and sessions in the old Redis. Once: what is there already stays.

Usage: prepare.py FOLDER SESSIONS CLIENTS, with the shop's environment, whose database may still be starting.
"""
import os
import sys
import time

import django

import fill

WAIT_SECONDS = 60


def wait_for_database():
    from django.db import OperationalError, connection

    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            connection.ensure_connection()
            return
        except OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def main(folder, sessions, clients):
    if os.path.exists(os.path.join(folder, "browsers.json")):
        print("the shop is prepared already")
        return
    django.setup()
    from django.core.management import call_command

    wait_for_database()
    call_command("migrate", verbosity=0)
    fill.main(folder, sessions, clients)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
