"""The endpoints that are measured: direct Redis and what can stand in front of it. Each on a free port of its own."""
import json
import os
import resource
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

PATIENCE = 20  # seconds until a server answers
SETTLE_PATIENCE = 60  # seconds until what was written has reached every store


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def allow_files():
    """Ten thousand clients, and as many ways on."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = 30000 if hard == resource.RLIM_INFINITY else min(hard, 30000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Endpoint:
    """One way to a Redis: its port, and the processes whose CPU time it costs."""

    def __init__(self, name, port, process, admin=None):
        self.name, self.port, self.process, self.admin = name, port, process, admin

    def cpu_seconds(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def settle(self):
        """Waits until every other store has what was written, so that it is not made up in another one's turn. Answers
        how many seconds that took."""
        began = time.monotonic()
        while self.admin and self._pending():
            if time.monotonic() - began > SETTLE_PATIENCE:
                raise SystemExit(f"{self.name} does not get its writes delivered within {SETTLE_PATIENCE} s")
            time.sleep(0.02)
        return time.monotonic() - began

    def _pending(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/api/v1/status", timeout=10) as answer:
            tee = json.load(answer)["tee"]
        return sum(sink["pending"] for sink in tee.values())


class Endpoints:
    """Starts them all; ends them when left."""

    def __init__(self, directory, binary, envoy):
        self.directory, self.binary, self.envoy = Path(directory), binary, envoy
        self.processes = []
        # Every Redis that stands behind some endpoint.
        self.sources = []

    def __enter__(self):
        try:
            self.all = self._all()
            return self
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, name, command, port, **more):
        log = open(self.directory / f"{name}.log", "w")
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.directory, **more)
        self.processes.append(process)
        end = time.monotonic() + PATIENCE
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), 1) as probe:
                    probe.settimeout(1)
                    probe.sendall(b"*2\r\n$3\r\nGET\r\n$1\r\nx\r\n")
                    if probe.recv(5):
                        return Endpoint(name, port, process)
            except OSError:
                pass
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{name} does not answer: {(self.directory / f'{name}.log').read_text()[-2000:]}")
            time.sleep(0.05)

    def _redis(self, name):
        port = free_port()
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--maxclients", "20000"]
        return self._start(name, command, port)

    def _all(self):
        direct, mirror = self._redis("direct"), self._redis("mirror")
        self.sources.append(direct)
        return [direct, self._twemproxy(direct), self._haproxy(direct), self._envoy(direct, mirror), self._sessionferry()]

    def _twemproxy(self, direct):
        port, stats = free_port(), free_port()
        config = self.directory / "twemproxy.yml"
        config.write_text(f"""bench:
  listen: 127.0.0.1:{port}
  hash: fnv1a_64
  distribution: ketama
  redis: true
  auto_eject_hosts: false
  timeout: 5000
  server_connections: 1
  servers:
   - 127.0.0.1:{direct.port}:1
""")
        return self._start("twemproxy", ["nutcracker", "-c", str(config), "-s", str(stats), "-a", "127.0.0.1"], port)

    def _haproxy(self, direct):
        port = free_port()
        config = self.directory / "haproxy.cfg"
        config.write_text(f"""global
  nbthread 2
  maxconn 4000
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
listen bench
  bind 127.0.0.1:{port}
  server redis 127.0.0.1:{direct.port}
""")
        # Without -W: one process, so that its CPU time is its own.
        return self._start("haproxy", ["haproxy", "-db", "-f", str(config)], port)

    def _envoy(self, direct, mirror):
        port = free_port()

        def cluster(name, of):
            address = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": of.port}}}
            endpoints = [{"lb_endpoints": [{"endpoint": address}]}]
            return {"name": name, "type": "STATIC", "connect_timeout": "1s",
                    "load_assignment": {"cluster_name": name, "endpoints": endpoints}}

        proxy = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy",
            "stat_prefix": "bench",
            "settings": {"op_timeout": "5s", "max_buffer_size_before_flush": 1024, "buffer_flush_timeout": "0.001s"},
            "prefix_routes": {"catch_all_route": {
                "cluster": "source",
                "request_mirror_policy": [{"cluster": "mirror", "exclude_read_commands": True}]}},
        }
        listener = {"name": "bench",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                    "filter_chains": [{"filters": [{"name": "envoy.filters.network.redis_proxy", "typed_config": proxy}]}]}
        config = self.directory / "envoy.json"
        config.write_text(json.dumps({"static_resources": {
            "listeners": [listener], "clusters": [cluster("source", direct), cluster("mirror", mirror)]}}))
        command = [self.envoy, "-c", str(config), "--concurrency", "2", "-l", "error", "--use-dynamic-base-id"]
        return self._start("envoy", command, port)

    def _sessionferry(self):
        # A source of its own: it watches it, and would deliver what the others write to theirs.
        source, target, port, admin = self._redis("source"), self._redis("target"), free_port(), free_port()
        self.sources.append(source)
        command = [self.binary, "run", "--listen", f"127.0.0.1:{port}", "--source", f"redis://127.0.0.1:{source.port}",
                   "--target", f"redis://127.0.0.1:{target.port}",
                   "--database", f"sqlite://{self.directory}/sessions.db?mode=rwc",
                   "--data-dir", str(self.directory / "data"), "--admin", f"127.0.0.1:{admin}"]
        environment = dict(os.environ, SESSIONFERRY_SECRET_KEY="bench-" * 10)
        endpoint = self._start("sessionferry", command, port, env=environment)
        endpoint.admin = admin
        return endpoint
