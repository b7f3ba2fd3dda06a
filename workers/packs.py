"""Packs in a worker: claimed with one statement, called one by one, recorded with one statement.

In the child, `work`. In the worker's main process, `PackRequest`: it keeps the run alive that the child is at, and
where that one hangs or kills the child, it records what had ended and gives back what had not begun.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import Any, Self

from celery import signals
from celery._state import _task_stack
from celery.app.task import Context
from celery.exceptions import Ignore, Reject

from app import db, errors, failpoints, messages, metrics, packs
from app.broker import celery_app
from app.messages import Message, Pack, Ticket
from app.states import Reason
from workers import durations, execution, heartbeat, journal
from workers.journal import Line, Page, Reading

FAILURES = 50
"""How many runs of a pack may fail before it gives the rest back: each failure is recorded by itself, and all of them
are to be recorded well before the worker takes their pack for one that hangs."""

RECORD_EVERY = 0.1
"""Seconds after which ended runs are recorded, though the pack goes on."""

SLACK = 0.2
"""Seconds beyond BEGIN_WITHIN after which the worker gives back what its child has not begun."""

log = logging.getLogger(__name__)


class Working:
    """A pack in a child's hands."""

    def __init__(self, pack: Pack, worker: str) -> None:
        self.pack = pack
        self.worker = worker
        self.page: Page = journal.own()
        self.claimed = 0.0
        self.claimed_at = datetime.min.replace(tzinfo=UTC)
        self.ended: list[Line] = []

    def claim(self) -> set[int]:
        """Claims what can be claimed; returns the positions. A message delivered twice finds nothing."""
        tickets = [message.ticket for message in self.pack.messages]

        def step() -> set[Any]:
            # from before the question: no stamp is ever early, and the time to begin is never too long
            self.claimed = time.monotonic()
            with db.statement() as session:
                taken, at = packs.claim_all(session, tickets, self.worker)
            self.claimed_at = at or self.claimed_at
            return taken

        try:
            taken = execution.insist(step, execution.CLAIM_PATIENCE)
        except errors.Unavailable as exc:
            raise Reject(exc, requeue=True) from exc
        return {position for position, ticket in enumerate(tickets) if ticket.run in taken}

    def run(self, positions: Sequence[int]) -> int:
        """Calls these runs in turn while there is time to begin one, and few failed. Returns how many were begun."""
        self.page.open(self.pack.id, self.claimed, self.claimed_at)
        caller = Caller(self.pack.target, self.worker)
        with execution.named(caller.named), caller:
            return self._run(positions, caller)

    def _run(self, positions: Sequence[int], caller: "Caller") -> int:
        recorded, failed = time.monotonic(), 0
        for begun, position in enumerate(positions):
            # What is next is written before the clock is asked, and the worker asks the clock before it reads that: so
            # what it gives back as not begun is not begun.
            self.page.approach(position)
            if failed >= FAILURES or time.monotonic() > self.claimed + messages.BEGIN_WITHIN.total_seconds():
                return begun
            started_at = self._now()
            self.page.begin(position, started_at)
            failpoints.reached("claimed")
            line = self._call(caller, position, started_at)
            failpoints.reached("called")
            self.ended.append(line)
            failed += line.reason is not None
            if not self.page.add(line) or time.monotonic() > recorded + RECORD_EVERY:
                self.record()
                recorded = time.monotonic()
        return len(positions)

    def record(self) -> None:
        """Records what has ended."""
        lines, self.ended = self.ended, []
        self._measure(lines)
        for step in records(self.pack, lines):
            execution.insist(step, execution.RECORD_PATIENCE)
        self.page.clear()
        failpoints.reached("recorded")

    def _measure(self, lines: Sequence[Line]) -> None:
        took = [(line.finished_at - line.started_at).total_seconds() for line in lines]
        metrics.observe(metrics.DURATION.labels(self.pack.target), took)
        started = [(line.started_at, self.pack.messages[line.position].ticket) for line in lines]
        late = [execution.late(ticket, at) for at, ticket in started if ticket.is_promised]
        metrics.observe(metrics.LATENESS.labels(self.pack.queue), late)

    def give_back(self, positions: Sequence[int]) -> None:
        """Gives back what there was no time for."""
        tickets = [self.pack.messages[position].ticket for position in positions]
        execution.insist(lambda: _give_back(tickets, self.claimed_at), execution.RECORD_PATIENCE)

    def _call(self, caller: "Caller", position: int, started_at: datetime) -> Line:
        outcome = caller.call(self.pack.messages[position])
        return Line(
            position=position,
            started_at=started_at,
            finished_at=self._now(),
            result=outcome.result,
            reason=outcome.reason,
            error=outcome.error,
            after=outcome.after,
        )

    def _now(self) -> datetime:
        """PostgreSQL's clock, as told at the claim and carried on by the monotonic one."""
        return self.claimed_at + timedelta(seconds=time.monotonic() - self.claimed)


def work(pack: Pack, worker: str) -> None:
    """Works through a pack. Raises Ignore where nothing is to do."""
    working = Working(pack, worker)
    positions = sorted(working.claim())
    if not positions:
        raise Ignore
    begun = working.run(positions)
    working.record()
    if begun < len(positions):
        log.info("pack %s: %d of its runs are given back", pack.id, len(positions) - begun)
        working.give_back(positions[begun:])
    # not where something ends this process on the way: then its worker has to read it
    working.page.close()


class Caller:
    """Calls the target of a pack for one run after the other, as Celery does with messages of their own.

    Celery's own stacks of what is under way are told of the pack once and then look at the run at hand, as our logs do:
    to tell them of each run costs more than a quick run does.
    """

    def __init__(self, target: str, worker: str) -> None:
        self.target = target
        self.worker = worker
        self.task = celery_app.tasks.get(target)
        self.ticket: Ticket | None = None

    def __enter__(self) -> Self:
        if self.task is not None:
            self.task.request_stack.push(None)
            _task_stack.push(self.task)
            self.requests = self.task.request_stack.stack
            self.own = len(self.requests) - 1
        return self

    def __exit__(self, *_: object) -> None:
        if self.task is not None:
            _task_stack.pop()
            self.task.request_stack.pop()

    def call(self, message: Message) -> execution.Outcome:
        """Calls it for this run."""
        task = self.task
        if task is None:
            absent = LookupError(f"no target {self.target!r} on this worker")
            return execution.Outcome(reason=Reason.REJECTED, error=execution.describe(absent), raised=absent)
        self.ticket = message.ticket
        del self.requests[self.own + 1 :]  # what a call left there that its soft limit struck
        told = {"task_id": str(message.id), "task": task, "args": message.args, "kwargs": message.kwargs}
        self.requests[self.own] = Context(
            id=told["task_id"],
            task=task.name,
            args=message.args,
            kwargs=message.kwargs,
            retries=message.ticket.attempt - 1,
            hostname=self.worker,
            called_directly=False,
            delivery_info={},
            headers={messages.HEADER: message.ticket.encode()},
        )
        signals.task_prerun.send(sender=task, **told)
        result, outcome = execution.attempt(
            task.name,
            message.ticket,
            lambda: task.run(*message.args, **message.kwargs),
            message.timeout.total_seconds(),
        )
        retval, state = (outcome.raised, "FAILURE") if outcome.raised else (result, "SUCCESS")
        signals.task_postrun.send(sender=task, retval=retval, state=state, **told)
        self.ticket = None
        return outcome

    def named(self) -> dict[str, Any]:
        """The run at hand, for logs; nothing between two."""
        return self.ticket.named() if self.ticket else {}


def records(pack: Pack, lines: Sequence[Line]) -> Iterator[Callable[[], None]]:
    """The steps that record ended runs of a pack, each a transaction of its own: those that returned together, and each
    that failed by itself. Doing one twice does no harm."""
    returned = [line for line in lines if line.reason is None]
    if returned:
        yield partial(_succeed, pack=pack, lines=returned)
    for line in lines:
        if line.reason is not None:
            ticket = pack.messages[line.position].ticket
            how: dict[str, Any] = {"reason": Reason(line.reason), "error": line.error or {}, "after": line.after}
            yield partial(_fail, ticket=ticket, at=line.started_at, **how)


def _succeed(pack: Pack, lines: Sequence[Line]) -> None:
    done = [
        packs.Done(
            ticket=pack.messages[line.position].ticket,
            started_at=line.started_at,
            finished_at=line.finished_at,
            result=line.result,
        )
        for line in lines
    ]
    with db.statement() as session:
        moved = packs.succeed_all(session, done)
    for late in (each.ticket for each in done if each.ticket.run not in moved):
        execution.refused(late)


def _fail(ticket: Ticket, at: datetime, **how: Any) -> None:
    with db.transaction(planned=True) as session:
        packs.begin_all(session, [(ticket, at)])
        execution.fail(session, ticket, **how)


def _give_back(tickets: Sequence[Ticket], claimed_at: datetime) -> int:
    with db.statement() as session:
        return packs.give_back(session, tickets, claimed_at)


class PackRequest(execution.RecordedRequest):
    """A pack in the worker's main process, which looks after it while a child works on it."""

    @cached_property
    def pack(self) -> Pack:
        return Pack.decode(self.args[0])

    @property
    def argsrepr(self) -> str:
        content = self.args[0]  # as it came: to make the pack of it takes long, and few of them are ever looked into
        return f"{len(content['runs'])} runs of {content['target']}"

    def in_hand(self) -> list[Ticket]:
        """The run that the child is at."""
        reading = self._read()
        return [self.pack.messages[reading.begun].ticket] if reading and reading.begun >= 0 else []

    def look_after(self) -> None:
        """Notes that the run has begun that the child is at; where it hangs, lets its neighbours go."""
        asked = time.monotonic()
        reading = self._read()
        if reading is None or reading.begun < 0:
            return
        with db.statement() as session:
            packs.begin_all(session, [(self.pack.messages[reading.begun].ticket, reading.began_at)])
        if asked > reading.claimed + messages.BEGIN_WITHIN.total_seconds() + SLACK:
            self._settle(reading, reading.next + 1)  # the child itself sees to the one that is next
            durations.tell({self.pack.target: asked - reading.claimed})  # nobody is to pack such runs again

    def _read(self) -> Reading | None:
        return journal.read(self.pack.id, self.worker_pid or 0)

    def _record(self, reason: Reason, error: dict[str, Any]) -> None:
        """The child is gone: the run that it was at failed by that, and its neighbours did not."""
        reading = self._read()
        if reading is not None:
            heartbeat.defer(lambda: self._end(reading, reason, error))

    def _end(self, reading: Reading, reason: Reason, error: dict[str, Any]) -> None:
        self._settle(reading, reading.begun + 1)
        if reading.begun >= 0 and reading.begun not in {line.position for line in reading.lines}:
            _fail(self.pack.messages[reading.begun].ticket, reading.began_at, reason=reason, error=error)

    def _settle(self, reading: Reading, first: int) -> None:
        """Records what had ended, and gives back what had not begun, from `first` on. Twice does no harm."""
        for step in records(self.pack, reading.lines):
            step()
        rest = [message.ticket for message in self.pack.messages[first:]]
        if rest and (count := _give_back(rest, reading.claimed_at)):
            log.warning("pack %s: %d runs behind a slow or a dead one are given back", self.id, count)


class _PackTask(execution.RecordedTask):
    Request = "workers.packs:PackRequest"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)  # each of its runs is claimed, limited and recorded by itself


@celery_app.task(name=messages.PACK, base=_PackTask, bind=True)  # type: ignore[untyped-decorator]
def pack(self: Any, content: dict[str, Any]) -> None:
    """Works through many runs of one target."""
    try:
        given = Pack.decode(content)
    except messages.TicketError as exc:
        raise Reject(exc, requeue=False) from exc
    work(given, self.request.hostname)
