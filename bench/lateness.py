"""How late runs start: under a steady load at random instants, and registered just before their slot."""

import random
import statistics
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta

from app import clock
from bench import load
from bench.bursts import ahead
from bench.figures import OURS, Figure

PER_SECOND = 200
SECONDS = 60
STEADY = f"steady, {PER_SECOND}/s for {SECONDS} s"
SOON = 100
AHEAD = timedelta(seconds=0.5)


def steady() -> list[Figure]:
    """A steady load at random instants."""
    with load.running():
        load.warm_up()
        slots = instants(ahead(PER_SECOND * SECONDS))
        load.fill(slots)
        load.wait_until_mirrored(before=slots[0])
        left = (slots[-1] - clock.now()).total_seconds()
        load.wait_for("succeeded", len(slots), since=slots[0], within=left + 30)
        return spread(STEADY, [run["started_at"] for run in load.stamps(slots[0])])


def soon() -> list[Figure]:
    """Registered for half a second ahead on an idle system, one after the other."""
    late = []
    with load.running():
        load.warm_up()
        for number in range(SOON):
            slot = clock.now() + AHEAD
            load.register([slot])
            load.wait_for("succeeded", 1, since=slot, within=15)
            late.append(load.stamps(slot)[0]["started_at"] * 1000)
            if number % 25 == 24:
                print(f"soon: {number + 1} of {SOON}", file=sys.stderr, flush=True)
    name = "registered for 0.5 s ahead: lateness"
    return [
        Figure(what=f"{name} p50", value=statistics.median(late), unit="ms"),
        Figure(what=f"{name} worst of {SOON}", value=max(late), unit="ms"),
    ]


def instants(start: datetime, per_second: int = PER_SECOND, seconds: int = SECONDS) -> list[datetime]:
    """The slots of a steady load: the same ones in each round, in whole milliseconds as answers show them."""
    draw = random.Random(per_second)
    offsets = sorted(draw.randrange(seconds * 1000) for _ in range(per_second * seconds))
    return [start + timedelta(milliseconds=offset) for offset in offsets]


def spread(name: str, late: Sequence[float], system: str = OURS) -> list[Figure]:
    """Median, tail, worst and earliest of latenesses in seconds."""
    ordered = sorted(late)
    values = {
        "p50": statistics.median(ordered),
        "p99": ordered[int(len(ordered) * 0.99)],
        "worst": ordered[-1],
        "earliest": ordered[0],
    }
    return [
        Figure(what=f"{name}: lateness {which}", value=value * 1000, unit="ms", system=system)
        for which, value in values.items()
    ]
