"""What the drill breaks, how often, for how long, and what must hold. One fault per row of its table."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import amqp

from drill import strikes
from drill.stack import KINDS, STORES
from drill.strikes import Site, Strike

FAIL_PAUSE = 6.0
"""Seconds for which a fail point lets a process sleep: longer than a lease."""

AWAY = 20.0
MINUTE = 60.0
PAIR_HOLD = 10.0
"""Seconds for which two faults last that overlap."""


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
    p99: float | None = None
    """Seconds of lateness, of 99 in a hundred of the slots that were due within a hit."""
    after: float | None = None
    """Seconds from the heal to the last start of what waited for it."""
    restarts: bool = True
    """Whether a process may end."""
    flat: bool = False
    """Whether memory, files and connections must not grow."""
    unnoticed: bool = False
    """Whether every request must be answered, and done."""
    executed_twice: bool = False
    """Whether a run may be executed twice without a second attempt on record."""

    def __str__(self) -> str:
        words = []
        if self.worst is not None:
            words.append(f"late ≤ {self.worst:g} s")
        if self.p99 is not None:
            words.append(f"p99 ≤ {self.p99:g} s")
        if self.after is not None:
            words.append(f"≤ {self.after:g} s after the heal")
        if self.unnoticed:
            words.append("no request fails")
        if not self.restarts:
            words.append("no restarts")
        if self.flat:
            words.append("nothing grows")
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
    every: float = 0.0
    """Seconds from one hit to the next, unless that heals too late for it."""
    replicated: bool = False
    """Whether it needs stores that fail over."""
    previous: bool = False
    """Whether it needs processes of the previous release."""
    needs_rabbitmq: bool = False
    """Whether it stops RabbitMQ, which must then be the drill's own."""
    in_short: bool = False
    """Whether it is part of the short drill."""


def every_link(store: str, mode: str) -> Variant:
    """All processes lose a store at once, though it lives."""
    strike = strikes.every_link(store, mode)
    return Variant(name=f"{store} {mode}", strike=strike, touches=frozenset({store}), hold=AWAY, short=8)


def _links(name: str, of: str, bound: Bound) -> Fault:
    return Fault(
        name=f"link of {name} cut or silent",
        variants=tuple(
            Variant(
                name=f"{name} to {store} {mode}",
                strike=strikes.link(of, store, mode),
                touches=frozenset({store}),
                hold=AWAY,
                short=5,
            )
            for store in STORES
            for mode in ("cut", "silent")
        ),
        bound=bound,
        hits=1,
        between=8,
        in_short=name == "beat",
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
        variants=_one("leader killed", strikes.leader_killed, ["beat"]),
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
                strike=strikes.leader_paused,
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
    *(_fails("beat", point, strikes.beat_fails, Bound(worst=10)) for point in ("fired", "published", "confirmed")),
    *(_fails("worker", point, strikes.worker_fails, Bound(worst=10)) for point in ("claimed", "called", "recorded")),
    Fault(
        name="Redis emptied",
        variants=_one("Redis emptied", strikes.redis_emptied, ["Redis"]),
        bound=Bound(worst=8, restarts=False),
        hits=5,
        bursts=True,
        in_short=True,
    ),
    Fault(
        name="Redis gone",
        variants=_one("Redis gone", strikes.redis_gone(comes_back_empty=False), ["Redis"], 30, 8),
        bound=Bound(worst=8, restarts=False),
        hits=2,
        in_short=True,
    ),
    Fault(
        name="Redis gone, and back empty",
        variants=_one("Redis gone, and back empty", strikes.redis_gone(comes_back_empty=True), ["Redis"], 30, 6),
        bound=Bound(worst=8, restarts=False),
        hits=2,
    ),
    Fault(
        name="RabbitMQ gone",
        variants=_one("RabbitMQ gone", strikes.rabbitmq_gone, ["RabbitMQ"], 30, 6),
        bound=Bound(after=10, restarts=False),
        hits=2,
        between=15,
        needs_rabbitmq=True,
        in_short=True,
    ),
    Fault(
        name="PostgreSQL gone",
        variants=_one("PostgreSQL gone", strikes.database_gone, ["PostgreSQL"], 15, 6),
        bound=Bound(after=10, restarts=False),
        hits=3,
        between=12,
        in_short=True,
    ),
    Fault(
        name="queue purged",
        variants=_one("queue purged", strikes.queue_loses(amqp.Channel.queue_purge), ["RabbitMQ"]),
        bound=Bound(worst=15, restarts=False),
        hits=3,
        between=15,
        in_short=True,
    ),
    Fault(
        name="queue deleted",
        variants=_one("queue deleted", strikes.queue_loses(amqp.Channel.queue_delete), ["RabbitMQ"]),
        bound=Bound(worst=15, restarts=False),
        hits=3,
        between=15,
    ),
    *(_links(kind, kind, Bound(after=10, restarts=False)) for kind in KINDS),
    _links("one beat", "beat.1", Bound(worst=10, restarts=False)),
    Fault(
        name="all beats but one gone",
        variants=_one("all beats but one gone", strikes.beats_gone(but=1), ["beat"], 15, 6),
        bound=Bound(worst=8),
        hits=3,
    ),
    Fault(
        name="all beats gone",
        variants=_one("all beats gone", strikes.beats_gone(but=0), ["beat"], 30, 6),
        bound=Bound(after=10),
        hits=2,
        between=12,
    ),
    Fault(
        name="Redis failing over",
        variants=_one("Redis failing over", strikes.redis_fails_over, ["Redis"]),
        bound=Bound(worst=10),
        hits=5,
        between=12,
        bursts=True,
        replicated=True,
        needs_rabbitmq=True,
    ),
    Fault(
        name="Redis failing over at a lease",
        variants=_one("Redis failing over at a lease", strikes.redis_fails_over_at_a_lease, ["Redis", "beat"]),
        bound=Bound(worst=10),
        hits=5,
        between=12,
        replicated=True,
        needs_rabbitmq=True,
    ),
    Fault(
        name="RabbitMQ losing a node",
        variants=_one("RabbitMQ losing a node", strikes.rabbitmq_loses_a_node, ["RabbitMQ"], 15, 8),
        bound=Bound(worst=10, restarts=False),
        hits=3,
        between=15,
        replicated=True,
        needs_rabbitmq=True,
    ),
    Fault(
        name="PostgreSQL failing over",
        variants=_one("PostgreSQL failing over", strikes.database_fails_over, ["PostgreSQL"]),
        bound=Bound(after=10, restarts=False),
        hits=4,
        between=20,
        replicated=True,
        needs_rabbitmq=True,
    ),
)

UPGRADES = (
    Fault(
        name="every process replaced",
        variants=_one("every process replaced", strikes.each_replaced, KINDS),
        bound=Bound(worst=8, p99=1, unnoticed=True),
        hits=2,
        between=15,
    ),
    Fault(
        name="upgrade from the previous release",
        variants=_one("upgrade from the previous release", strikes.release_replaced, ["PostgreSQL", *KINDS]),
        bound=Bound(worst=8, p99=1, unnoticed=True),
        hits=1,
        previous=True,
    ),
)
"""No faults: what everybody does with each release."""

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
    usable = [fault for fault in SINGLE if not fault.replicated and (own_rabbitmq or not fault.needs_rabbitmq)]
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


def soak(minutes: int, seed: int, *, own_rabbitmq: bool = True) -> Fault:
    """One load, and a fault each minute, drawn from all that a stack without standbys survives."""
    drawn = random.Random(seed)
    usable = [fault for fault in SINGLE if not fault.replicated and (own_rabbitmq or not fault.needs_rabbitmq)]
    return Fault(
        name=f"soak of {minutes} minutes",
        variants=tuple(drawn.choice(drawn.choice(usable).variants) for _ in range(minutes)),
        bound=Bound(flat=True),
        hits=1,
        every=MINUTE,
    )


def all_faults(seed: int, *, own_rabbitmq: bool) -> list[Fault]:
    """Every row, but those that stop a RabbitMQ that is not the drill's own. Those of one stack stand together."""
    rows = [*SINGLE, *UPGRADES, pairs(seed, own_rabbitmq=own_rabbitmq)]
    usable = (fault for fault in rows if own_rabbitmq or not fault.needs_rabbitmq)
    return sorted(usable, key=lambda fault: (fault.replicated, fault.previous))


def joined(name: str, faults: Sequence[Fault], *, bound: Bound | None = None) -> Fault:
    """Several rows as one, under one load."""
    variants = tuple(variant for fault in faults for variant in fault.variants)
    return replace(faults[0], name=name, variants=variants, bound=bound or faults[0].bound)
