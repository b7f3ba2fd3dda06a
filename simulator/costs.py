"""What beats ask of the stores per second, by how many beats and buckets there are and how much is due."""

from collections.abc import Mapping
from dataclasses import dataclass

from simulator.firing import FiringSystem
from simulator.world import World

NEAR = 0.0005
"""Seconds, one way, to stores in the same zone."""

EVERY = 60.0


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Of the whole system, per second."""

    ticks: float
    redis_round_trips: float
    redis_keys: float
    """Keys that commands and scripts look at."""
    database_round_trips: float
    database_transactions: float
    fired: float


def measure(beats: int, buckets: int, rate: float, seconds: float = 20.0, seed: int = 1) -> Costs:
    """Of a system at rest, where `rate` runs fall due per second. Left out are the chores that do not fire: see
    `script/bench capacity` for those."""
    system = FiringSystem(World(seed, NEAR), buckets)
    system.register(int(rate * EVERY), EVERY)
    system.join(beats)
    system.time_to_settle()
    system.run(5.0)
    before = _counted(system)
    system.run(seconds)
    each = {name: (value - before[name]) / seconds for name, value in _counted(system).items()}
    return Costs(**each)


def _counted(system: FiringSystem) -> Mapping[str, float]:
    return {
        "ticks": system.ticks,
        "redis_round_trips": system.redis.counted["round trips"],
        "redis_keys": system.redis.counted["keys"],
        "database_round_trips": system.tables.counted["round trips"],
        "database_transactions": system.tables.counted["transactions"],
        "fired": len(system.tables.runs),
    }
