"""Stores of the drill's own: killed, stopped, paused, and started again on the same port and data.

Never the machine's: each is a process that was started here, on a free port and a folder of its own.
"""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import amqp
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import make_url

from deploy import embedded, postgresql, processes
from deploy.processes import Program

RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""Debian's own script, below the one that changes the user."""

START_WITHIN = 90.0
DATABASE = "punctual_drill"
"""The fail points ask for a database with this word in its name."""

REDIS_SETTINGS = """\
bind 127.0.0.1
port {port}
save ""
appendonly {keeps}
maxmemory-policy noeviction
repl-diskless-sync-delay 0
"""
RABBITMQ_SETTINGS = """\
listeners.tcp.local = 127.0.0.1:{port}
raft.wal_max_size_bytes = 33554432
"""


class Store:
    """One server: a program, and how to see that it answers."""

    def __init__(self, program: Program, is_ready: Callable[[], bool], crash: signal.Signals = signal.SIGKILL) -> None:
        self.program = replace(program, stop_signal=crash)
        self.is_ready = is_ready
        self._keeper: processes.Keeper | None = None
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        return self.program.name

    def start(self) -> None:
        """Starts it, and returns when it answers. Raises StartError."""
        with self._lock:
            self._keeper = processes.Keeper(self.program, lambda *_: None)
            self._keeper.start()
            processes.wait_until(self.is_ready, [self._keeper], within=START_WITHIN, what=self.name)

    def kill(self) -> None:
        """Ends it as a power cut would, and returns when it is gone."""
        with self._lock:
            keeper, self._keeper = self._keeper, None
        if keeper is not None:
            processes.stop([keeper])

    @contextmanager
    def gone(self) -> Iterator[None]:
        """It is away within, and answers again after."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It is stopped within: its port takes connections and nobody answers."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._keeper is not None and self._keeper.pid is not None:
            os.killpg(self._keeper.pid, number)


@contextmanager
def database(folder: Path) -> Iterator[tuple[Store, str]]:
    """PostgreSQL with an empty database. Yields its URL too."""
    with postgresql.prepared(folder) as server:
        store = crashing(server)
        with running(store):
            make_database(server)
            yield store, make_url(server.url).set(database=DATABASE).render_as_string(hide_password=False)


def crashing(server: postgresql.Server) -> Store:
    """A PostgreSQL whose crash is an immediate stop."""
    return Store(server.program, server.is_ready, signal.SIGQUIT)


def make_database(server: postgresql.Server) -> None:
    """Makes the drill's database."""
    import psycopg  # noqa: PLC0415

    admin = make_url(server.url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {DATABASE}")


@dataclass(kw_only=True)
class Redis:
    """A Redis server on a folder of its own."""

    folder: Path
    port: int
    store: Store

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=3, retry=Retry(NoBackoff(), 0), decode_responses=True)

    def empty(self) -> None:
        """Removes everything that it holds."""
        with self.client() as client:
            client.flushall()

    @contextmanager
    def gone(self, *, comes_back_empty: bool) -> Iterator[None]:
        self.store.kill()
        if comes_back_empty:
            for kept in self.folder.glob("*.aof"):
                kept.unlink()
        try:
            yield
        finally:
            self.store.start()


@contextmanager
def redis_server(folder: Path, name: str = "redis", *, keeps: bool = True, of: int | None = None) -> Iterator[Redis]:
    """A Redis server that keeps its data over a crash, or not; `of` is the port of the master that it follows."""
    made = _redis(folder, name, keeps=keeps, of=of)
    with running(made.store):
        yield made


def _redis(folder: Path, name: str, *, keeps: bool, of: int | None) -> Redis:
    port = processes.free_port()
    home = folder / name
    home.mkdir()
    text = REDIS_SETTINGS.format(port=port, keeps="yes" if keeps else "no")
    text += f"replicaof 127.0.0.1 {of}\n" if of else ""
    (home / "redis.conf").write_text(text, encoding="ascii")
    program = redis_program(name, home, "redis.conf")
    return Redis(folder=home, port=port, store=Store(program, lambda: answers(port)))


def redis_program(name: str, home: Path, *words: str) -> Program:
    return Program(
        name=name,
        argv=[str(embedded.redis_server()), *words],
        cwd=home,
        env={"PATH": os.defpath, processes.MARK: str(home.parent)},
        log=home.with_name(f"{name}.log"),
    )


def answers(port: int) -> bool:
    try:
        with redis.Redis(port=port, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


@contextmanager
def rabbitmq(folder: Path) -> Iterator[tuple[Store, str]]:
    """A RabbitMQ node of the drill's own. Yields its URL too."""
    port, mapper = processes.free_port(), processes.free_port()
    epmd, node = rabbitmq_programs(folder / "rabbitmq", port, mapper)
    with running(Store(epmd, lambda: listens(mapper))):
        store = Store(node, lambda: carries(port))
        with running(store):
            yield store, f"amqp://guest:guest@127.0.0.1:{port}//"


def rabbitmq_programs(
    home: Path, port: int, mapper: int, *, name: str = "RabbitMQ", settings: str = ""
) -> tuple[Program, Program]:
    """A RabbitMQ node with a name and ports of its own, and the port mapper that it needs before. Nodes whose homes lie
    in one folder have one cookie, and may be a cluster."""
    home.mkdir()
    text = RABBITMQ_SETTINGS.format(port=port) + settings
    (home / "rabbitmq.conf").write_text(text, encoding="ascii")
    (home / "enabled_plugins").write_text("[].\n", encoding="ascii")
    (home / "env.conf").touch()
    folder = home.parent
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "HOME": str(folder),  # where Erlang keeps the cookie
        "RABBITMQ_NODENAME": node_name(port),
        "RABBITMQ_MNESIA_BASE": str(home / "data"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "none.config"),
        "RABBITMQ_CONF_ENV_FILE": str(home / "env.conf"),  # not the machine's own
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
        "RABBITMQ_DIST_PORT": str(processes.free_port()),
        "ERL_EPMD_PORT": str(mapper),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_FLAGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        processes.MARK: str(folder),
    }
    # a node that finds no port mapper starts one that would outlive it
    epmd = Program(
        name="epmd",
        argv=["epmd", "-address", "127.0.0.1", "-port", str(mapper)],
        cwd=home,
        env=env,
        log=folder / "epmd.log",
    )
    node = Program(name=name, argv=[str(RABBITMQ)], cwd=home, env=env, log=folder / f"{name.lower()}.log")
    return epmd, node


def node_name(port: int) -> str:
    return f"drill-{port}@localhost"


def has_rabbitmq() -> bool:
    return RABBITMQ.exists() and shutil.which("epmd") is not None


def listens(port: int) -> bool:
    import socket  # noqa: PLC0415

    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def carries(port: int) -> bool:
    """Whether a RabbitMQ on this port of this machine opens a channel."""
    with suppress(OSError, amqp.AMQPError):
        with amqp.Connection(host=f"127.0.0.1:{port}", connect_timeout=3, read_timeout=3) as connection:
            connection.channel()
        return True
    return False


@contextmanager
def running(store: Store) -> Iterator[None]:
    try:
        store.start()
        yield
    finally:
        store.kill()


def poll(look: Callable[[], object], *, within: float, what: str) -> None:
    """Waits until a look is true. Raises StartError at the deadline."""
    end = time.monotonic() + within
    while not look():
        if time.monotonic() > end:
            raise processes.StartError(f"{what} did not come within {within:.0f} s")
        time.sleep(processes.POLL)
