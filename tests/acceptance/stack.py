"""Punctual as its operators run it: the processes of the Procfile, against real stores."""

import os
import re
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from celery import Celery
from kombu import Connection
from nodes import Container, Worker, WorkerContainer
from pytest_celery import CeleryTestNode
from stores import ROOT, poll

from app import exporter
from deploy.processes import free_port

KEY = "punctual-test-key"
ENDED = {"succeeded", "failed", "cancelled", "skipped"}


def procfile():
    """The command of each process type."""
    lines = (ROOT / "Procfile").read_text().splitlines()
    return dict(re.match(r"(\w+): (.+)", line).groups() for line in lines if line.strip())


def parse(moment):
    return datetime.fromisoformat(moment)


def at(seconds):
    """The instant in `seconds` from now, as JSON."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


class Stack:
    """Nodes on one database, one Redis and one broker, and a client of their API."""

    def __init__(self, stores, engine):
        self.port = free_port()
        self.metrics_port = free_port() - exporter.PORTS  # with room for so many from there on
        self.engine = engine
        self.env = (
            {name: value for name, value in os.environ.items() if not name.startswith("PUNCTUAL_")}
            | stores
            | {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "HOST": "127.0.0.1",
                "PORT": str(self.port),
                "PUNCTUAL_METRICS_PORT": str(self.metrics_port),
                "SECRET_KEY": "a key for tests only",
                "PUNCTUAL_ADMIN_KEY": KEY,
                "PUNCTUAL_HTTP_ALLOW_PRIVATE": "on",
                "PUNCTUAL_RATE_PER_KEY": "0",
                "PUNCTUAL_RATE_PER_ADDRESS": "0",
                "LOG_FORMAT": "console",
            }
        )
        self.nodes = {}
        self.app = Celery(broker=self.env["BROKER_URL"], set_as_current=False)
        if not self.env["BROKER_URL"].startswith("amqp"):
            self.app.conf.broker_transport_options = {"global_keyprefix": "punctual:broker:"}
        self.api = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}/api/v1", headers={"Authorization": f"Bearer {KEY}"}, timeout=10
        )

    def start(self, name, number=1, options="", **env):
        """Starts a process of the Procfile as a node, in the place of the one that had this name and number."""
        if (name, number) in self.nodes:
            self.nodes[name, number].teardown()
        command = ["bash", "-c", f"exec {procfile()[name].removeprefix('exec ')} {options}"]
        started = self.engine.python(f"{name}.{number}", command, self.env | env)
        is_worker = name == "worker"
        node = Worker(WorkerContainer(started), self.app) if is_worker else CeleryTestNode(Container(started))
        self.nodes[name, number] = node
        return node

    def start_all(self, beats=2):
        self.start("web")
        for number in range(1, beats + 1):
            self.start("beat", number)
        self.start("worker")
        self.wait_ready()

    def wait_ready(self):
        poll(self._is_ready, within=60, every=0.2)

    def _is_ready(self):
        try:
            if httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5).status_code != httpx.codes.OK:
                return False
            return any(target["name"] == "debug.echo" for target in self.api.get("/targets").json()["items"])
        except httpx.TransportError:
            return False

    def stop(self, name, number=1, sig=signal.SIGTERM, within=20):
        """Ends a node by a signal and waits for it; returns its exit code."""
        node = self.nodes[name, number]
        node.kill(sig)
        return node.container.wait(within)

    def stop_all(self):
        for node in self.nodes.values():
            node.kill(signal.SIGTERM)
        for name, number in self.nodes:
            self.stop(name, number)

    def close(self):
        """Removes the nodes, also those that did not stop."""
        for node in self.nodes.values():
            node.teardown()
        self.api.close()
        self.app.close()

    def tail(self, name, number=1, lines=30):
        return self.nodes[name, number].container.tail(lines)

    def depth(self, queue="default"):
        """How many messages of a queue no worker has taken."""
        is_amqp = self.env["BROKER_URL"].startswith("amqp")
        options = {} if is_amqp else {"global_keyprefix": "punctual:broker:", "priority_steps": [0, 5]}
        with Connection(self.env["BROKER_URL"], transport_options=options) as connection:
            to = connection.default_channel
            return to.queue_declare(queue, passive=True).message_count if is_amqp else to._size(queue)

    def control(self, command, timeout=10, **arguments):
        """What the one worker answers to `celery control COMMAND` or `celery inspect COMMAND`."""
        [answer] = self.app.control.broadcast(command, arguments=arguments, reply=True, timeout=timeout, limit=1)
        return next(iter(answer.values()))

    def create(self, **fields):
        """Registers a task; `debug.echo` where no target is named."""
        answer = self.api.post("/tasks", json={"target": "debug.echo"} | fields)
        assert answer.status_code == httpx.codes.CREATED, answer.text
        return answer.json()

    def runs(self, task, **query):
        """All runs of a task, the oldest slot first."""
        items, after = [], None
        while True:
            page = self.api.get(
                f"/tasks/{task['id']}/runs", params={"limit": 200} | query | ({"after": after} if after else {})
            )
            assert page.status_code == httpx.codes.OK, page.text
            items += page.json()["items"]
            after = page.json()["next"]
            if not after:
                return items[::-1]

    def ended(self, task, count=1, within=15.0):
        """Waits until a task has `count` runs and all have ended; returns them."""

        def look():
            found = self.runs(task)
            return found if len(found) >= count and all(run["state"] in ENDED for run in found) else None

        return poll(look, within, every=0.1)
