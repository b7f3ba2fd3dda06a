"""The clock and what is to come. Time passes only between events, so each run is the same for the same seed.

A process is a few strands, greenlets that wait where its threads would block. It may be paused or killed there, also
between sending a request and reading its answer.
"""

import heapq
import random
from collections.abc import Callable
from itertools import count
from typing import Any

from greenlet import getcurrent, greenlet

DRIFT = 300e-6
"""By how much clocks may be too fast or too slow."""

Reply = Callable[[Any], None]

SKEW = 1.0
"""Seconds by which the wall clock of a machine may be wrong."""


class World:
    """`slowest` is the latency, one way and in seconds, of the slowest link."""

    def __init__(self, seed: int, slowest: float = 0.03) -> None:
        self.random = random.Random(seed)
        self.slowest = slowest
        self.time = 0.0
        self.trouble = 0.0
        """The share of calls that are lost or late."""
        self.last_late = 0.0
        """When the last request arrives that nobody waits for any more."""
        self._coming: list[tuple[float, int, Callable[[], object]]] = []
        self._order = count()

    def clock(self) -> Callable[[], float]:
        """A monotonic clock, which begins anywhere."""
        rate, offset = 1 + self.random.uniform(-DRIFT, DRIFT), self.random.uniform(0, 1e6)
        return lambda: offset + rate * self.time

    def at(self, time: float, event: Callable[[], object]) -> None:
        heapq.heappush(self._coming, (time, next(self._order), event))

    def run(self, seconds: float) -> None:
        end = self.time + seconds
        while self._coming and self._coming[0][0] <= end:
            self.time, _, event = heapq.heappop(self._coming)
            event()
        self.time = end


class Process:
    """What lives on a machine of its own, with clocks of its own."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.stopping = False
        self.paused_until = 0.0
        self.monotonic = world.clock()
        self.skew = world.random.choice([0.0, 0.001, 0.02, SKEW]) * world.random.uniform(-1, 1)

    def spawn(self, *lives: Callable[[], None], within: float) -> None:
        """Each life begins at some moment `within` so many seconds."""
        for live in lives:
            strand = Strand(self, live)
            self.world.at(self.world.time + self.world.random.uniform(0, within), strand.resume)

    def pause(self, seconds: float) -> None:
        self.paused_until = max(self.paused_until, self.world.time + seconds)

    def kill(self) -> None:
        self.alive = False

    def stop(self) -> None:
        self.stopping = True

    def turned(self) -> None:
        """A strand ran and waits again."""


class Strand(greenlet):  # type: ignore[misc]
    """One thread of a process."""

    def __init__(self, process: Process, live: Callable[[], None]) -> None:
        super().__init__(live)
        self.process = process

    def resume(self, value: object = None) -> None:
        """Goes on, unless its process is dead; while that is paused, at the end of the pause."""
        process = self.process
        if not process.alive or self.dead:
            return
        if process.world.time < process.paused_until:
            process.world.at(process.paused_until, lambda: self.resume(value))
            return
        self.switch(value) if self else self.switch()
        if process.alive:
            process.turned()


def current() -> Strand:
    """The strand that runs."""
    strand = getcurrent()
    assert isinstance(strand, Strand)
    return strand


def pause() -> Any:
    """The running strand waits until somebody resumes it; returns what it was given then."""
    parent = current().parent
    assert parent is not None
    return parent.switch()


def wait(seconds: float) -> None:
    """The running strand waits."""
    strand = current()
    world = strand.process.world
    world.at(world.time + max(0.0, seconds), strand.resume)
    pause()


def call(
    way: tuple[float | None, float | None], act: Callable[[Reply], None], timeout: float, *, work: float = 0.0
) -> Any:
    """Sends a request and waits for its answer. `way` is how long it travels there and back, None: it never arrives.
    `work` is how long the server takes for it at most.

    Returns a tuple of the answer, or None where there was none in time; `act` was done all the same, or will be.
    """
    strand = current()
    world = strand.process.world
    there, back = way
    waiting = True

    def end(value: tuple[Any] | None) -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            strand.resume(value)

    def reply(answer: Any) -> None:
        if back is not None:
            world.at(world.time + back, lambda: end((answer,)))

    if there is not None:
        if there > timeout:
            world.last_late = max(world.last_late, world.time + there)
        world.at(world.time + there, lambda: act(reply))
    if there is None or back is None or there + work + back >= timeout:
        world.at(world.time + timeout, lambda: end(None))
    return pause()
