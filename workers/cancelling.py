"""Ends runs that are to be cancelled: first by an exception in the target, and where that does not yield by the end of
its process.

A worker's heartbeat learns of the wish. It writes the runs' ids into memory that it shares with its children, and sends
a signal to those that are at one. A child may have gone on to another run by then: it looks into that memory before it
raises anything, so that no other run is struck.
"""

import contextlib
import mmap
import os
import signal
import time
from collections.abc import Collection, Iterable
from typing import Any
from uuid import UUID

from celery.exceptions import SoftTimeLimitExceeded

PATIENCE = 5.0
"""Seconds that a target has to yield."""

AGAIN = 0.9
"""Seconds between two signals: a target that cleans up is not to be struck with each heartbeat."""

SIGNAL = signal.SIGUSR2

MOST = 256
_SIZE = 16

_memory = mmap.mmap(-1, MOST * _SIZE)
"""Made before the pool forks: every child has the same."""


class Cancelled(SoftTimeLimitExceeded):  # type: ignore[misc]
    """Its run is to be cancelled. A target that cleans up where its time is over does so here too."""


class Canceller:
    """The worker's part, at each of its heartbeats."""

    def __init__(self) -> None:
        self.since: dict[UUID, float] = {}
        self.struck_at = 0.0

    def strike(self, requests: Iterable[Any], wanted: Collection[UUID]) -> None:
        """Sends the signal to each child that is at one of these runs, and kills those that did not yield.

        As with Celery's hard limit, a child that ends its run in the very moment before it is killed may be at the next
        one: that counts as lost, and is tried again.
        """
        now = time.monotonic()
        self.since = {run: self.since.get(run, now) for run in list(wanted)[:MOST]}
        _write(self.since)
        if not self.since or now < self.struck_at + AGAIN:
            return
        self.struck_at = now
        for request in tuple(requests):
            at = {ticket.run for ticket in request.in_hand()} if hasattr(request, "in_hand") else set()
            began = min((self.since[run] for run in at & self.since.keys()), default=None)
            if began is not None and request.worker_pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(request.worker_pid, signal.SIGKILL if now - began >= PATIENCE else SIGNAL)


def is_wanted(run: UUID | None) -> bool:
    """Whether a run is to be cancelled. Called in a child, at the signal."""
    return run is not None and any(_memory[n : n + _SIZE] == run.bytes for n in range(0, MOST * _SIZE, _SIZE))


def _write(wanted: Iterable[UUID]) -> None:
    told = b"".join(run.bytes for run in wanted)
    _memory[: MOST * _SIZE] = told.ljust(MOST * _SIZE, b"\0")
