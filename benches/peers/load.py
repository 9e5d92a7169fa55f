"""The load: redis-benchmark, paced clients, slow ones, and clients that do nothing."""
import csv
import io
import json
import pickle
import socket
import subprocess
import threading
import time

# What Django saves for a logged-in user, under the cache engine's key: a pickled dictionary of some 400 bytes. The oldest
# protocol, which is text: redis-benchmark cuts a value off at its first NUL.
SESSION_VALUE = pickle.dumps({
    "_auth_user_id": "42", "_auth_user_backend": "django.contrib.auth.backends.ModelBackend",
    "_auth_user_hash": "5f" * 32, "cart": [f"sku-{number}" for number in range(8)], "theme": "dark"}, protocol=0)
SESSION_KEY = ":1:django.contrib.sessions.cache" + "a" * 20 + "__rand_int__"
SESSIONS = 20_000
KEYS = 100_000


def flood(port, kind, clients, pipeline, count):
    """Commands per second that redis-benchmark reaches."""
    command = ["redis-benchmark", "-h", "127.0.0.1", "-p", str(port), "-n", str(count), "-c", str(clients),
               "-P", str(pipeline), "--csv"]
    if kind == "session":
        command += ["-r", str(SESSIONS), "-x", "SETEX", SESSION_KEY, "1209600"]
        said = subprocess.run(command, input=SESSION_VALUE, capture_output=True, timeout=300, check=True).stdout
        said = said.decode("latin-1")
    else:
        command += ["-r", str(KEYS), "-d", "300", "-t", kind]
        said = subprocess.run(command, capture_output=True, timeout=300, check=True, text=True).stdout
    rows = [row for row in csv.reader(io.StringIO(said)) if len(row) > 6 and row[1].replace(".", "").isdigit()]
    return float(rows[-1][1])


def preload(port):
    """What the GET rows ask for: every key that redis-benchmark draws."""
    with socket.create_connection(("127.0.0.1", port), 10) as stream:
        for first in range(0, KEYS, 1000):
            keys = (b"key:%012d" % number for number in range(first, first + 1000))
            stream.sendall(b"".join(b"*3\r\n$3\r\nSET\r\n$16\r\n%s\r\n$300\r\n%s\r\n" % (key, b"x" * 300) for key in keys))
            wanted = 1000 * len(b"+OK\r\n")
            while wanted > 0:
                wanted -= len(stream.recv(wanted))


def paced(program, port, rate, clients, seconds):
    """Percentiles of the latency at a fixed rate, µs: {"p50": …, "p99": …}."""
    command = [*program, str(port), str(rate), str(clients), str(seconds)]
    return json.loads(subprocess.run(command, capture_output=True, timeout=300, check=True, text=True).stdout)


class Slow:
    """Clients that write a command byte by byte, and clients that ask for much and read it in drips."""

    def __init__(self, port, count):
        self.port, self.count, self.over = port, count, threading.Event()
        self.threads, self.sockets = [], []

    def _socket(self):
        stream = socket.create_connection(("127.0.0.1", self.port), 10)
        self.sockets.append(stream)
        return stream

    def __enter__(self):
        with socket.create_connection(("127.0.0.1", self.port), 10) as stream:
            stream.sendall(b"*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n$100000\r\n%s\r\n" % (b"x" * 100_000))
            stream.recv(5)
        readers = [self._socket() for _ in range(self.count)]
        writers = [self._socket() for _ in range(self.count)]
        for stream in readers:
            stream.setblocking(False)
            stream.send(b"*2\r\n$3\r\nGET\r\n$5\r\nlarge\r\n" * 200)
        self.threads = [threading.Thread(target=self._drip, args=(readers, writers))]
        self.threads[0].start()
        return self

    def _drip(self, readers, writers):
        command = b"*3\r\n$3\r\nSET\r\n$4\r\nslow\r\n$1\r\nx\r\n"
        at = 0
        while not self.over.is_set():
            for stream in readers:
                try:
                    stream.recv(1000)
                except BlockingIOError:
                    pass
            for stream in writers:
                stream.send(command[at:at + 1])
            at = (at + 1) % len(command)
            time.sleep(0.02)

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()
        for stream in self.sockets:
            stream.close()


class Idle:
    """Clients that have each been active once, as Django's are, and then wait."""

    def __init__(self, port, count):
        self.port, self.count, self.clients = port, count, []

    def __enter__(self):
        for _ in range(self.count):
            self.clients.append(socket.create_connection(("127.0.0.1", self.port), 10))
        for client in self.clients:
            client.sendall(b"*2\r\n$3\r\nGET\r\n$7\r\nnothing\r\n")
        for client in self.clients:
            client.recv(5)

    def __exit__(self, *_):
        for client in self.clients:
            client.close()
