"""Faults between the containers of docker-compose.yml, through the engine's socket.

Usage: faults.py "SECONDS FAULT SERVICE [FOR]; …", as in "20 pause new-redis 10; 45 disconnect new-redis 10; 90 kill new-redis".
SECONDS count from the start. `pause` and `disconnect` last for FOR seconds; what was killed is started again.
Only containers of the project that this one belongs to are touched.
"""
import http.client
import json
import socket
import sys
import time
from urllib.parse import quote

SOCKET = "/var/run/docker.sock"
LABEL = "com.docker.compose."


class Engine(http.client.HTTPConnection):
    """Docker's own API, over its socket."""

    def __init__(self):
        super().__init__("docker", timeout=60)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(SOCKET)

    def ask(self, method, path, body=None):
        self.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"})
        response = self.getresponse()
        text = response.read()
        if response.status >= 400:
            raise SystemExit(f"{method} {path}: {response.status} {text.decode()[:200]}")
        return json.loads(text) if text else None

    def containers(self, **labels):
        wanted = [LABEL + name.replace("_", ".") + "=" + value for name, value in labels.items()]
        return self.ask("GET", "/containers/json?filters=" + quote(json.dumps({"label": wanted})))


def one(engine, project, service):
    found = engine.containers(project=project, service=service)
    if not found:
        raise SystemExit(f"there is no container of the service {service}")
    return found[0]


def harm(engine, project, fault, service, seconds):
    container = one(engine, project, service)
    name = "/containers/" + container["Id"]
    if fault == "pause":
        engine.ask("POST", name + "/pause")
        time.sleep(seconds)
        engine.ask("POST", name + "/unpause")
    elif fault == "kill":
        engine.ask("POST", name + "/kill")
        time.sleep(seconds)
        engine.ask("POST", name + "/start")
    elif fault == "disconnect":
        for network in container["NetworkSettings"]["Networks"]:
            engine.ask("POST", f"/networks/{network}/disconnect", {"Container": container["Id"], "Force": True})
        time.sleep(seconds)
        for network in container["NetworkSettings"]["Networks"]:
            aliases = {"Container": container["Id"], "EndpointConfig": {"Aliases": [service]}}
            engine.ask("POST", f"/networks/{network}/connect", aliases)
    else:
        raise SystemExit(f"unknown fault {fault}: pause, kill or disconnect")


def main(plan):
    engine = Engine()
    me = engine.ask("GET", f"/containers/{socket.gethostname()}/json")
    project = me["Config"]["Labels"][LABEL + "project"]
    began = time.monotonic()
    for step in filter(None, (step.split() for step in plan.split(";"))):
        at, fault, service = float(step[0]), step[1], step[2]
        seconds = float(step[3]) if len(step) > 3 else 1.0
        time.sleep(max(0.0, began + at - time.monotonic()))
        print(f"{fault} {service} for {seconds:.0f} s", flush=True)
        harm(engine, project, fault, service, seconds)
        print(f"{service} is back", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
