"""How each fault of the drill is committed, and how it is healed.

A strike is a context manager: it breaks something when it is entered and has healed it when it is left. Two that
touch nothing in common can be entered at once.
"""

import random
import signal
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import amqp
import psycopg

from beat import entries
from deploy import processes
from drill import links, stack, stores
from drill.cluster import Cluster
from drill.sentinels import Watched
from drill.stack import BUCKETS, FAIL_POINT, KINDS, Process, Stack
from drill.standby import Pair
from drill.stores import Redis
from drill.workload import Workload

QUEUE = "default"
BACKLOG = 1000
BACKLOG_AHEAD = 6.0
"""Seconds from the registration of a backlog to its slot."""

UP = {"beat": "beat: Starting...", "worker": " ready."}
"""What each says when it is up."""

BESIDE = 15.0
"""Seconds for which two releases work side by side."""

DRAIN = 2.0
"""Seconds in which what was asked of a web before is answered."""

PASSED_WITHIN = 60.0
"""Seconds in which an armed process must have passed its fail point."""


@dataclass(kw_only=True)
class Site:
    """What a strike may reach."""

    stack: Stack
    workload: Workload
    random: random.Random

    def leader(self) -> Process:
        """The beat that holds most buckets; they share them evenly, so mostly either is one."""
        beats = self.stack.of("beat")
        return max(self.random.sample(beats, len(beats)), key=self.stack.buckets)


Strike = Callable[[Site], AbstractContextManager[None]]


# beats


@contextmanager
def leader_killed(site: Site) -> Iterator[None]:
    leader = site.leader()
    before = leader.pid
    leader.signal(signal.SIGKILL)
    yield
    stores.poll(lambda: leader.pid != before, within=PASSED_WITHIN, what="a new beat")


@contextmanager
def leader_paused(site: Site) -> Iterator[None]:
    with site.leader().paused():
        yield


def beats_gone(*, but: int) -> Strike:
    """All beats but `but` are killed, and no supervisor starts them again."""

    @contextmanager
    def strike(site: Site) -> Iterator[None]:
        beats = site.random.sample(site.stack.of("beat"), len(site.stack.of("beat")) - but)
        with ExitStack() as away:
            for beat in beats:
                away.enter_context(beat.gone())
            yield

    return strike


# upgrades


@contextmanager
def each_replaced(site: Site) -> Iterator[None]:
    """As an upgrade does it: another process is up before one is told to stop, and goes when that is back."""
    for kind in KINDS:
        for process in site.stack.of(kind):
            with _beside(site, kind) as spare:
                _renew(site, process, spare)
    yield


@contextmanager
def release_replaced(site: Site) -> Iterator[None]:
    """The previous release's processes go on with the new schema, then beside new ones of each kind, and are replaced
    one by one."""
    site.stack.migrate()
    time.sleep(BESIDE)
    with ExitStack() as beside:
        spares = {kind: beside.enter_context(_beside(site, kind)) for kind in KINDS}
        time.sleep(BESIDE)
        for process in tuple(site.stack.processes.values()):
            _renew(site, process, spares[process.kind])
    site.stack.previous = False
    yield


@contextmanager
def _beside(site: Site, kind: str) -> Iterator[Process]:
    """One more process of a kind, up. A web is what the load asks meanwhile."""
    is_web = kind == "web"
    own = {"PORT": str(processes.free_port())} if is_web else site.stack.own(f"{kind}.spare")
    with site.stack.spare(kind, **own) as spare:
        _wait_up(site, spare)
        if not is_web:
            yield spare
            return
        site.workload.ask(stack.api(_port(spare)))
        try:
            yield spare
        finally:
            site.workload.ask(site.stack.api)
            time.sleep(DRAIN)


def _renew(site: Site, process: Process, spare: Process) -> None:
    """Replaces a process of the stack, beside one that is up. Whoever asks a web is led there before it is stopped."""
    is_web = process.kind == "web"
    if is_web:
        site.stack.port = _port(spare)
        time.sleep(DRAIN)
    _wait_up(site, site.stack.renew(process.name))
    if is_web:
        site.stack.port = _port(process)


def _wait_up(site: Site, process: Process) -> None:
    stores.poll(lambda: is_up(site.stack, process), within=PASSED_WITHIN, what=process.name)


def is_up(of: Stack, process: Process) -> bool:
    """Whether a web answers; whether a beat has ticked, or a worker takes messages, by what it logged since it was
    started last."""
    if process.kind == "web":
        return of.answers(_port(process))
    return any(UP[process.kind] in line for line in process.lines())


def _port(web: Process) -> int:
    return int(web.env["PORT"])


# fail points


def beat_fails(point: str, pause: float) -> Strike:
    @contextmanager
    def strike(site: Site) -> Iterator[None]:
        beat = site.random.choice(site.stack.of("beat"))
        beat.restart(**{FAIL_POINT: _fail_point(point, site.random.randint(1, 20), pause)})
        armed = beat.pid
        yield
        _wait_passed(beat, point, pause)
        if not pause:
            stores.poll(lambda: beat.pid != armed, within=PASSED_WITHIN, what="a new beat")

    return strike


def worker_fails(point: str, pause: float) -> Strike:
    """A second worker is armed, and stopped afterwards: the processes that it starts in place of dead ones are armed
    as well."""

    @contextmanager
    def strike(site: Site) -> Iterator[None]:
        fail_point = _fail_point(point, site.random.randint(5, 40), pause)
        with site.stack.spare("worker", **{FAIL_POINT: fail_point}) as worker:
            yield
            _wait_passed(worker, point, pause)

    return strike


def _fail_point(point: str, nth: int, pause: float) -> str:
    return f"{point}:{nth}:{f'pause={pause:g}' if pause else 'kill'}"


def _wait_passed(process: Process, point: str, pause: float) -> None:
    """Waits until the process has come to its fail point, of which its log tells, and slept there."""
    said = f"fail point {point}:"
    what = f"{process.name} at the fail point {point}"
    stores.poll(lambda: any(said in line for line in process.lines()), within=PASSED_WITHIN, what=what)
    time.sleep(pause)


# stores


@contextmanager
def redis_emptied(site: Site) -> Iterator[None]:
    assert isinstance(site.stack.redis, Redis)
    site.stack.redis.empty()
    yield


def redis_gone(*, comes_back_empty: bool) -> Strike:
    @contextmanager
    def strike(site: Site) -> Iterator[None]:
        assert isinstance(site.stack.redis, Redis)
        with site.stack.redis.gone(comes_back_empty=comes_back_empty):
            yield

    return strike


@contextmanager
def redis_fails_over(site: Site) -> Iterator[None]:
    assert isinstance(site.stack.redis, Watched)
    with site.stack.redis.failing_over():
        yield


@contextmanager
def redis_fails_over_at_a_lease(site: Site) -> Iterator[None]:
    """The master is killed within 50 ms of a lease being taken: before a replica heard of it, perhaps."""
    assert isinstance(site.stack.redis, Watched)
    leader = site.leader()
    with site.stack.redis.client() as client:
        locks = [entries.lock_key(bucket) for bucket in range(BUCKETS)]
        held = set(client.mget(locks))
        leader.signal(signal.SIGKILL)
        end = time.monotonic() + PASSED_WITHIN
        while set(client.mget(locks)) - {None} <= held:
            if time.monotonic() > end:
                raise processes.StartError("no lease was taken")
            time.sleep(0.005)
    with site.stack.redis.failing_over(at_once=True):
        yield


@contextmanager
def rabbitmq_gone(site: Site) -> Iterator[None]:
    assert isinstance(site.stack.rabbitmq, stores.Store)
    with site.stack.rabbitmq.gone():
        yield


@contextmanager
def rabbitmq_loses_a_node(site: Site) -> Iterator[None]:
    assert isinstance(site.stack.rabbitmq, Cluster)
    with site.stack.rabbitmq.without_one():
        yield


@contextmanager
def database_gone(site: Site) -> Iterator[None]:
    assert isinstance(site.stack.database, stores.Store)
    with site.stack.database.gone():
        yield


@contextmanager
def database_fails_over(site: Site) -> Iterator[None]:
    assert isinstance(site.stack.database, Pair)
    with site.stack.database.failing_over():
        yield


def queue_loses(deed: Callable[[amqp.Channel, str], object]) -> Strike:
    """The messages of a backlog are removed while the worker's link is silent, so that it takes none of them."""

    @contextmanager
    def strike(site: Site) -> Iterator[None]:
        at = datetime.now(UTC) + timedelta(seconds=BACKLOG_AHEAD)
        site.workload.burst(BACKLOG, at)
        _sleep_until(at - timedelta(seconds=0.3))
        with link("worker", "RabbitMQ", "silent")(site), site.stack.connect() as connection:
            channel = connection.channel()
            stores.poll(lambda: _queued(site.stack) >= BACKLOG * 9 // 10, within=10, what=f"a backlog of {BACKLOG}")
            deed(channel, QUEUE)
        yield

    return strike


def _queued(stack: Stack) -> int:
    """How many runs the broker has confirmed and nobody has claimed: runs, as one message may carry many."""
    url = stack.record_url.replace("postgresql+psycopg:", "postgresql:", 1)
    with psycopg.connect(url, connect_timeout=5) as connection:
        row = connection.execute("SELECT count(*) FROM runs WHERE state = 'queued'").fetchone()
    return int(row[0]) if row else 0


# links


def link(of: str, store: str, mode: str) -> Strike:
    """The links of a process, or of all of a kind, to a store."""
    return _broken([of], store, mode)


def every_link(store: str, mode: str) -> Strike:
    """All processes lose a store at once, though it lives."""
    return _broken(KINDS, store, mode)


def _broken(of: Collection[str], store: str, mode: str) -> Strike:
    @contextmanager
    def strike(site: Site) -> Iterator[None]:
        with ExitStack() as broken:
            for (name, to), each in site.stack.links.items():
                if to == store and not {name, name.partition(".")[0]}.isdisjoint(of):
                    broken.enter_context(links.MODES[mode](each))
            yield

    return strike


def _sleep_until(at: datetime) -> None:
    time.sleep(max(0.0, (at - datetime.now(UTC)).total_seconds()))
