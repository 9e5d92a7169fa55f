"""Starts and ends the real servers of the demo: two Redis, a database, the proxy and the Django site.

Each is a child process with a log of its own, known by its pid, and asked to end when this process dies (setpriv), so
that not even kill -9 of the demo leaves one behind. Everything listens on loopback, on ports found free.
"""
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

START_SECONDS = 60
STOP_SECONDS = 30
# Below the range that the kernel gives to outgoing connections: none of those can take a port between its choice here
# and the server's start.
PORTS = range(15000, 30000)


class Trouble(Exception):
    """The demo cannot go on; the text says why, `log` names the file that tells more."""

    def __init__(self, text, log=None):
        super().__init__(text)
        self.log = log


def free_port(taken=set()):
    """A port that nothing listens on, and that was not handed out before."""
    for _ in range(1000):
        port = random.choice(PORTS)
        if port in taken:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        taken.add(port)
        return port
    raise Trouble("found no free port on loopback")


def answers(port):
    """Whether something accepts connections on the port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


class Server:
    """One child process."""

    def __init__(self, name, command, log, env=None, user=None, stop_signal=signal.SIGTERM):
        self.name, self.log, self.stop_signal = name, log, stop_signal
        wrapper = ["setpriv", "--pdeathsig", "TERM"]
        if user:
            wrapper += ["--reuid", user, "--regid", str(pwd.getpwnam(user).pw_gid), "--init-groups"]
        with open(log, "ab") as output:
            # A session of its own: Ctrl-C reaches the demo only, which then ends its servers in order.
            self.process = subprocess.Popen(
                wrapper + ["--"] + command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env,
                start_new_session=True, cwd=os.path.dirname(log),
            )

    def wait_until(self, ready):
        """Waits for `ready()`; a process that has ended will never be ready."""
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if self.process.poll() is not None:
                raise Trouble(f"{self.name} ended at once, with exit code {self.process.returncode}", self.log)
            if time.monotonic() > deadline:
                raise Trouble(f"{self.name} was not ready within {START_SECONDS} s", self.log)
            time.sleep(0.05)
        return self

    def running(self):
        return self.process.poll() is None

    def stop(self):
        """Asks it to end and waits; the exit code, or None where it had to be killed."""
        if self.running():
            self.process.send_signal(self.stop_signal)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None


class Servers:
    """All that was started, ended in the opposite order."""

    def __init__(self, folder):
        self.folder, self.all = folder, []

    def start(self, name, command, **options):
        server = Server(name, command, os.path.join(self.folder, f"{name}.log"), **options)
        self.all.append(server)
        return server

    def stop_all(self):
        for server in reversed(self.all):
            if server.running():
                server.stop()

    # -- stores ----------------------------------------------------------------------------------------------------

    def redis(self, name, password):
        """A redis-server with a password, as hosted ones have; its URL. It keeps nothing on disk."""
        port = free_port()
        config = os.path.join(self.folder, f"{name}.conf")
        with open(config, "w") as file: # in a file: a command line is there for everyone to read
            file.write(f'bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ""\nappendonly no\n'
                       f"maxmemory 1gb\nmaxmemory-policy noeviction\ndir {quoted(self.folder)}\n")
        server = self.start(name, ["redis-server", config]).wait_until(lambda: answers(port))
        return server, f"redis://:{password}@127.0.0.1:{port}/0"

    def database(self, kind):
        """The URL of an empty database of this kind, its server started where it has one."""
        return {"sqlite": self.sqlite, "postgres": self.postgres, "mysql": self.mariadb}[kind]()

    def sqlite(self):
        return f"sqlite://{os.path.join(self.folder, 'shop.sqlite3')}?mode=rwc"

    def postgres(self):
        binaries = os.environ["SESSIONFERRY_DEMO_POSTGRES_BIN"]
        user = "postgres" if os.getuid() == 0 else None # it refuses to run as root
        data, port, password = self.folder_of("postgres", user), free_port(), secret()
        word = os.path.join(data, "..", "postgres.password")
        with open(word, "w") as file:
            file.write(password)
        if user:
            shutil.chown(word, user)
        self.run("postgres-init", [f"{binaries}/initdb", "-D", data, "-U", "shop", "--pwfile", word, "-A", "scram-sha-256",
                                   "-E", "UTF8", "--locale", "C", "--no-sync"], user)
        server = self.start("postgres", [
            f"{binaries}/postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", "", "-c", "fsync=off",
        ], user=user, stop_signal=signal.SIGINT) # SIGINT ends it without waiting for its clients to leave
        server.wait_until(lambda: self.log_says(server, "ready to accept connections"))
        return f"postgres://shop:{password}@127.0.0.1:{port}/postgres"

    def mariadb(self):
        user = "mysql" if os.getuid() == 0 else None
        data, port, password = self.folder_of("mariadb", user), free_port(), secret()
        as_user = [f"--user={user}"] if user else []
        # mariadb-install-db takes options as --name=value only, and overlooks others without a word.
        self.run("mariadb-init", ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--skip-test-db",
                                  "--auth-root-authentication-method=normal"] + as_user)
        first = os.path.join(data, "first.sql") # run at its start; in its own folder, where it may read
        with open(first, "w") as file:
            file.write("CREATE DATABASE shop CHARACTER SET utf8mb4;\n"
                       f"CREATE USER shop@'127.0.0.1' IDENTIFIED BY '{password}';\n"
                       "GRANT ALL ON shop.* TO shop@'127.0.0.1';\n")
        if user:
            shutil.chown(first, user)
        program = next(filter(None, (shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")
                                     for name in ("mariadbd", "mysqld"))), "mariadbd")
        server = self.start("mariadb", [
            program, "--no-defaults", f"--datadir={data}", f"--port={port}", "--bind-address=127.0.0.1", "--skip-name-resolve",
            f"--socket={os.path.join(data, 'sock')}", f"--init-file={first}", "--innodb-flush-log-at-trx-commit=0",
        ] + as_user)
        server.wait_until(lambda: self.log_says(server, "ready for connections") and answers(port))
        return f"mysql://shop:{password}@127.0.0.1:{port}/shop"

    # -- the proxy and the site ------------------------------------------------------------------------------------

    def proxy(self, binary, options, env, ready):
        return self.start("sessionferry", [binary, "run"] + options, env=env).wait_until(ready)

    def site(self, folder, env, threads):
        """The shop under gunicorn; its port. Connections stay open, as a browser's do."""
        port = free_port()
        self.start("gunicorn", [
            sys.executable, "-m", "gunicorn", "shop.wsgi", "--chdir", folder, "--bind", f"127.0.0.1:{port}", "--workers", "2",
            "--worker-class", "gthread", "--threads", str(threads), "--keep-alive", "75", "--log-level", "warning",
        ], env=env).wait_until(lambda: answers(port))
        return port

    # -- helpers ---------------------------------------------------------------------------------------------------

    def folder_of(self, name, user):
        path = os.path.join(self.folder, name)
        os.mkdir(path, 0o700)
        if user:
            shutil.chown(path, user, pwd.getpwnam(user).pw_gid)
        return path

    def run(self, name, command, user=None):
        """Runs a preparation to its end."""
        server = self.start(name, command, user=user)
        if server.process.wait() != 0:
            raise Trouble(f"{name} failed", server.log)

    @staticmethod
    def log_says(server, text):
        with open(server.log, errors="replace") as file:
            return text in file.read()


def secret():
    """A password or key for this run only."""
    return "".join(random.SystemRandom().choices("abcdefghijklmnopqrstuvwxyz0123456789", k=24))


def quoted(text):
    """A word of redis.conf."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
