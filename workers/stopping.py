"""How a worker stops: what runs may end within a grace period, the rest is given back, and nothing counts as failed.

The message of a run that has not started goes back to the broker at once. A run that outlives the grace goes on
elsewhere as a further attempt, which its task's `max_attempts` does not count; only then is its process ended.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterable
from typing import Any

from celery.worker import state

from app import attempts, db, errors, settings
from workers import heartbeat, pool

LAST_WORD = 2.0
"""Seconds between SIGTERM, at which a target may still clean up, and SIGKILL."""

log = logging.getLogger(__name__)


class Grace(threading.Thread):
    """Waits out the grace, then takes from this worker what has not ended. The worker's main thread waits for the
    pool meanwhile, and ends as soon as that is empty."""

    def __init__(self, processes: Any, seconds: float) -> None:
        super().__init__(name="grace", daemon=True)
        self.processes = processes
        self.seconds = seconds

    def run(self) -> None:
        time.sleep(self.seconds)
        left = tuple(state.active_requests)
        if not left:
            return
        log.warning("%d runs have not ended within %g s: they are given back", len(left), self.seconds)
        _give_back(left)
        self._end(left, signal.SIGTERM)
        time.sleep(LAST_WORD)
        self._end(left, signal.SIGKILL)

    def _end(self, requests: Iterable[Any], number: signal.Signals) -> None:
        """Ends the processes of those requests that are still at work."""
        for request in requests:
            process = pool.process_of(self.processes, request.worker_pid)
            if process is not None and request in state.active_requests:
                pool.expect_end(process)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)


def begin(processes: Any) -> list[Any]:
    """Starts the grace; returns the requests that no process has begun, for the caller to give back."""
    pool.settle(processes)
    Grace(processes, settings.load().PUNCTUAL_STOP_GRACE).start()
    return [request for request in tuple(state.reserved_requests) if request not in state.active_requests]


def _give_back(requests: Iterable[Any]) -> None:
    """First in PostgreSQL, then the processes are ended: so what ends them is never taken for a failure."""
    try:
        tickets = heartbeat.in_hand(requests)
        with db.transaction(planned=True) as session:
            attempts.give_back(session, tickets)
    except errors.Unavailable:
        log.warning("PostgreSQL is away: the runs of this worker count as lost and are tried again as such")
