"""Punctual as its operators run it, on stores of the drill's own: the Procfile's processes, supervised.

Each process reaches each store over a link of its own.
"""

import json
import os
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import amqp
import httpx

from app.settings import Settings
from beat import entries
from deploy import embedded, processes, server
from deploy.processes import StartError
from drill import cluster, links, releases, sentinels, standby, stores
from drill.links import Link

ROOT = Path(__file__).parent.parent
KINDS = ("web", "beat", "worker")
BEATS = 2
STORES = ("PostgreSQL", "Redis", "RabbitMQ")
URLS = {"PostgreSQL": "DATABASE_URL", "Redis": "REDIS_URL", "RabbitMQ": "BROKER_URL"}
OPTIONS = {"worker": " --concurrency=2"}

BUCKETS: int = Settings.model_fields["PUNCTUAL_BUCKETS"].default

FAIL_POINT = "PUNCTUAL_FAIL_POINT"
HEALTH_PATH = "PUNCTUAL_HEALTH_PATH"
HEALTHY = timedelta(seconds=3)
READY_WITHIN = 90.0
BACK_WITHIN = 30.0
STOP_WITHIN = 15.0


class Process:
    """One process of the stack, and its keeper, which starts it again whenever it ends."""

    def __init__(self, name: str, env: Mapping[str, str], logs: Path, root: Path = ROOT) -> None:
        self.name = name
        self.env = dict(env)
        self.ends = 0
        """How often it ended, whether it was told to or not."""
        self.log = logs / f"{name}.log"
        line = _lines(root)[self.kind] + OPTIONS.get(self.kind, "")
        # the environment is read anew at each start
        program = processes.Program(name=name, argv=server.shell(line), cwd=root, env=self.env, log=self.log)
        self.keeper = processes.Keeper(program, self._note)
        self._log_from = 0

    @property
    def kind(self) -> str:
        return self.name.partition(".")[0]

    @property
    def pid(self) -> int:
        assert self.keeper.pid is not None
        return self.keeper.pid

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process and its children."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """As a power cut; returns when its successor runs."""
        before = self.pid
        self.signal(signal.SIGKILL)
        self._wait_successor(before)

    def restart(self, **env: str) -> None:
        """A clean stop and a start, this once with `env` on top."""
        before = self.pid
        self._note_log()
        self.env.update(env)
        os.kill(before, signal.SIGTERM)  # to the process alone: a worker's children must be able to end their runs
        try:
            self._wait_successor(before)
        finally:
            for name in env:
                del self.env[name]

    @contextmanager
    def gone(self) -> Iterator[None]:
        """Killed, and started again only at the end."""
        self.signal(signal.SIGSTOP)  # so that it cannot stop cleanly in between
        self.keeper.ask()
        self.signal(signal.SIGKILL)
        self.keeper.finish(STOP_WITHIN)
        try:
            yield
        finally:
            self.start()

    def start(self) -> None:
        self.keeper = processes.Keeper(self.keeper.program, self._note)
        self.keeper.start()
        self._note_log()

    def lines(self) -> list[str]:
        """What was logged since the last start or restart that was asked for."""
        return self.log.read_bytes()[self._log_from :].decode(errors="replace").splitlines()

    @contextmanager
    def paused(self) -> Iterator[None]:
        pid = self.pid
        os.killpg(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(pid, signal.SIGCONT)

    def _wait_successor(self, before: int) -> None:
        stores.poll(lambda: self.pid != before, within=STOP_WITHIN + BACK_WITHIN, what=f"a new {self.name}")

    def _note_log(self) -> None:
        self._log_from = self.log.stat().st_size if self.log.exists() else 0

    def _note(self, _name: str, _line: str) -> None:
        self.ends += 1


@dataclass(kw_only=True)
class Stack:
    """What a fault may break: stores, links and processes."""

    folder: Path
    database: stores.Store | standby.Pair
    database_url: str
    redis: stores.Redis | sentinels.Watched
    rabbitmq: stores.Store | cluster.Cluster | None
    """None where RabbitMQ is the machine's: it is reached over links, and never stopped."""
    broker_url: str
    links: dict[tuple[str, str], Link]
    processes: dict[str, Process] = field(default_factory=dict)
    port: int = 0
    """Of the web that is asked."""
    replicated: bool = False
    """Whether its stores fail over."""
    previous: bool = False
    """Whether its processes are the previous release's, and its schema."""
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @property
    def record_url(self) -> str:
        """Of the PostgreSQL that takes changes now."""
        return self.database.primary().url if isinstance(self.database, standby.Pair) else self.database_url

    @property
    def api(self) -> str:
        return api(self.port)

    def of(self, kind: str) -> list[Process]:
        return [process for process in self.processes.values() if process.kind == kind]

    def own(self, name: str) -> dict[str, str]:
        """What no two processes may share."""
        return {HEALTH_PATH: str(_health_file(self.folder, name))}

    @contextmanager
    def spare(self, kind: str, **env: str) -> Iterator[Process]:
        """One more process of a kind, of this release, within; whether it ends is not counted."""
        first = self.of(kind)[0]
        name = f"{kind}.{len(self.of(kind)) + 1}"
        process = Process(name, first.env | env, first.log.parent)
        process.start()
        try:
            yield process
        finally:
            processes.stop([process.keeper], patience=STOP_WITHIN)

    def renew(self, name: str) -> Process:
        """Has a process stop, and starts one of this release in its place."""
        old = self.processes[name]
        processes.stop([old.keeper], patience=STOP_WITHIN)
        new = self.processes[name] = Process(name, old.env, old.log.parent)
        new.ends = old.ends + 1
        new.start()
        return new

    def migrate(self) -> None:
        """Brings the schema to this release, whatever runs."""
        _migrate(self, ROOT)

    def ends(self) -> int:
        """How often any process ended."""
        return sum(process.ends for process in self.processes.values())

    def is_ready(self) -> bool:
        """Whether the stores answer over the links, a worker has told its targets, and every beat holds buckets."""
        return self.answers(self.port) and self._is_shared()

    def answers(self, port: int) -> bool:
        """Whether a web there reaches the stores."""
        site = server.Site(host="127.0.0.1", port=port, flower_port=0, admin_key=self.key, flower_login="")
        return server.is_ready(site)

    def _is_shared(self) -> bool:
        with self.redis.client() as client:
            holders = client.mget([entries.lock_key(bucket) for bucket in range(BUCKETS)])
        return None not in holders and len(set(holders)) == len(self.of("beat"))

    def wait_ready(self) -> None:
        stores.poll(self.is_ready, within=READY_WITHIN, what=f"the stack (its logs lie in {self.folder / 'logs'})")

    def connect(self) -> amqp.Connection:
        """A connection to the broker that no link breaks."""
        parts = httpx.URL(self.broker_url.replace("amqp://", "http://", 1))
        host = f"{parts.host}:{parts.port or links.USUAL_PORTS['amqp']}"
        return amqp.Connection(
            host=host,
            userid=parts.username,
            password=parts.password,
            virtual_host=parts.path[1:] or "/",
            connect_timeout=5,
            read_timeout=5,
        )

    def buckets(self, beat: Process) -> int:
        """How many buckets a beat said it holds, less than HEALTHY seconds ago; 0 where it does not say."""
        with suppress(OSError, ValueError, KeyError):
            told = json.loads(_health_file(self.folder, beat.name).read_text(encoding="utf-8"))
            if datetime.now(UTC) - datetime.fromisoformat(told["at"]) < HEALTHY:
                return len(told["buckets"])
        return 0

    def copy_logs(self, target: Path) -> None:
        """Keeps the logs of processes and stores, which go with the stack."""
        target.mkdir(parents=True, exist_ok=True)
        for log in (*self.folder.glob("*.log"), *(self.folder / "logs").glob("*.log")):
            shutil.copyfile(log, target / log.name)


@contextmanager
def running(*, replicated: bool = False, previous: bool = False) -> Iterator[Stack]:
    """A stack in a temporary folder, up and ready; all of it is ended and removed at the end. Raises StartError."""
    with embedded.temporary() as folder, processes.hold(folder), ExitStack() as exits:
        root = releases.extract(folder / "previous") if previous else ROOT
        stack = _stores(folder, exits) if not replicated else _replicated(folder, exits)
        stack.port, stack.previous = processes.free_port(), previous
        (folder / "logs").mkdir()
        _migrate(stack, root)
        counts = {"web": 1, "beat": BEATS, "worker": 1}
        for kind, count in counts.items():
            for number in range(1, count + 1):
                name = f"{kind}.{number}"
                env = _environment(stack, _direct(stack) | _linked(stack, name, _direct(stack)))
                own = stack.own(name) if kind == "beat" else {}
                stack.processes[name] = Process(name, env | own, folder / "logs", root)
        exits.callback(_stop, stack)
        for process in stack.processes.values():
            process.start()
        stack.wait_ready()
        yield stack


def _stop(stack: Stack) -> None:
    processes.stop([process.keeper for process in stack.processes.values()], patience=STOP_WITHIN)
    for link in stack.links.values():
        link.close()


def api(port: int) -> str:
    """The API of a web there."""
    return f"http://127.0.0.1:{port}/api/v1"


def _lines(root: Path) -> dict[str, str]:
    return server.read(root / "Procfile")


def _migrate(stack: Stack, root: Path) -> None:
    server.migrate(_lines(root)["release"] + " 2>/dev/null", _environment(stack, _direct(stack)), root)


def _direct(stack: Stack) -> dict[str, str]:
    """The stores' URLs over no link."""
    return {"DATABASE_URL": stack.database_url, "REDIS_URL": stack.redis.url, "BROKER_URL": stack.broker_url}


def _health_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _stores(folder: Path, exits: ExitStack) -> Stack:
    database, database_url = exits.enter_context(stores.database(folder))
    redis = exits.enter_context(stores.redis_server(folder))
    rabbitmq, broker_url = None, os.environ.get("BROKER_URL", "")
    if stores.has_rabbitmq():
        rabbitmq, broker_url = exits.enter_context(stores.rabbitmq(folder))
    elif not broker_url.startswith("amqp://"):
        raise StartError("no RabbitMQ: install rabbitmq-server, or set BROKER_URL to a virtual host of the drill's own")
    return Stack(
        folder=folder,
        database=database,
        database_url=database_url,
        redis=redis,
        rabbitmq=rabbitmq,
        broker_url=broker_url,
        links={},
    )


def _replicated(folder: Path, exits: ExitStack) -> Stack:
    """Stores of which each may lose a server: two of PostgreSQL, three of Redis, three of RabbitMQ."""
    pair = exits.enter_context(standby.running(folder))
    watched = exits.enter_context(sentinels.running(folder))
    nodes = exits.enter_context(cluster.running(folder))
    return Stack(
        folder=folder,
        database=pair,
        database_url=pair.url,
        redis=watched,
        rabbitmq=nodes,
        broker_url=nodes.url,
        links={},
        replicated=True,
    )


def _linked(stack: Stack, name: str, direct: Mapping[str, str]) -> dict[str, str]:
    """Makes the links of a process; returns the URLs that lead over them. To stores that name several servers
    there are none."""
    over: dict[str, str] = {}
    if stack.replicated:
        return over
    for store, setting in URLS.items():
        make = links.database if store == "PostgreSQL" else links.server
        stack.links[name, store], over[setting] = make(direct[setting])
    return over


def _environment(stack: Stack, urls: Mapping[str, str]) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PUNCTUAL_")} | dict(urls)
    return env | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        processes.MARK: str(stack.folder),
        "PYTHONUNBUFFERED": "1",
        "HOST": "127.0.0.1",
        "PORT": str(stack.port),
        "SECRET_KEY": "a key for the drill only",
        "PUNCTUAL_ADMIN_KEY": stack.key,
        "PUNCTUAL_HTTP_ALLOW_PRIVATE": "on",
        "PUNCTUAL_TASK_MODULES": "drill.targets",
        "LOG_FORMAT": "console",
    }


class Asker:
    """Asks the API twice a second, and counts its answers. A context manager."""

    def __init__(self, stack: Stack) -> None:
        self.answers: dict[str, int] = {}
        self._stack = stack
        self._client = httpx.Client(headers={"Authorization": f"Bearer {stack.key}"}, timeout=30, trust_env=False)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="asker", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._client.close()

    def _ask(self) -> None:
        while not self._stopping.wait(0.5):
            try:
                answer = self._client.get(f"{self._stack.api}/tasks", params={"limit": 1})
            except httpx.TransportError as exc:
                seen = type(exc).__name__
            else:
                seen = str(answer.status_code)
                if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and "Retry-After" not in answer.headers:
                    seen = "503 without Retry-After"
            self.answers[seen] = self.answers.get(seen, 0) + 1
