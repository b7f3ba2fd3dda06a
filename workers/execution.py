"""Claim, call, record: what a worker does with a run, for any target.

A message without a ticket is an ordinary Celery call and runs unrecorded.
"""

import json
import logging
import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from types import FrameType
from typing import Any, TypeVar
from uuid import UUID

from billiard.common import terminate_handler_fired
from celery import Task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded, WorkerLostError
from kombu.exceptions import DecodeError
from sqlalchemy.orm import Session

from app import attempts, clock, db, errors, failpoints, logs, messages, metrics, runs, traces
from app.messages import DEFAULT_QUEUE, Ticket
from app.states import Reason
from workers import cancelling, durations, heartbeat, verdicts
from workers.cancelling import Cancelled
from workers.masking import MaskedRequest

MAX_RESULT = 64 * 1024
MAX_TRACEBACK = 16 * 1024
MAX_MESSAGE = 4 * 1024

CLAIM_PATIENCE = timedelta(seconds=60)
"""How long a worker waits for PostgreSQL before it gives an unclaimed message back to the broker."""

RECORD_PATIENCE = timedelta(minutes=10)
"""How long it holds on to an outcome that cannot be recorded. Then the run counts as lost and is tried again."""

_encode = json.JSONEncoder(allow_nan=False).encode
"""Made once: `json.dumps` makes one at each call that asks for anything special."""

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class RecordedRequest(MaskedRequest):
    """A message in the worker's main process, which learns of what its child can no longer record itself."""

    def in_hand(self) -> list[Ticket]:
        """The runs whose heartbeats this worker is to renew."""
        ticket = Ticket.read(self.request_dict.get(messages.HEADER))
        return [ticket] if ticket else []

    def on_timeout(self, soft: bool, timeout: float) -> None:  # noqa: FBT001 - Celery's own
        super().on_timeout(soft, timeout)
        if not soft:
            message = f"It did not end within {timeout:g} s and its process was killed."
            self._record(Reason.TIMEOUT, {"type": "TimeLimitExceeded", "message": message, "traceback": None})

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        super().on_failure(exc_info, send_failed_event, return_ok)
        exc = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(exc, WorkerLostError):
            self._record(Reason.LOST, attempts.LOST)
        elif isinstance(exc, DecodeError):  # it was never called: the child could not read its arguments
            self._record(Reason.REJECTED, describe(exc))

    def _record(self, reason: Reason, error: dict[str, Any]) -> None:
        """Has the clerk record that the child is gone."""
        for ticket in self.in_hand():
            step = reject if reason == Reason.REJECTED else _record_killed
            heartbeat.defer(partial(step, ticket, self.hostname, reason, error))


class RecordedTask(Task):  # type: ignore[misc]
    """The class of every target in our workers."""

    Request = "workers.execution:RecordedRequest"
    records = True
    """Says that a run of it is claimed and recorded; a class of one's own must inherit from this one."""

    throws = (Exception,)
    """What a target raises is expected: the record holds it, Celery's log need not tell it again."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.request.called_directly:
            return super().__call__(*args, **kwargs)
        raw = (self.request.headers or {}).get(messages.HEADER)
        if raw is None:
            return self._run_unrecorded(*args, **kwargs)
        try:
            ticket = Ticket.decode(raw)
        except messages.TicketError as exc:
            raise Reject(exc, requeue=False) from exc  # dead-lettered with its bytes
        queue = (self.request.delivery_info or {}).get("routing_key") or DEFAULT_QUEUE
        return execute(ticket, self.request.hostname, self.name, lambda: self.run(*args, **kwargs), queue)

    def _run_unrecorded(self, *args: Any, **kwargs: Any) -> Any:
        _soft_limit.install()
        try:
            return _soft_limit.during(lambda: self.run(*args, **kwargs))
        except Exception:
            log.exception("%s failed, called by a message that is no run's", self.name)
            raise


class Exited(RuntimeError):
    """The target called `sys.exit`, which ends no worker here."""


class OutOfMemory(RuntimeError):
    """The target ran out of memory."""


class _SoftLimit:
    """The soft time limit strikes while a target runs, and only then.

    Billiard raises it wherever the process happens to be; in the middle of a claim or a record it would
    leave a connection in pieces. So here the signal counts only while it is armed. One that came too early
    strikes as soon as it is armed; one that comes after the target's end changes nothing any more. The signal that a
    run is to be cancelled counts only while that very run is armed: it is sent again each second.
    """

    def __init__(self) -> None:
        self.pid: int | None = None
        self.is_armed = False
        self.struck = False
        self.run: UUID | None = None

    def during(self, call: Callable[[], Any], timeout: float = 0, run: UUID | None = None) -> Any:
        """Lets it strike during a call; `timeout` seconds from now, where that is given, without Celery's doing."""
        if self.struck:
            self.struck = False
            raise SoftTimeLimitExceeded
        self.run = run
        self.is_armed = True
        try:
            if timeout:
                signal.signal(signal.SIGALRM, self._strike)  # each time: the last target may have had a use for it
                signal.setitimer(signal.ITIMER_REAL, timeout)
            return call()
        finally:
            self.is_armed = False
            if timeout:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def install(self) -> None:
        """Begins a message: takes the signal over, once in each process, and forgets the last message's."""
        if self.pid != os.getpid() and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, self._strike)
            signal.signal(cancelling.SIGNAL, self._cancel)
            self.pid = os.getpid()
        self.struck = False

    def _strike(self, _signum: int, _frame: FrameType | None) -> None:
        if self.is_armed:
            self.is_armed = False
            raise SoftTimeLimitExceeded
        self.struck = True

    def _cancel(self, _signum: int, _frame: FrameType | None) -> None:
        if self.is_armed and cancelling.is_wanted(self.run):
            self.is_armed = False
            raise Cancelled


_soft_limit = _SoftLimit()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of a target ended: with a result, as JSON, or with what it raised."""

    result: str | None = None
    reason: Reason | None = None
    error: dict[str, Any] | None = None
    raised: Exception | None = None
    after: float | None = None
    """In how many seconds the next attempt is to be, by what it raised: see `verdicts.after`."""


@contextmanager
def named(tell: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Within it each line that this process logs, the target's own included, names the run that this tells of."""
    before = logs.about.set(tell)
    try:
        yield
    finally:
        logs.about.reset(before)


def execute(ticket: Ticket, worker: str, target: str, call: Callable[[], Any], queue: str = DEFAULT_QUEUE) -> Any:
    """Claims the run, calls its target and records the outcome. Raises what the target raises, for Celery's events.

    Raises Ignore where the run is not to be executed: claimed already, cancelled, or superseded.
    """
    with named(ticket.named):
        return _execute(ticket, worker, target, call, queue)


def _execute(ticket: Ticket, worker: str, target: str, call: Callable[[], Any], queue: str) -> Any:
    _soft_limit.install()
    if not _claim(ticket, worker):
        raise Ignore
    if ticket.is_promised:
        metrics.observe(metrics.LATENESS.labels(queue), [late(ticket, clock.now())])
    failpoints.reached("claimed")
    began = time.monotonic()
    result, outcome = attempt(target, ticket, call)
    metrics.observe(metrics.DURATION.labels(target), [time.monotonic() - began])
    failpoints.reached("called")
    if outcome.raised is not None:
        reason, error = outcome.reason or Reason.ERROR, outcome.error or {}
        step = partial(fail, ticket=ticket, reason=reason, error=error, after=outcome.after)
        insist(partial(db.transact, step, planned=True), RECORD_PATIENCE)
        raise outcome.raised
    if not insist(lambda: runs.succeed(ticket, outcome.result), RECORD_PATIENCE):
        refused(ticket)
    failpoints.reached("recorded")
    return result


def late(ticket: Ticket, started_at: datetime) -> float:
    """Seconds from the slot to the start; a machine's clock may be behind PostgreSQL's, by which the slot came."""
    return max(0.0, (started_at - ticket.slot).total_seconds())


def attempt(target: str, ticket: Ticket, call: Callable[[], Any], timeout: float = 0) -> tuple[Any, Outcome]:
    """Calls a target, and notes how long that took. Returns what it returned, and the outcome as it is to be recorded.

    `timeout` in seconds is for a target whose message has no soft limit of its own.
    """
    with traces.attempt(ticket, target) as failed:
        result, outcome = _attempt(target, ticket.run, call, timeout)
        if outcome.raised is not None:
            failed(type(outcome.raised).__name__)
    return result, outcome


def _attempt(target: str, run: UUID, call: Callable[[], Any], timeout: float) -> tuple[Any, Outcome]:
    if timeout:
        _soft_limit.install()  # what came too late for the run before is none of this one's
    began = time.monotonic()
    try:
        result = _soft_limit.during(call, timeout, run)
    except Cancelled as exc:
        return None, Outcome(reason=Reason.ERROR, error=describe(exc, "It was cancelled while it ran."), raised=exc)
    except SoftTimeLimitExceeded as exc:
        error = describe(exc, "It did not end within its timeout.")
        return None, Outcome(reason=Reason.TIMEOUT, error=error, raised=exc)
    except MemoryError as exc:
        # Celery would end the whole worker for it, and its neighbours with it
        return None, Outcome(reason=Reason.ERROR, error=describe(exc), raised=OutOfMemory())
    except Exception as exc:  # noqa: BLE001 - a target's own code
        return None, Outcome(reason=Reason.ERROR, error=describe(exc), raised=exc, after=verdicts.after(exc))
    except SystemExit as exc:
        if terminate_handler_fired():  # its process is being ended
            raise
        return None, Outcome(reason=Reason.ERROR, error=describe(exc), raised=Exited(exc.code))
    finally:
        durations.note(target, time.monotonic() - began)
    return result, Outcome(result=None if result is None else cut(result))


def describe(exc: BaseException, message: str | None = None) -> dict[str, Any]:
    """An error as it is stored: without the zero bytes that PostgreSQL refuses, and cut where it is too large."""
    trace = "".join(traceback.format_exception(exc))
    return {
        "type": type(exc).__name__,
        "message": _clean(message or _shown(exc, str))[:MAX_MESSAGE],
        "traceback": _clean(trace)[-MAX_TRACEBACK:],
    }


def cut(result: Any) -> str:
    """A result as it is stored: JSON, and cut where it is over MAX_RESULT bytes, saying so."""
    try:
        text = _clean_json(_encode(result))
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(_clean(_shown(result, repr)))
    size = len(text)  # json.dumps gives ASCII
    if size > MAX_RESULT:
        return json.dumps({"truncated": True, "size": size, "start": text[: MAX_RESULT - 1024]})
    return text


def _claim(ticket: Ticket, worker: str) -> bool:
    try:
        return insist(lambda: runs.claim(ticket, worker), CLAIM_PATIENCE)
    except errors.Unavailable as exc:
        raise Reject(exc, requeue=True) from exc


def reject(ticket: Ticket, worker: str, reason: Reason, error: dict[str, Any]) -> None:
    """Fails a run that can never be called here. One that somebody else has claimed is theirs, and left alone."""
    if runs.claim(ticket, worker):
        _record_killed(ticket, worker, reason, error)


def _record_killed(ticket: Ticket, _worker: str, reason: Reason, error: dict[str, Any]) -> None:
    """Records the end of an attempt whose process was killed."""
    with db.transaction(planned=True) as session:
        fail(session, ticket, reason, error)


def fail(session: Session, ticket: Ticket, reason: Reason, error: dict[str, Any], after: float | None = None) -> None:
    """Records that an attempt failed, and says what becomes of the run."""
    draw = random.random()  # noqa: S311 - spreads retries, guards nothing
    state = attempts.fail(session, ticket, reason, error, draw, after=after)
    if state is None:
        refused(ticket)
    else:
        log.warning("run %s is %s: attempt %d: %s", ticket.run, state, ticket.attempt, error["type"])


def refused(ticket: Ticket) -> None:
    """Says that an outcome came too late."""
    log.warning("the outcome of run %s is refused: attempt %d was superseded", ticket.run, ticket.attempt)


def insist(step: Callable[[], Answer], patience: timedelta) -> Answer:
    """Does a step, a transaction of its own, again and again while PostgreSQL is away.

    Raises Unavailable when the patience is at its end.

    A step whose commit was done but not heard of is seen as superseded when it is repeated, which is harmless.
    """
    end = time.monotonic() + patience.total_seconds()
    pause = 0.05
    while True:
        try:
            return step()
        except errors.Unavailable:
            if time.monotonic() > end:
                raise
            time.sleep(pause)
            pause = min(1.0, pause * 2)


def _shown(value: object, how: Callable[[object], str]) -> str:
    """A value in words, even where its own words fail."""
    try:
        return how(value)
    except Exception:  # noqa: BLE001 - a target's own code
        return f"<{type(value).__name__} that cannot be shown>"


def _clean(text: str) -> str:
    return text.replace("\0", "\N{SYMBOL FOR NULL}").encode(errors="replace").decode()


def _clean_json(text: str) -> str:
    """JSON without escaped zero bytes and lone surrogates, neither of which PostgreSQL stores."""
    if "\\u0000" not in text and "\\ud" not in text:
        return text
    return json.dumps(_scrub(json.loads(text)))


def _scrub(value: Any) -> Any:
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, list):
        return [_scrub(item) for item in value]
    if isinstance(value, dict):
        return {_clean(key): _scrub(item) for key, item in value.items()}
    return value
