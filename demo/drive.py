"""Browsers that use the shop without a break, each knowing exactly what its next page must show.

A browser is one thread with a connection that stays open and a cookie jar; it clicks, follows the redirect and looks.
What it put into its cart is noted here, on its own side, and compared with each page. It logs out now and then, and
keeps asking with the cookies of sessions that are over: those must stay dead.
"""
import html
import http.client
import http.cookies
import json
import random
import re
import threading
import time
from urllib.parse import urlencode

from fill import PRODUCTS

TIMEOUT_SECONDS = 30
THINK_SECONDS = (0.03, 0.15)
LONG_CART = 40
WEEKS, MONTH = 14 * 24 * 3600, 30 * 24 * 3600
STATE = re.compile(r'<script id="state" type="application/json">(.*?)</script>', re.S)


class Failure(Exception):
    """A request that did not get the answer it should."""


class Mismatch(Exception):
    """A page that does not show the session with this key. The tally has it; the browser starts over."""


class Tally:
    """What all browsers saw, together."""

    def __init__(self):
        self.lock = threading.Lock()
        self.phase = "before"
        self.requests = self.errors = self.logged_out = self.undone = self.wrong = self.logins = self.logouts = self.probes = 0
        self.slowest = {}
        self.notes = []

    def request(self, seconds):
        with self.lock:
            self.requests += 1
            self.slowest[self.phase] = max(seconds, self.slowest.get(self.phase, 0.0))

    def count(self, what, note=None):
        with self.lock:
            setattr(self, what, getattr(self, what) + 1)
            if note:
                self.notes.append(f"{self.phase}: {note}")

    def line(self):
        return (f"browsers: {self.requests:,} requests, {self.errors} errors, {self.logged_out} logged out, "
                f"{self.wrong} wrong carts, {self.undone} logouts undone")


class Browser(threading.Thread):
    """One user, and what this user's session must hold: the oracle."""

    def __init__(self, port, person, tally, stop, host="127.0.0.1"):
        super().__init__(name=person["user"], daemon=True)
        self.port, self.person, self.tally, self.stop = port, person, tally, stop
        self.connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
        self.started = False
        self.jar, self.dead, self.unsure = {}, [], []
        self.forget()
        if person["key"]: # logged in before the migration began
            data = person["data"]
            self.jar["sessionid"] = person["key"]
            self.logged_in, self.cart, self.pages = True, data["cart"], data["pages"]
            self.age, self.written = person["age"], person["written"]

    def forget(self):
        """The oracle of a browser without a session."""
        self.logged_in, self.cart, self.pages, self.expiry = False, None, 0, None
        self.age, self.written = WEEKS, None

    @property
    def key(self):
        return self.jar.get("sessionid")

    def expected(self):
        """The session as it must be in every store; None for a browser that has none."""
        if self.key is None:
            return None
        data = {}
        if self.cart is not None:
            data["cart"] = self.cart
        if self.logged_in:
            data["pages"] = self.pages
        if self.expiry is not None:
            data["_session_expiry"] = self.expiry
        user = self.person["user_id"] if self.logged_in else None
        return {"key": self.key, "user_id": user, "data": data, "age": self.age, "written": self.written}

    # -- HTTP ------------------------------------------------------------------------------------------------------

    def send(self, method, path, form=None, jar=None):
        """One request; the body of the answer, which must be a page (GET) or a redirect (POST)."""
        jar = self.jar if jar is None else jar
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in jar.items())}
        body = None
        if method == "POST":
            body = urlencode(dict(form or {}, csrfmiddlewaretoken=jar.get("csrftoken", "")))
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        before = time.monotonic()
        try:
            self.connection.request(method, path, body, headers)
            response = self.connection.getresponse()
            text = response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            raise Failure(f"{method} {path}: {error!r}")
        finally:
            self.tally.request(time.monotonic() - before)
        for cookie in response.headers.get_all("Set-Cookie", []):
            for morsel in http.cookies.SimpleCookie(cookie).values():
                if morsel["max-age"] == "0" or morsel.value == "": # Django writes `sessionid=""; Max-Age=0` to delete it
                    jar.pop(morsel.key, None)
                else:
                    jar[morsel.key] = morsel.value
        if response.status != (302 if method == "POST" else 200):
            said = html.unescape(" ".join(re.sub(r"<[^>]*>", " ", text).split()))[:100]
            raise Failure(f"{method} {path}: HTTP {response.status} {said}")
        return text

    def writes(self, method, path, form=None):
        """A request that saves the session; notes when, which is when its time to live began."""
        before = time.time()
        text = self.send(method, path, form)
        self.written = [before, time.time()]
        return text

    @staticmethod
    def state(page):
        found = STATE.search(page)
        if not found:
            raise Failure("a page without the state of the shop")
        return json.loads(found.group(1))

    # -- what a user does ------------------------------------------------------------------------------------------

    def look(self):
        """Loads the shop and holds it against the oracle."""
        before = self.key # the answer may take the cookie away, but not the session from the store
        if self.logged_in: # this page is counted in the session
            state = self.state(self.writes("GET", "/"))
            self.pages += 1
        else:
            state = self.state(self.send("GET", "/"))
        user = self.person["user"] if self.logged_in else None
        if state["user"] != user:
            if state["user"] is None:
                self.tally.count("logged_out", f"{user} was logged out")
            else:
                self.tally.count("wrong", f"{user or 'a visitor'} was shown the page of {state['user']}")
            raise Mismatch(before)
        if state["cart"] != (self.cart or []) or state["pages"] != self.pages:
            self.tally.count(
                "wrong", f"{user or 'a visitor'} sees {len(state['cart'])} lines and {state['pages']} pages "
                f"instead of {len(self.cart or [])} lines and {self.pages} pages, or other ones"
            )
            raise Mismatch(before)

    def add(self):
        cart = self.cart or []
        # A product that is there already, or a new one.
        name = random.choice(cart)["name"] if cart and random.random() < 0.3 else f"{random.choice(PRODUCTS)} {len(cart)}"
        note = random.choice(PRODUCTS) * random.randint(0, 10)
        self.writes("POST", "/add/", {"name": name, "note": note})
        self.cart = cart
        for line in cart:
            if line["name"] == name:
                line["count"] += 1
                break
        else:
            cart.append({"name": name, "count": 1, "note": note})
        self.look()

    def empty(self):
        if self.cart is None:
            self.send("POST", "/empty/")
        else:
            self.writes("POST", "/empty/")
        self.cart = None
        self.look()

    def log_in(self):
        remember = random.choice(["", "", "month", "browser"])
        self.send("GET", "/login/")
        before = self.key
        self.writes("POST", "/login/", {"username": self.person["user"], "password": self.person["password"], "remember": remember})
        if before and before != self.key:
            self.dead.append(before) # a login moves the session to a new key
        self.logged_in, self.pages = True, 0
        self.expiry = {"month": MONTH, "browser": 0}.get(remember)
        self.age = MONTH if remember == "month" else WEEKS
        self.tally.count("logins")
        self.look()

    def log_out(self):
        before = self.key
        self.send("POST", "/logout/")
        self.dead.append(before)
        self.forget()
        self.tally.count("logouts")
        self.look()
        self.probe(before)
        for _ in range(random.randint(0, 2)): # a visitor's cart, which the login then keeps
            self.add()
        self.log_in()

    def probe(self, key):
        """Asks with the cookie of a session that is over."""
        state = self.state(self.send("GET", "/", jar={"sessionid": key}))
        self.tally.count("probes")
        if state["user"] is not None or state["cart"]:
            self.tally.count("undone", "the cookie of a session that was ended works again")

    def click(self):
        choice = random.random()
        if not self.logged_in:
            self.log_in()
        elif self.cart and len(self.cart) > LONG_CART or choice < 0.02:
            self.empty()
        elif choice < 0.07:
            self.log_out()
        elif choice < 0.12 and self.dead:
            self.probe(random.choice(self.dead))
        elif choice < 0.5:
            self.look()
        else:
            self.add()

    def start_over(self, *keys):
        """After a failure nobody knows what the session holds: it counts as unsure, and the user logs in anew."""
        self.unsure += filter(None, (self.key,) + keys)
        self.jar.clear()
        self.forget()

    def go_on(self):
        """One thing that this user does, whatever comes of it."""
        try:
            if not self.started:
                self.look()
                self.started = True
            self.click()
        except Failure as failure:
            self.tally.count("errors", str(failure))
            self.start_over()
            self.stop.wait(0.5)
        except Mismatch as mismatch:
            self.start_over(*mismatch.args)
            self.started = False
        except Exception as error: # a mistake in this file must not end a browser silently
            self.tally.count("errors", f"in the demo itself: {error!r}")
            self.start_over()
            self.started = False

    def run(self):
        while not self.stop.is_set():
            self.go_on()
            self.stop.wait(random.uniform(*THINK_SECONDS))
        self.connection.close()


class Crowd:
    """All browsers."""

    def __init__(self, port, people):
        self.tally, self.stopping = Tally(), threading.Event()
        self.browsers = [Browser(port, person, self.tally, self.stopping) for person in people]

    def start(self):
        for browser in self.browsers:
            browser.start()

    def stop(self):
        """Lets each browser finish what it is doing."""
        self.stopping.set()
        for browser in self.browsers:
            browser.join(2 * TIMEOUT_SECONDS)
            if browser.is_alive():
                self.tally.count("errors", f"the browser of {browser.name} never came back")

    def outcome(self):
        return outcome(self.browsers)


def outcome(browsers):
    """What check.py compares with the stores."""
    live = [expected for expected in (browser.expected() for browser in browsers) if expected]
    return {
        "live": live,
        "dead": [key for browser in browsers for key in browser.dead],
        "unsure": [key for browser in browsers for key in browser.unsure],
    }
