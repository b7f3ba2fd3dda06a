"""Every password of a process, and web's two keys, replaced as docs/operations.md says, under a load.

No slot is missed, no request refused, and nobody is turned away by a store.

PostgreSQL asks for passwords here, as the tests' own may not. Users and the virtual host go with the test.
"""

import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import timedelta
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import psycopg
import pytest
import redis
from amqp.exceptions import AccessRefused
from kombu import Connection
from sqlalchemy import make_url
from stack import ENDED, KEY, Stack, at, parse
from stores import BY_HAND, poll
from test_permissions import (  # noqa: F401 - two of them are fixtures
    PASSWORDS,
    PREFIX,
    brokers,
    connect,
    files,
    password,
    permit,
    redis_programs,
    refusals,
    run,
    serving,
)

from app import db
from deploy import embedded, postgresql, processes

pytestmark = [BY_HAND, pytest.mark.timeout(900)]
PROCESSES = ("web", "beat", "worker")
TASKS = 10
EVERY = {"overlap": "allow", "catchup": {"policy": "all"}, "schedule": {"type": "interval", "every": 1}}
CALLERS = 16
TURN = 0.5
"""Seconds from one call of all of them at once to the next: more than the connections that a web keeps open, so that it
opens and closes further ones all the time."""

NEW = {f"{name.upper()}_PASSWORD": f"new-{name}-{uuid4().hex}" for name in PROCESSES}
SECOND = {f"{name}_SECOND": value for name, value in NEW.items()}
NEW_KEY = uuid4().hex
NEW_SECRET = uuid4().hex
ASKS = "local all postgres trust\nlocal all all scram-sha-256\n"
TURNED_AWAY = re.compile(
    r"password authentication failed|not permitted to log in|WRONGPASS|login was refused", re.IGNORECASE
)


class Rotation:
    """A stack whose processes each have users of their own, the stores that ask them for passwords, and a load."""

    def __init__(self, permissions, urls, addresses, port, engine, folder):
        """`permissions` is where the three files are, `urls` what superusers get in by, `addresses` RabbitMQ's."""
        self.permissions, self.urls, self.addresses, self.port = permissions, urls, addresses, port
        self.folder = folder
        self.stack = Stack(os.environ | urls, engine)
        self.stack.ports = {1: self.stack.port, 2: processes.free_port()}
        self.given = {}
        self.said = []
        self.denied = []
        self.log = Path(make_url(urls["DATABASE_URL"]).query["host"]).with_name("postgresql.log")
        self.looked_at = 0

    def stores(self, name, second=""):
        """What a process is given, by its first or its second name and with the password of now."""
        user, secret = f"{PREFIX}{name}{second}", self.given.get(name, password(name))
        place = urlsplit(self.addresses[name])
        return {
            "DATABASE_URL": as_user(self.urls["DATABASE_URL"], user, secret),
            "REDIS_URL": f"redis://{PREFIX}{name}:{secret}@127.0.0.1:{self.port}/0",
            "BROKER_URL": place._replace(netloc=f"{user}:{secret}@{place.hostname}:{place.port}").geturl(),
        }

    def apply(self, **changed):
        """Applies the three files."""
        permit(self.permissions, self.urls["DATABASE_URL"], **changed)
        vhost = urlsplit(self.urls["BROKER_URL"]).path[1:]
        run("sh", f"{self.permissions}/rabbitmq.sh", **PASSWORDS | changed, VHOST=vhost, QUEUES="default")
        (self.folder / "users.acl").write_text(run("sh", f"{self.permissions}/redis.sh", **PASSWORDS | changed))
        self.superuser.execute_command("ACL", "LOAD")

    @cached_property
    def superuser(self):
        """A client of Redis."""
        return redis.Redis.from_url(self.urls["REDIS_URL"], decode_responses=True)

    def lets_in(self, stores):
        """At which of the stores one gets in by these addresses."""
        self.denied += self._denied()
        found = {name for name, knock in KNOCKS.items() if gets_in(knock, stores[name])}
        self.superuser.acl_log_reset()  # of what was asked here
        self.looked_at = self.log.stat().st_size
        return found

    def _denied(self):
        """Whom Redis and PostgreSQL have turned away, by their own words, since they were last asked to on purpose."""
        with self.log.open() as log:
            log.seek(self.looked_at)
            told = [line for line in log if TURNED_AWAY.search(line)]
        return told + refusals(self.stack, {"admin": self.urls})

    def start(self, name, number, second="", **env):
        health = self.folder / f"{name}.{number}.json"
        health.unlink(missing_ok=True)
        self.stack.start(
            name,
            number,
            **{"options": "--autoscale=6,2"} if name == "worker" else {},
            **self.stores(name, second) | env,
            PUNCTUAL_HEALTH_PATH=str(health),
            PORT=str(self.stack.ports.get(number, 0)),
        )
        ready = {
            "web": lambda: answers(f"http://127.0.0.1:{self.stack.ports[number]}/readyz"),
            "beat": health.exists,
            "worker": lambda: " ready." in self.stack.tail("worker", number, 10_000),
        }
        poll(ready[name], within=60, every=0.1)

    def stop(self, name, number):
        self.stack.stop(name, number, within=60)
        self.said.append(self.stack.tail(name, number, 100_000))

    def restart_all(self, second="", **env):
        """One process after the other; of workers the new one is there before the old one goes."""
        for name, number in (("web", 1), ("web", 2), ("beat", 1), ("beat", 2)):
            self.stop(name, number)
            self.start(name, number, second, **env)
        old = max(number for name, number in self.stack.nodes if name == "worker")
        self.start("worker", old + 1, second)
        self.stop("worker", old)
        del self.stack.nodes["worker", old]

    def turned_away(self):
        """What any store has refused to any process, of those that were stopped too."""
        logs = self.said + [self.stack.tail(*node, 100_000) for node in self.stack.nodes]
        told = [line for log in logs for line in log.splitlines() if TURNED_AWAY.search(line)]
        return told + self.denied + self._denied()


def as_user(url, user, secret):
    return make_url(url).set(username=user, password=secret).render_as_string(hide_password=False)


def knock_redis(url):
    with redis.Redis.from_url(url) as client:
        client.execute_command("SELECT", 0)


def knock_rabbitmq(url):
    with Connection(url) as connection:
        connection.connect()


def knock_postgresql(url):
    with connect(url):
        pass


KNOCKS = {"DATABASE_URL": knock_postgresql, "REDIS_URL": knock_redis, "BROKER_URL": knock_rabbitmq}


def gets_in(knock, url):
    try:
        knock(url)
    except (psycopg.OperationalError, redis.AuthenticationError, AccessRefused):
        return False
    return True


def answers(url):
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


class Callers:
    """Clients that ask the other web where one is gone, as a gateway does, and keep what failed nevertheless."""

    def __init__(self, ports):
        self.bases = [f"http://127.0.0.1:{port}" for port in ports]
        self.key = KEY
        self.failed = []
        self.slow = []
        self.answered = 0
        self.done = threading.Event()
        self.threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CALLERS)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        for thread in self.threads:
            thread.join(30)

    def _ask(self, number):
        with httpx.Client(timeout=75) as client:  # for which a gateway waits
            if number == 0:
                sign_in(client, self.bases[0])
            while not self.done.wait(TURN - time.time() % TURN):
                if number == 0:
                    self._try(client, "GET", "/tasks")
                elif number % 2:
                    self._try(client, "GET", "/api/v1/tasks?limit=5")
                else:
                    body = {"name": f"rotated-{uuid4().hex}", "target": "debug.echo", "schedule": {"type": "now"}}
                    self._try(client, "POST", "/api/v1/tasks", json=body, headers={"Idempotency-Key": uuid4().hex})

    def _try(self, client, method, path, headers=None, **more):
        said, began = "", time.monotonic()
        for base in self.bases:
            try:
                given = {"Authorization": f"Bearer {self.key}"} | (headers or {}) if "api" in path else {}
                answer = client.request(method, f"{base}{path}", headers=given, **more)
            except httpx.TransportError as exc:
                said = repr(exc)
                continue
            self.answered += 1
            if not answer.is_success:
                took = time.monotonic() - began
                # a login that is refused is refused at once: what took longer waited for the machine
                slow = answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and took >= db.CONNECT_TIMEOUT
                (self.slow if slow else self.failed).append(
                    (answer.status_code, took, f"{method} {path} {answer.text}")
                )
            return
        self.failed.append((0, time.monotonic() - began, f"{method} {path} {said}"))


def sign_in(client, base):
    token = re.search(r'name="csrf_token" value="([^"]+)"', client.get(f"{base}/sign-in").text)[1]
    answer = client.post(f"{base}/sign-in", data={"csrf_token": token, "key": KEY})
    assert answer.status_code == httpx.codes.SEE_OTHER


@pytest.fixture
def database(files):  # noqa: F811 - the fixture above
    """The URL of a migrated database of a server of its own, as its superuser; all others need their password."""
    with embedded.temporary() as data, processes.hold(data), postgresql.running(data) as url:
        (data / postgresql.FOLDER / "pg_hba.conf").write_text(ASKS)
        with connect(url) as server:
            server.execute("SELECT pg_reload_conf()")
        permit(files, url)
        owner = as_user(url, f"{PREFIX}owner", PASSWORDS["OWNER_PASSWORD"])
        run(sys.executable, "-m", "alembic", "upgrade", "head", DATABASE_URL=owner)
        permit(files, url)
        yield url


@pytest.fixture
def rotation(database, brokers, files, engine, tmp_path):  # noqa: F811 - the fixtures above
    program = redis_programs()["own"] or redis_programs()["6.2"]
    with serving(program, files, tmp_path) as port:
        superusers = f"redis://punctual:{PASSWORDS['REDIS_PASSWORD']}@127.0.0.1:{port}/0"
        urls = {"DATABASE_URL": database, "REDIS_URL": superusers, "BROKER_URL": brokers["admin"]}
        made = Rotation(files, urls, brokers, port, engine, tmp_path)
        try:
            made.apply()  # RabbitMQ is all tests': the last one replaced the passwords there
            for name, number in (("web", 1), ("web", 2), ("beat", 1), ("beat", 2), ("worker", 1)):
                made.start(name, number)
            made.stack.wait_ready()
            yield made
            made.stack.stop_all()
        finally:
            made.stack.close()
            for name in PROCESSES:  # those of a test that failed
                subprocess.run(
                    ["rabbitmqctl", "--quiet", "delete_user", f"{PREFIX}{name}_second"],
                    capture_output=True,
                    check=False,
                )


def test_every_password_and_key_is_replaced_and_nobody_notices(rotation):
    stack = rotation.stack
    tasks = [stack.create(**EVERY) for _ in range(TASKS)]
    secret_key = stack.env["SECRET_KEY"]
    with Callers(stack.ports.values()) as callers:
        poll(lambda: callers.answered > 100, within=60)
        rotation.apply(**SECOND)
        old = {name: rotation.stores(name) for name in PROCESSES}
        rotation.given = {name: NEW[f"{name.upper()}_PASSWORD"] for name in PROCESSES}
        second = {name: rotation.stores(name, "_second") for name in PROCESSES}
        rotation.restart_all("_second", SECRET_KEY_SECOND=NEW_SECRET, PUNCTUAL_ADMIN_KEY_SECOND=NEW_KEY)
        callers.key = NEW_KEY
        rotation.apply(**SECOND | NEW)
        assert [name for name in PROCESSES if rotation.lets_in(old[name])] == []
        renewed = {"SECRET_KEY": NEW_SECRET, "SECRET_KEY_SECOND": secret_key}
        renewed |= {"PUNCTUAL_ADMIN_KEY": NEW_KEY, "PUNCTUAL_ADMIN_KEY_SECOND": KEY}
        rotation.restart_all(**renewed)
        rotation.apply(**NEW)
        assert [name for name in PROCESSES if rotation.lets_in(second[name]) != {"REDIS_URL"}] == []
        last = at(0)
        poll(lambda: stack.api.get("/runs", params={"since": last, "state": "succeeded"}).json()["items"], within=20)
    assert callers.failed == []
    assert rotation.turned_away() == []
    slots, late = account(stack, tasks)
    told = f"{callers.answered} requests answered, none refused, {len(callers.slow)} too slow"
    print(f"\n{slots} slots, the latest {late:.0f} ms late; {told}")
    assert late < 10_000


def test_without_second_names_requests_are_refused_in_between_and_no_slot_is_lost(rotation):
    stack = rotation.stack
    tasks = [stack.create(**EVERY) for _ in range(TASKS)]
    with Callers(stack.ports.values()) as callers:
        poll(lambda: callers.answered > 100, within=60)
        rotation.apply(**NEW)
        rotation.given = {name: NEW[f"{name.upper()}_PASSWORD"] for name in PROCESSES}
        rotation.restart_all()
    refused = Counter(status for status, *_ in callers.failed)
    slots, late = account(stack, tasks)
    assert refused.keys() <= {503}
    print(f"\n{slots} slots, the latest {late:.0f} ms late; {callers.answered} requests answered, {dict(refused)}")


def account(stack, tasks):
    """How many slots the tasks had, and how many milliseconds late the latest one started. Each was recorded once."""
    for task in tasks:
        assert stack.api.post(f"/tasks/{task['id']}/pause").is_success
    late, slots = [], Counter()
    for task in tasks:
        runs = poll(lambda task=task: ended(stack.runs(task)), within=20, every=0.2)
        moments = [parse(run["scheduled_for"]) for run in runs]
        assert {after - before for before, after in pairwise(moments)} == {timedelta(seconds=1)}
        assert {run["state"] for run in runs} == {"succeeded"}
        late += [run["lateness_ms"] for run in runs]
        slots.update((task["id"], moment) for moment in moments)
    assert set(slots.values()) == {1}
    return len(slots), max(late)


def ended(runs):
    return runs if all(run["state"] in ENDED for run in runs) else None
