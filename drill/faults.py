"""What the drill breaks, how it is healed, and what must hold. One fault per row of its table.

A strike is a context manager: it breaks something when it is entered and has healed it when it is left. Two that
touch nothing in common can be entered at once.
"""

import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import amqp

from drill import links
from drill.stack import FAIL_POINT, KINDS, STORES, Process, Stack, poll
from drill.stores import Redis, Watched
from drill.workload import Workload

QUEUE = "default"
BACKLOG = 1000
BACKLOG_AHEAD = 6.0
"""Seconds from the registration of a backlog to its slot."""

BURST = 200
FAIL_PAUSE = 6.0
"""Seconds for which a fail point lets a process sleep: longer than a lease."""

PASSED_WITHIN = 60.0
"""Seconds in which an armed process must have passed its fail point."""

AWAY = 20.0
PAIR_HOLD = 10.0


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


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to commit a fault."""

    name: str
    strike: Strike
    touches: frozenset[str]
    """What it breaks; two faults at once must not break the same."""
    hold: float = 0.0
    """Seconds from the break to the heal, in the full campaign."""
    short: float = 0.0
    """The same, elsewhere."""
    waits: bool = False
    """Whether it heals by itself and is only waited for: of two at once, that one begins first."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What must hold, beside what always must: nothing lost, recorded twice, early or without a slot."""

    worst: float | None = None
    """Seconds of lateness, of any slot."""
    after: float | None = None
    """Seconds from the heal to the last start of what waited for it."""
    restarts: bool = True
    """Whether a process may end."""
    executed_twice: bool = False
    """Whether a run may be executed twice without a second attempt on record."""

    def __str__(self) -> str:
        words = []
        if self.worst is not None:
            words.append(f"late ≤ {self.worst:g} s")
        if self.after is not None:
            words.append(f"≤ {self.after:g} s after the heal")
        if not self.restarts:
            words.append("no restarts")
        return ", ".join(words) or "none lost, none recorded twice"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A row of the table."""

    name: str
    variants: tuple[Variant, ...]
    bound: Bound
    hits: int
    """How often each variant is committed in the full campaign."""
    bursts: bool = False
    """Whether every second hit falls into a burst."""
    between: float = 10.0
    """Seconds from a heal to the next hit."""
    sentinel: bool = False
    """Whether it needs a Redis that fails over."""
    needs_rabbitmq: bool = False
    """Whether it stops RabbitMQ, which must then be the drill's own."""
    in_short: bool = False
    """Whether it is part of the short drill."""


# beats


@contextmanager
def _leader_killed(site: Site) -> Iterator[None]:
    leader = site.leader()
    before = leader.pid
    leader.signal(signal.SIGKILL)
    yield
    poll(lambda: leader.pid != before, within=PASSED_WITHIN, what="a new beat")


@contextmanager
def _leader_paused(site: Site) -> Iterator[None]:
    with site.leader().paused():
        yield


def _beats_gone(*, but: int) -> Strike:
    """All beats but `but` are killed, and no supervisor starts them again."""

    @contextmanager
    def strike(site: Site) -> Iterator[None]:
        beats = site.random.sample(site.stack.of("beat"), len(site.stack.of("beat")) - but)
        with ExitStack() as away:
            for beat in beats:
                away.enter_context(beat.gone())
            yield

    return strike


# fail points


def _beat_fails(point: str, pause: float) -> Strike:
    @contextmanager
    def strike(site: Site) -> Iterator[None]:
        beat = site.random.choice(site.stack.of("beat"))
        beat.restart(**{FAIL_POINT: _fail_point(point, site.random.randint(1, 20), pause)})
        armed = beat.pid
        yield
        _wait_passed(beat, point, pause)
        if not pause:
            poll(lambda: beat.pid != armed, within=PASSED_WITHIN, what="a new beat")

    return strike


def _worker_fails(point: str, pause: float) -> Strike:
    @contextmanager
    def strike(site: Site) -> Iterator[None]:
        worker = site.random.choice(site.stack.of("worker"))
        worker.restart(**{FAIL_POINT: _fail_point(point, site.random.randint(5, 40), pause)})
        yield
        _wait_passed(worker, point, pause)
        worker.restart()  # the processes that it starts in place of dead ones are armed as well

    return strike


def _fail_point(point: str, nth: int, pause: float) -> str:
    return f"{point}:{nth}:{f'pause={pause:g}' if pause else 'kill'}"


def _wait_passed(process: Process, point: str, pause: float) -> None:
    """Waits until the process has come to its fail point, of which its log tells, and slept there."""
    said = f"fail point {point}:"
    what = f"{process.name} at the fail point {point}"
    poll(lambda: any(said in line for line in process.lines()), within=PASSED_WITHIN, what=what)
    time.sleep(pause)


# stores


@contextmanager
def _redis_emptied(site: Site) -> Iterator[None]:
    assert isinstance(site.stack.redis, Redis)
    site.stack.redis.empty()
    yield


def _redis_gone(*, comes_back_empty: bool) -> Strike:
    @contextmanager
    def strike(site: Site) -> Iterator[None]:
        assert isinstance(site.stack.redis, Redis)
        with site.stack.redis.gone(comes_back_empty=comes_back_empty):
            yield

    return strike


@contextmanager
def _redis_fails_over(site: Site) -> Iterator[None]:
    assert isinstance(site.stack.redis, Watched)
    with site.stack.redis.failing_over():
        yield


@contextmanager
def _rabbitmq_gone(site: Site) -> Iterator[None]:
    assert site.stack.rabbitmq is not None
    with site.stack.rabbitmq.gone():
        yield


@contextmanager
def _database_gone(site: Site) -> Iterator[None]:
    with site.stack.database.gone():
        yield


def _queue_loses(deed: Callable[[amqp.Channel], object]) -> Strike:
    """The messages of a backlog are removed while the worker's link is silent, so that it takes none of them."""

    @contextmanager
    def strike(site: Site) -> Iterator[None]:
        at = datetime.now(UTC) + timedelta(seconds=BACKLOG_AHEAD)
        site.workload.burst(BACKLOG, at)
        _sleep_until(at - timedelta(seconds=0.3))
        with links.MODES["silent"](site.stack.links["worker", "RabbitMQ"]), site.stack.connect() as connection:
            channel = connection.channel()
            poll(lambda: _depth(channel) >= BACKLOG * 9 // 10, within=10, what=f"a backlog of {BACKLOG}")
            deed(channel)
        yield

    return strike


def _depth(channel: amqp.Channel) -> int:
    return int(channel.queue_declare(QUEUE, passive=True).message_count)


# links


def _link(kind: str, store: str, mode: str) -> Strike:
    @contextmanager
    def strike(site: Site) -> Iterator[None]:
        with links.MODES[mode](site.stack.links[kind, store]):
            yield

    return strike


def every_link(store: str, mode: str) -> Variant:
    """All processes lose a store at once, though it lives."""

    @contextmanager
    def strike(site: Site) -> Iterator[None]:
        with ExitStack() as broken:
            for kind in KINDS:
                broken.enter_context(links.MODES[mode](site.stack.links[kind, store]))
            yield

    return Variant(name=f"{store} {mode}", strike=strike, touches=frozenset({store}), hold=AWAY, short=8)


def _links(kind: str) -> Fault:
    return Fault(
        name=f"link of {kind} cut or silent",
        variants=tuple(
            Variant(
                name=f"{kind} to {store} {mode}",
                strike=_link(kind, store, mode),
                touches=frozenset({store}),
                hold=AWAY,
                short=5,
            )
            for store in STORES
            for mode in ("cut", "silent")
        ),
        bound=Bound(after=10, restarts=False),
        hits=1,
        between=8,
        in_short=kind == "beat",
    )


def _fails(kind: str, point: str, make: Callable[[str, float], Strike], bound: Bound) -> Fault:
    return Fault(
        name=f"{kind} fails at {point}",
        variants=tuple(
            Variant(
                name=f"{kind} {word} at {point}",
                strike=make(point, pause),
                touches=frozenset({kind}),
                waits=True,
            )
            for word, pause in (("killed", 0.0), ("asleep", FAIL_PAUSE))
        ),
        bound=bound,
        hits=5,
        between=6,
    )


def _one(name: str, strike: Strike, touches: Sequence[str], hold: float = 0.0, short: float = 0.0) -> tuple[Variant]:
    return (Variant(name=name, strike=strike, touches=frozenset(touches), hold=hold, short=short),)


SINGLE: tuple[Fault, ...] = (
    Fault(
        name="leader killed",
        variants=_one("leader killed", _leader_killed, ["beat"]),
        bound=Bound(worst=8),
        hits=20,
        bursts=True,
        between=8,
        in_short=True,
    ),
    Fault(
        name="leader paused",
        variants=tuple(
            Variant(
                name=f"leader paused {hold} s",
                strike=_leader_paused,
                touches=frozenset({"beat"}),
                hold=hold,
                short=min(hold, 8),
            )
            for hold in (3, 15, 30)
        ),
        bound=Bound(worst=8),
        hits=5,
        bursts=True,
        between=6,
        in_short=True,
    ),
    *(_fails("beat", point, _beat_fails, Bound(worst=10)) for point in ("fired", "published", "confirmed")),
    *(_fails("worker", point, _worker_fails, Bound(worst=10)) for point in ("claimed", "called", "recorded")),
    Fault(
        name="Redis emptied",
        variants=_one("Redis emptied", _redis_emptied, ["Redis"]),
        bound=Bound(worst=8, restarts=False),
        hits=5,
        bursts=True,
        in_short=True,
    ),
    Fault(
        name="Redis gone",
        variants=_one("Redis gone", _redis_gone(comes_back_empty=False), ["Redis"], 30, 8),
        bound=Bound(worst=8, restarts=False),
        hits=2,
        in_short=True,
    ),
    Fault(
        name="Redis gone, and back empty",
        variants=_one("Redis gone, and back empty", _redis_gone(comes_back_empty=True), ["Redis"], 30, 6),
        bound=Bound(worst=8, restarts=False),
        hits=2,
    ),
    Fault(
        name="RabbitMQ gone",
        variants=_one("RabbitMQ gone", _rabbitmq_gone, ["RabbitMQ"], 30, 6),
        bound=Bound(after=10, restarts=False),
        hits=2,
        between=15,
        needs_rabbitmq=True,
        in_short=True,
    ),
    Fault(
        name="PostgreSQL gone",
        variants=_one("PostgreSQL gone", _database_gone, ["PostgreSQL"], 15, 6),
        bound=Bound(after=10, restarts=False),
        hits=3,
        between=12,
        in_short=True,
    ),
    Fault(
        name="queue purged",
        variants=_one("queue purged", _queue_loses(lambda c: c.queue_purge(QUEUE)), ["RabbitMQ"]),
        bound=Bound(worst=15, restarts=False),
        hits=3,
        between=15,
        in_short=True,
    ),
    Fault(
        name="queue deleted",
        variants=_one("queue deleted", _queue_loses(lambda c: c.queue_delete(QUEUE)), ["RabbitMQ"]),
        bound=Bound(worst=15, restarts=False),
        hits=3,
        between=15,
    ),
    *(_links(kind) for kind in KINDS),
    Fault(
        name="all beats but one gone",
        variants=_one("all beats but one gone", _beats_gone(but=1), ["beat"], 15, 6),
        bound=Bound(worst=8),
        hits=3,
    ),
    Fault(
        name="all beats gone",
        variants=_one("all beats gone", _beats_gone(but=0), ["beat"], 30, 6),
        bound=Bound(after=10),
        hits=2,
        between=12,
    ),
    Fault(
        name="Redis failing over",
        variants=_one("Redis failing over", _redis_fails_over, ["Redis"]),
        bound=Bound(worst=10),
        hits=5,
        between=12,
        bursts=True,
        sentinel=True,
    ),
)

PAIRS = 20


def both(first: Variant, second: Variant) -> Variant:
    """Two at once."""
    first, second = sorted((first, second), key=lambda variant: not variant.waits)

    @contextmanager
    def strike(site: Site) -> Iterator[None]:
        with first.strike(site), second.strike(site):
            yield

    return Variant(
        name=f"{first.name} + {second.name}",
        strike=strike,
        touches=first.touches | second.touches,
        hold=max(3.0, min(PAIR_HOLD, first.hold, second.hold)),
        short=4,
    )


def pairs(seed: int, count: int = PAIRS, *, own_rabbitmq: bool = True) -> Fault:
    """Two faults at once, drawn from all that break different things."""
    drawn = random.Random(seed)
    usable = [fault for fault in SINGLE if not fault.sentinel and (own_rabbitmq or not fault.needs_rabbitmq)]
    found: dict[str, Variant] = {}
    while len(found) < count:
        one, other = drawn.sample(usable, 2)
        first, second = drawn.choice(one.variants), drawn.choice(other.variants)
        if not first.touches & second.touches:
            pair = both(first, second)
            found[pair.name] = pair
    return Fault(
        name="two faults at once",
        variants=tuple(found.values()),
        bound=Bound(executed_twice=True),
        hits=1,
        between=12,
    )


def all_faults(seed: int, *, own_rabbitmq: bool) -> list[Fault]:
    """Every row, but those that stop a RabbitMQ that is not the drill's own. Those of one stack stand together."""
    rows = [*SINGLE, pairs(seed, own_rabbitmq=own_rabbitmq)]
    return sorted(
        (fault for fault in rows if own_rabbitmq or not fault.needs_rabbitmq), key=lambda fault: fault.sentinel
    )


def joined(name: str, faults: Sequence[Fault], *, bound: Bound | None = None) -> Fault:
    """Several rows as one, under one load."""
    variants = tuple(variant for fault in faults for variant in fault.variants)
    return replace(faults[0], name=name, variants=variants, bound=bound or faults[0].bound)


def _sleep_until(at: datetime) -> None:
    time.sleep(max(0.0, (at - datetime.now(UTC)).total_seconds()))
