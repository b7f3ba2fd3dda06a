"""A Redis that fails over: three servers, and three Sentinels that agree on which of them is the master."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import redis

from deploy import processes
from drill import stores

MASTER = "drill"
DOWN_AFTER_MS = 1500
SENTINEL_SETTINGS = """\
bind 127.0.0.1
port {port}
sentinel monitor {master} 127.0.0.1 {master_port} 2
sentinel down-after-milliseconds {master} {down_after}
sentinel failover-timeout {master} 5000
sentinel parallel-syncs {master} 2
"""


@dataclass(kw_only=True)
class Watched:
    """The servers, and the Sentinels' ports."""

    servers: list[stores.Redis]
    sentinels: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        return f"redis-sentinel://{hosts}/{MASTER}/0"

    def client(self) -> redis.Redis:
        return self.master().client()

    def master(self) -> stores.Redis:
        """The server that the Sentinels name."""
        with redis.Redis(port=self.sentinels[0], socket_timeout=3, decode_responses=True) as sentinel:
            _, port = sentinel.sentinel_get_master_addr_by_name(MASTER)
        return next(server for server in self.servers if server.port == int(port))

    @contextmanager
    def failing_over(self, *, at_once: bool = False) -> Iterator[None]:
        """The master is killed; within, another takes its place; after, the lost one is started again. Not before all
        replicas follow, but where it is to be `at_once`."""
        if not at_once:
            stores.poll(self.is_whole, within=60, what="the return of all replicas")
        lost = self.master()
        lost.store.kill()
        try:
            yield
        finally:
            try:
                stores.poll(lambda: self.master() is not lost, within=30, what="the failover")
            finally:
                lost.store.start()

    def is_whole(self) -> bool:
        """Whether both replicas follow the master, and every Sentinel knows them and the others."""
        with suppress(redis.RedisError):
            with self.master().client() as client:
                info = client.info("replication")
            if info["role"] != "master" or info["connected_slaves"] != len(self.servers) - 1:
                return False
            return all(self._sees_all(port) for port in self.sentinels)
        return False

    def _sees_all(self, port: int) -> bool:
        with redis.Redis(port=port, socket_timeout=3, decode_responses=True) as sentinel:
            seen = sentinel.sentinel_master(MASTER)
        return bool(seen["num-slaves"] == 2 and seen["num-other-sentinels"] == 2 and not seen["is_odown"])  # noqa: PLR2004


@contextmanager
def running(folder: Path) -> Iterator[Watched]:
    with ExitStack() as stack:
        master = stack.enter_context(stores.redis_server(folder, "redis.1"))
        made = Watched(servers=[master])
        for number in (2, 3):
            made.servers.append(stack.enter_context(stores.redis_server(folder, f"redis.{number}", of=master.port)))
        for number in (1, 2, 3):
            made.sentinels.append(stack.enter_context(_sentinel(folder, f"sentinel.{number}", master.port)))
        stores.poll(made.is_whole, within=30, what="the Sentinels' agreement")
        yield made


@contextmanager
def _sentinel(folder: Path, name: str, master_port: int) -> Iterator[int]:
    port = processes.free_port()
    home = folder / name
    home.mkdir()
    text = SENTINEL_SETTINGS.format(port=port, master=MASTER, master_port=master_port, down_after=DOWN_AFTER_MS)
    (home / "sentinel.conf").write_text(text, encoding="ascii")
    store = stores.Store(stores.redis_program(name, home, "sentinel.conf", "--sentinel"), lambda: stores.answers(port))
    with stores.running(store):
        yield port
