"""The servers that measurements need, and a proxy between them."""
import os
import shutil
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "peers"))
from endpoints import free_port  # noqa: E402

PREFIX = ":1:django.contrib.sessions.cache"
SECRET = "a key for this measurement only"
PAD = 240


def value(number):
    """What Django's cache holds for a small session: a pickled dictionary."""
    return b"\x80\x04}(\x8c\x01nJ" + struct.pack("<i", number) + b"\x8c\x03padX" + struct.pack("<I", PAD) + b"x" * PAD + b"u."


class Servers:
    """Two Redis servers and PostgreSQL, ended when left."""

    def __init__(self, directory, postgres_bin):
        self.directory, self.bin = Path(directory), Path(postgres_bin)
        self.processes = []

    def __enter__(self):
        os.chmod(self.directory, 0o755)
        self.source, self.target, self.postgres = free_port(), free_port(), free_port()
        for port in (self.source, self.target):
            self.start("redis-server", "--port", port, "--save", "", "--dir", self.directory, "--bind", "127.0.0.1")
        data = self.directory / "postgres"
        data.mkdir()
        self.user = []
        if os.geteuid() == 0:
            shutil.chown(data, "postgres")
            self.user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
        subprocess.run(
            [*self.user, self.bin / "initdb", "--no-sync", "--auth", "trust", "--username", "site", "--pgdata", data / "data"],
            check=True, stdout=subprocess.DEVNULL, cwd=data,
        )
        self.data = data
        self.start_postgres()
        return self

    def start_postgres(self):
        return self.start(*self.user, self.bin / "postgres", "-p", self.postgres, "-k", self.data, "-D", self.data / "data", cwd=self.data)

    def start(self, *command, cwd=None):
        log = open(self.directory / f"log{len(self.processes)}", "w")
        process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log, cwd=cwd)
        self.processes.append(process)
        return process

    def __exit__(self, *_):
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()

    @property
    def database(self):
        return f"postgres://site@127.0.0.1:{self.postgres}/postgres"


def fill(port, count):
    """Sessions as Django leaves them, through redis-cli's own mass insertion."""
    pipe = subprocess.Popen(["redis-cli", "-p", str(port), "--pipe"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    for number in range(count):
        key, data = b"%s%032d" % (PREFIX.encode(), number), value(number)
        pipe.stdin.write(b"*4\r\n$5\r\nSETEX\r\n$%d\r\n%s\r\n$7\r\n1209600\r\n$%d\r\n%s\r\n" % (len(key), key, len(data), data))
    pipe.stdin.close()
    if pipe.wait() != 0:
        raise SystemExit("the source could not be filled")


def patiently(what, attempt):
    for _ in range(200):
        try:
            return attempt()
        except Exception:  # whatever it is, it is not there yet
            time.sleep(0.1)
    raise SystemExit(f"waited in vain for {what}")


def proxy(servers, binary):
    """A proxy between the two, once it is ready: the process, and the ports where it listens and where it is steered."""
    listen, admin = free_port(), free_port()
    log = open(servers.directory / "sessionferry.log", "w")
    process = subprocess.Popen(
        [binary, "run", "--listen", f"127.0.0.1:{listen}", "--admin", f"127.0.0.1:{admin}",
         "--source", f"redis://127.0.0.1:{servers.source}", "--target", f"redis://127.0.0.1:{servers.target}",
         "--database", servers.database, "--data-dir", str(servers.directory / "data")],
        env=dict(os.environ, SESSIONFERRY_SECRET_KEY=SECRET), stdout=log, stderr=log)
    servers.processes.append(process)
    patiently("the proxy", lambda: urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz", timeout=2))
    return process, listen, admin


def mib(process, field):
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024
