"""What a worker's main process tells PostgreSQL, from threads of its own: which runs go on, what it can run.

One statement renews the heartbeats of all its runs. A second thread records what a killed child no longer can,
so that neither Celery's event loop nor a heartbeat waits for it.
"""

import contextlib
import inspect
import logging
import platform
import queue
import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID

import celery
from celery.worker import state
from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert

from app import db, errors, messages, nodes, runs, signatures
from app.broker import celery_app
from app.messages import DEFAULT_QUEUE, Ticket
from app.models import Target
from app.states import NodeKind
from workers import durations
from workers.cancelling import Canceller

EVERY = 0.5
"""Seconds between heartbeats; a run counts as lost after attempts.LOST_AFTER."""

OFFER_EVERY = 30
"""Heartbeats between two announcements of what this worker can run; see queries.OFFERED_FOR."""

OFFERED = ("queue", "signature", "parameters", "documentation", "last_seen_at")

log = logging.getLogger(__name__)

_deferred: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()


def defer(job: Callable[[], None]) -> None:
    """Has the clerk do a job that waits for the database."""
    _deferred.put(job)


class Heartbeat(threading.Thread):
    """Beats until it is stopped, a last time after the pool has ended."""

    def __init__(self) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.stopping = threading.Event()
        self.beats = 0
        self.started = time.monotonic()
        self.canceller = Canceller()
        self.consumer: Any = None
        """Celery's consumer, from when the worker is ready."""

    def run(self) -> None:
        while not self.stopping.wait(EVERY if self.beats else 0):
            self.beat()
        self.beat()

    def beat(self) -> None:
        """One beat: renew, say that this worker is there, and now and then what it can run."""
        try:
            self.canceller.strike(state.active_requests, renew(in_hand(state.active_requests)))
            _look_after(state.active_requests)
            durations.tell(durations.collect())
            if self.beats % OFFER_EVERY == 0:
                offer(celery_app.tasks.values())
            self.beats += 1
            self.tell()
        except errors.Unavailable:
            log.warning("PostgreSQL is away: heartbeats are renewed when it is back")
        except Exception:
            log.exception("a heartbeat failed, the next one follows")

    def tell(self) -> None:
        """Says that this worker is there and with what, or that it stops."""
        if self.consumer is None:
            return
        name, uptime = self.consumer.hostname, timedelta(seconds=time.monotonic() - self.started)
        with db.statement() as session:
            if self.stopping.is_set():
                nodes.leave(session, name)
            else:
                nodes.announce(session, NodeKind.WORKER, name, uptime, _details(self.consumer))


class Clerk(threading.Thread):
    """Does what was deferred, one after the other, so that no heartbeat waits for it."""

    def __init__(self) -> None:
        super().__init__(name="clerk", daemon=True)
        self.stopping = threading.Event()

    def run(self) -> None:
        while not (self.stopping.is_set() and _deferred.empty()):
            with contextlib.suppress(queue.Empty):
                self.do(_deferred.get(timeout=EVERY / 4))

    def do(self, job: Callable[[], None]) -> None:
        """Does a job; one that PostgreSQL is away for is put back."""
        try:
            job()
        except errors.Unavailable:
            _deferred.put(job)
            self.stopping.wait(EVERY)
        except Exception:
            log.exception("a record from outside failed; the chores of the beats repair what it left")


def renew(tickets: list[Ticket]) -> set[UUID]:
    """Renews the heartbeats of these runs. Returns those that are to be cancelled."""
    if not tickets:
        return set()
    with db.statement() as session:
        return runs.renew(session, tickets)


def offer(targets: Iterable[Any]) -> None:
    """Publishes what this worker can run. Celery's own tasks, and ours, are no targets of a client."""
    ours = [task for task in targets if not task.name.startswith(("celery.", messages.OWN))]
    foreign = [task.name for task in ours if not getattr(task, "records", False)]
    if foreign:
        log.error("these cannot be targets, as their base class is not app.Task: %s", ", ".join(sorted(foreign)))
    rows = [_offered(task) for task in ours if task.name not in foreign]
    if not rows:
        return
    statement = insert(Target)
    replaced = {name: statement.excluded[name] for name in OFFERED}
    with db.transaction(planned=True) as session:
        seen = {"last_seen_at": db.now(session)}
        # in one order in every worker: two that announce at once take the rows in turn and cannot deadlock
        ordered = [row | seen for row in sorted(rows, key=lambda row: row["name"])]
        session.execute(statement.on_conflict_do_update(index_elements=["name"], set_=replaced), ordered)
        single = [task.name for task in ours if not durations.is_packable(task)]
        session.execute(update(Target).where(Target.name.in_(single)).values(duration=None))


def _offered(task: Any) -> dict[str, Any]:
    signature, parameters = signatures.describe(task.run)  # of a bound task it is a method: without self
    return {
        "name": task.name,
        "queue": getattr(task, "queue", None) or DEFAULT_QUEUE,
        "signature": signature,
        "parameters": parameters,
        "documentation": (inspect.getdoc(task.run) or "").partition("\n\n")[0],
    }


def _details(consumer: Any) -> dict[str, Any]:
    """What `GET /cluster` shows of this worker, and what dispatching and the forecast ask for."""
    try:
        processes = int(consumer.pool.num_processes)
    except AttributeError:  # the pool is about to end, or has ended
        processes = 0
    autoscaler = getattr(consumer.controller, "autoscaler", None)
    return {
        "queues": sorted(celery_app.amqp.queues.consume_from),
        "processes": processes,
        "most": max(processes, autoscaler.max_concurrency) if autoscaler else processes,
        "running": len(state.active_requests),
        "system": sorted(task.name for task in celery_app.tasks.values() if _is_system(task)),
        "versions": {"python": platform.python_version(), "celery": celery.__version__},
    }


def _is_system(task: Any) -> bool:
    """Whether it is a target of Punctual's own."""
    return bool(task.name.startswith(messages.OWN) and getattr(task, "records", False))


def _look_after(requests: Iterable[Any]) -> None:
    """What packs need beside; trouble with one is none of the others'."""
    for request in tuple(requests):
        if hasattr(request, "look_after"):
            try:
                request.look_after()
            except errors.Unavailable:
                raise
            except Exception:
                log.exception("pack %s cannot be looked after, it is tried again", request.id)


def in_hand(requests: Iterable[Any]) -> list[Ticket]:
    """The runs that its children work on. The set may change meanwhile: it is copied first."""
    return [ticket for request in tuple(requests) if hasattr(request, "in_hand") for ticket in request.in_hand()]
