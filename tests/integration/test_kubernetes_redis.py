"""The scripts of deploy/kubernetes that start Redis behind Sentinels, on one host in place of three pods."""

import os
import subprocess
import time
from contextlib import ExitStack

import pytest
import redis
from stores import IN_CI, ROOT, poll

from app import bell, settings
from deploy import processes

SCRIPTS = ROOT / "deploy/kubernetes/base"


class Pods:
    """Three servers with a Sentinel each, as the StatefulSet has them; each may be killed and started again."""

    def __init__(self, folder):
        self.folder = folder
        self.ports = [processes.free_port() for _ in range(6)]
        self.running = {}
        (folder / "secrets").mkdir()
        for name in ("REDIS", "WEB", "BEAT", "WORKER", "REPLICATION"):
            (folder / f"secrets/{name}_PASSWORD").write_text(f"{name.lower()}-password")
        (folder / "second").mkdir()
        for name in ("WEB", "BEAT", "WORKER"):
            (folder / f"second/{name}_PASSWORD_SECOND").write_text("")

    @property
    def sentinels(self):
        return [f"localhost:{port}" for port in self.ports[3:]]

    def start(self, script, port):
        run = self.folder / str(port)
        run.mkdir(exist_ok=True)
        env = os.environ | {
            "DOMAIN": "",
            "HOSTNAME": "localhost",
            "FIRST": f"localhost:{self.ports[0]}",
            "SENTINELS": " ".join(self.sentinels),
            "SECRETS": str(self.folder / "secrets"),
            "SECOND": str(self.folder / "second"),
            "PERMISSIONS": str(ROOT / "deploy/permissions"),
            "RUN": str(run),
            "PORT": str(port),
        }
        with (run / "log").open("a") as log:
            self.running[port] = subprocess.Popen(["sh", SCRIPTS / script], env=env, stdout=log, stderr=log)

    def kill(self, port):
        process = self.running.pop(port)
        process.kill()
        process.wait()

    def role(self, port):
        """What a server says of itself, and how many replicas are in step with it."""
        client = redis.Redis(port=port, username="punctual", password="redis-password", decode_responses=True)
        try:
            said = client.info("replication")
        except redis.ConnectionError:
            return None
        states = [said[name]["state"] for name in said if name.startswith("slave") and isinstance(said[name], dict)]
        return said["role"], states.count("online")

    def knows(self, port):
        """Of a Sentinel the master's port, and how many others it has heard of."""
        try:
            (said,) = redis.Redis(port=port, decode_responses=True).sentinel_masters().values()
        except redis.ConnectionError:
            return None
        return said["port"], said["num-other-sentinels"], said["num-slaves"]


@pytest.fixture
def connect(monkeypatch):
    """A client of a web process, for an address of Redis."""

    def to(url):
        monkeypatch.setenv("REDIS_URL", url)
        settings.load.cache_clear()
        return bell.connect()

    yield to
    settings.load.cache_clear()


@pytest.fixture
def pods(tmp_path):
    made = Pods(tmp_path)
    with ExitStack() as stack:
        stack.callback(lambda: [made.kill(port) for port in list(made.running)])
        yield made


def test_redis_moves_to_a_replica_within_the_promise_and_whoever_comes_back_follows(pods, connect):
    first, *others = pods.ports[:3]
    for port in (first, *others):
        pods.start("redis-start.sh", port)
    poll(lambda: pods.role(first) == ("master", 2), within=60)  # a master waits for more replicas before it sends
    for port in pods.ports[3:]:
        pods.start("sentinel-start.sh", port)
    for port in pods.ports[3:]:
        poll(lambda port=port: pods.knows(port) == (first, 2, 2), within=60)

    client = connect(f"redis-sentinel://punctual_web:web-password@{','.join(pods.sentinels)}/punctual/0")
    assert client.ping()

    pods.kill(first)
    killed_at = time.monotonic()
    # a vote that is lost comes again 20 s later, and a busy machine loses one now and then
    poll(lambda: _answers(client), within=60 if IN_CI else 10)
    print(f"a replica took over within {time.monotonic() - killed_at:.1f} s")
    second = next(port for port in others if pods.role(port)[0] == "master")
    pods.start("redis-start.sh", first)
    poll(lambda: pods.role(first) == ("slave", 0), within=60)
    poll(lambda: pods.role(second) == ("master", 2), within=60)


def _answers(client):
    try:
        return client.ping()
    except redis.RedisError:
        return False


def test_a_stranger_learns_from_a_sentinel_who_the_master_is_and_changes_nothing(pods):
    pods.start("redis-start.sh", pods.ports[0])
    poll(lambda: pods.role(pods.ports[0]))
    pods.start("sentinel-start.sh", pods.ports[3])
    poll(lambda: pods.knows(pods.ports[3]))
    stranger = redis.Redis(port=pods.ports[3])
    for command in ("SENTINEL FAILOVER punctual", "SENTINEL REMOVE punctual", "SHUTDOWN", "ACL LIST"):
        with pytest.raises(redis.exceptions.NoPermissionError):
            stranger.execute_command(*command.split())
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=pods.ports[0], retry=None).ping()
