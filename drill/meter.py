"""What a stack's processes use while it is broken and healed for long: memory, open files, connections."""

import statistics
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Self

import psutil
import psycopg

from drill.stack import Stack

EVERY = 5.0
"""Seconds between two readings."""

GROWTH = 1.15
"""What the last quarter may be of the second one: the first warms up, and a fault's own hump is in each."""

FEWEST = 24
"""Readings below which nothing is said."""

CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Of all processes and their children together."""

    memory: float
    """MB that no other process shares, and its part of what others do."""
    files: float
    connections: float
    """To PostgreSQL."""


@dataclass(kw_only=True)
class Meter:
    """Reads from a thread of its own. A context manager."""

    stack: Stack
    readings: list[Reading] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, name="meter", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._stopping.wait(EVERY):
            with suppress(psutil.Error, psycopg.Error, StopIteration):  # a process, or PostgreSQL, is away right now
                self.readings.append(read(self.stack))


def read(stack: Stack) -> Reading:
    """One reading. Raises psutil.Error or psycopg.Error where somebody is away."""
    found = [each for process in stack.processes.values() for each in _family(process.pid)]
    url = stack.record_url.replace("postgresql+psycopg:", "postgresql:", 1)
    with psycopg.connect(url, connect_timeout=3) as connection:
        row = connection.execute(CONNECTIONS).fetchone()
    return Reading(
        memory=sum(each.memory_full_info().pss for each in found) / 1e6,
        files=sum(each.num_fds() for each in found),
        connections=row[0] - 1 if row else 0,
    )


def growth(readings: Sequence[Reading]) -> dict[str, tuple[float, float]]:
    """Of each measure the median of the second quarter, and that of the last; nothing where readings are few."""
    if len(readings) < FEWEST:
        return {}
    quarter = len(readings) // 4
    early, late = readings[quarter : 2 * quarter], readings[-quarter:]
    return {
        name: tuple(statistics.median(asdict(each)[name] for each in part) for part in (early, late))
        for name in asdict(readings[0])
    }


def _family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]
