"""How many processes a worker has: `celery worker --autoscale=MOST,LEAST`.

It grows with the work that waits while the machine leaves room, and shrinks after quiet. A process is never
killed for it: one that has nothing to do is asked to leave, see `pool.dismiss` and docs/decisions/0019.
"""

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from celery.worker import autoscale

from app import broker, settings
from workers import pool
from workers.gauge import Gauge, Reading

EVERY = 0.1
"""Seconds between two looks."""

PATIENCE = 0.2
"""Seconds that work must wait before a process is started for it: a start costs more than many a run."""

RESTS = 3.0
"""How much longer than a fork took the next one waits."""

WORKS_ITSELF = 0.5
"""From this share of a core on, a process counts as held up by the processor. One below it mostly waits, for the
network perhaps, and another beside it helps however busy the machine is."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Change:
    """A decision: how many processes more, or fewer where negative, and why. No change is a refusal."""

    by: int
    reason: str


@dataclass(kw_only=True)
class Judge:
    """Decides from what it is shown at each look. Pure: knows neither pool nor clock."""

    least: int
    most: int
    cpu: float
    """The share of the processors from which on there is no room."""
    memory: float
    quiet: float
    """Seconds in which a process must not have been needed before it leaves."""
    waits_since: float | None = None
    peak: int = 0
    """The most that was needed at once since the window began."""
    window_at: float = field(default_factory=time.monotonic)
    rests_until: float = 0.0
    """Until then nothing grows: see `rest`."""

    def decide(self, now: float, processes: int, reserved: int, seen: Reading) -> Change | None:
        """`reserved` are the messages this worker holds, at work or waiting."""
        need = reserved + seen.depth
        self.peak = max(self.peak, need)
        waits = need > processes and processes < self.most
        self.waits_since = (self.waits_since or now) if waits else None
        if now < self.rests_until and processes < self.most:
            self._begin_window(now, self.peak)
            return None
        if processes < self.least:
            return Change(by=1, reason="the least is more")
        if processes > self.most:
            return Change(by=self.most - processes, reason="the most is less")
        if self.waits_since is not None and now - self.waits_since >= PATIENCE:
            return self._grow(now, processes, need, seen)
        return self._shrink(now, processes, need)

    def rest(self, now: float, took: float) -> None:
        """After a fork that took so long: the loop and the heartbeats need their turn before the next one."""
        self.rests_until = now + RESTS * took

    def _grow(self, now: float, processes: int, need: int, seen: Reading) -> Change | None:
        """One at a time: while a process is forked the worker does nothing else, not even renew its heartbeats."""
        self._begin_window(now, need)
        if seen.memory >= self.memory:
            return Change(by=0, reason=f"{need - processes} wait, but {seen.memory:.0%} of the memory is used")
        if seen.cpu >= self.cpu and seen.own >= WORKS_ITSELF:
            return Change(by=0, reason=f"{need - processes} wait, but {seen.cpu:.0%} of the processors is used")
        return Change(by=1, reason=f"{need - processes} wait")

    def _shrink(self, now: float, processes: int, need: int) -> Change | None:
        if now - self.window_at < self.quiet:
            return None
        surplus = processes - max(self.peak, self.least)
        reason = f"no more than {self.peak} needed for {now - self.window_at:.0f} s"
        self._begin_window(now, need)
        return Change(by=-surplus, reason=reason) if surplus > 0 else None

    def _begin_window(self, now: float, need: int) -> None:
        self.peak, self.window_at = need, now


class Autoscaler(autoscale.Autoscaler):  # type: ignore[misc]
    """Celery's hook: `maybe_scale` is called in the worker's loop, for each message and every `keepalive` seconds."""

    def __init__(self, its_pool: Any, max_concurrency: int, min_concurrency: int = 0, **kwargs: Any) -> None:
        super().__init__(its_pool, max_concurrency, min_concurrency, **kwargs | {"keepalive": EVERY})
        given = settings.load()
        self.judge = Judge(
            least=min_concurrency,
            most=max_concurrency,
            cpu=given.PUNCTUAL_AUTOSCALE_CPU / 100,
            memory=given.PUNCTUAL_AUTOSCALE_MEMORY / 100,
            quiet=given.PUNCTUAL_AUTOSCALE_QUIET,
        )
        self.gauge = Gauge(self._pids, self._depth)
        self.refused: str | None = None

    def maybe_scale(self, req: Any = None) -> None:
        """One look. A message only tells the judge that it is there: the next look is a tenth of a second away."""
        if req is not None:
            self.judge.peak = max(self.judge.peak, self.qty)
            return
        if self.gauge.ident is None:  # only now, as the first processes have been forked
            self.gauge.start()
        self.gauge.wants_depth = self.qty > 0 or self.processes > self.judge.least
        self._act(self.judge.decide(time.monotonic(), self.processes, self.qty, self.gauge.reading))

    def update(self, max: int | None = None, min: int | None = None) -> tuple[int, int]:  # noqa: A002 - Celery's own
        """New bounds, from `celery control autoscale`; the next look acts on them."""
        if max is not None:
            self.max_concurrency = self.judge.most = max
            _fetch(self.worker.consumer, max)
        if min is not None:
            self.min_concurrency = self.judge.least = min
        return self.max_concurrency, self.min_concurrency

    def _act(self, change: Change | None) -> None:
        if change is None:
            return
        if change.by == 0:
            if self.refused is None:
                log.warning("stays at %d processes: %s", self.processes, change.reason)
            self.refused = change.reason
            return
        self.refused = None
        before = self.processes
        if change.by > 0:
            start = time.monotonic()
            self.pool.grow(change.by)
            self.pool.maintain_pool()
            self.judge.rest(time.monotonic(), time.monotonic() - start)
        else:
            pool.dismiss(self.pool._pool, -change.by)  # noqa: SLF001 - Celery's own wraps billiard's
        self.pool.limit = self.processes  # what Flower and `inspect stats` show as its size
        if self.processes != before:
            log.info("from %d to %d processes: %s", before, self.processes, change.reason)

    def _pids(self) -> list[int]:
        return pool.pids(self.pool._pool) if self.pool.active else []  # noqa: SLF001

    def _depth(self) -> int:
        names = tuple(broker.celery_app.amqp.queues.consume_from)
        return sum(broker.depth(name) or 0 for name in names)


def _fetch(consumer: Any, count: int) -> None:
    """Has the broker hand out up to `count` messages from now on.

    With quorum queues a new prefetch counts for new consumers only, so they are cancelled and begin again;
    what they hold stays theirs.
    """
    consumer.initial_prefetch_count = count * consumer.prefetch_multiplier
    consumer.qos.value = consumer.initial_prefetch_count
    consumer.qos.update()
    if consumer.qos_global is False:
        consumer.task_consumer.cancel()
        consumer.task_consumer.consume()
