"""Packs: which short runs share a message, how many, and their moves in bulk.

Celery's own cost per message and two commits per run bound a worker; one message that carries many runs is claimed
with one statement and recorded with one. Each run keeps its own stamps, result and error.
"""

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import DateTime, Text, bindparam, cast, func, null, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from app import db, errors, keys, moves, nodes, settings
from app.messages import Message, Pack, Parcel, Ticket
from app.models import Run, Target
from app.states import CLAIMABLE, RunState

WORK = 0.2
"""Seconds of work in a pack at most, by how long runs of its target took lately."""

MAX_RUNS = 500
MAX_BYTES = 512 * 1024

FEW = 16
"""Fewer runs of a target than this are not spread: each may as well have a process of its own."""

MESSAGE = 0.005
"""Seconds that a message of its own costs its worker, about: less work than that always travels together."""

PER_PROCESS = 2
"""Packs that each process gets of a batch before packs grow: one that is slow then holds up half of its share."""

FRESH = 2.0
"""Seconds for which what was read of the targets holds."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long runs of each target take, in seconds, as its workers saw lately, and how many processes work on each
    queue. Targets without a figure are not packed: unknown ones, those of other apps, and those that declare that
    they must not be."""

    durations: Mapping[str, float]
    processes: Mapping[str, int]


class _Known:
    """What was read last. Threads may read it anew at the same time, which does no harm."""

    pace = Pace(durations={}, processes={})
    until = -math.inf


def pace() -> Pace:
    """How long runs take now. Where PostgreSQL is away: as last known."""
    if time.monotonic() >= _Known.until:
        try:
            _Known.pace = _read()
        except errors.Unavailable:
            return _Known.pace
        _Known.until = time.monotonic() + FRESH
    return _Known.pace


def _read() -> Pace:
    with db.transaction() as session:
        known = session.execute(select(Target.name, Target.duration)).all()
        processes = nodes.processes(session)
    durations = {name: duration.total_seconds() for name, duration in known if duration is not None}
    return Pace(durations=durations, processes=processes)


def pack(messages: Sequence[Message], pace: Pace) -> list[Parcel]:
    """Puts messages together, in their order, that may travel so: first attempts of one quick target, of which there
    are many. The others go by themselves, and so does all that another app is to read, whatever a worker of ours told
    of its target."""
    theirs = settings.load().external_queues
    parcels: list[Parcel] = []
    alike: dict[tuple[str, str, int], list[Message]] = defaultdict(list)
    for message in messages:
        if message.target in pace.durations and message.ticket.attempt == 1 and message.queue not in theirs:
            alike[kind(message)].append(message)
        else:
            parcels.append(message)
    for (target, queue, _), group in alike.items():
        size = _size(len(group), pace.durations[target], pace.processes.get(queue) or 1)
        parcels += parts(group, size) if size > 1 else group
    return parcels


def kind(message: Message) -> tuple[str, str, int]:
    """What the messages of a pack have in common: target, queue and priority."""
    return message.target, message.queue, message.priority


def is_worth_it(messages: Sequence[Message]) -> bool:
    """Whether to look at all."""
    return len(messages) > 1 and settings.load().PUNCTUAL_PACKS


class Done(NamedTuple):
    """A run of a pack that returned: when by PostgreSQL's clock, and what, as JSON."""

    ticket: Ticket
    started_at: datetime
    finished_at: datetime
    result: str | None


def claim_all(session: Session, tickets: Sequence[Ticket], worker: str) -> tuple[set[UUID], datetime | None]:
    """Takes the runs of a pack for this worker, before it knows when each will start. Returns those that it got, and
    when that was by PostgreSQL's clock."""
    sent_at = [ticket.sent_at for ticket in tickets]
    taken = db.execute(session, _CLAIM_ALL, keys.given(tickets, sent_at=sent_at) | {"a_worker": worker}).all()
    return {row.id for row in taken}, taken[0].heartbeat_at if taken else None


def begin_all(session: Session, started: Sequence[tuple[Ticket, datetime]]) -> None:
    """Notes when runs of a pack started. What never does so counts as not begun: see `give_back` and `rescue_lost`."""
    tickets = [ticket for ticket, _ in started]
    db.execute(session, _BEGIN_ALL, keys.given(tickets, started_at=[at for _, at in started]))


def succeed_all(session: Session, done: Sequence[Done]) -> set[UUID]:
    """Records runs of a pack that returned. The ids that are missing in the answer were superseded."""
    given = keys.given(
        [each.ticket for each in done],
        started_at=[each.started_at for each in done],
        finished_at=[each.finished_at for each in done],
        result=[each.result for each in done],
    )
    succeeded = set(db.execute(session, _SUCCEED_ALL, given).scalars().all())
    moves.tell_after(session, [each.ticket for each in done if each.ticket.run in succeeded], RunState.SUCCEEDED)
    return succeeded


def give_back(session: Session, tickets: Sequence[Ticket], claimed_at: datetime) -> int:
    """Makes runs of a pack pending again that were claimed at that moment and never begun; `publish_pending` sends
    them. Returns how many there were.

    The attempt stays the same, so what fences is the stamp of the very claim: somebody else's claim of a run that was
    given back before has another one.
    """
    return db.execute(session, _GIVE_BACK, keys.given(tickets) | {"claimed_at": claimed_at}).rowcount


def most(duration: float) -> int:
    """How many runs that take so long a pack may hold."""
    return int(WORK / max(duration, WORK / MAX_RUNS))


def _size(count: int, duration: float, processes: int) -> int:
    """How many runs of as many that are due a pack is to hold."""
    spread = 1 if count < FEW else math.ceil(count / (processes * PER_PROCESS))
    return min(max(spread, int(MESSAGE / max(duration, WORK / MAX_RUNS))), most(duration))


def parts(group: Sequence[Message], size: int) -> Iterator[Parcel]:
    """Packs of `size` runs, or fewer where their arguments are large."""
    part: list[Message] = []
    weight = 0
    for message in group:
        own = len(json.dumps([message.args, message.kwargs])) if message.args or message.kwargs else 0
        if part and (len(part) >= size or weight + own > MAX_BYTES):
            yield _together(part)
            part, weight = [], 0
        part.append(message)
        weight += own
    if part:
        yield _together(part)


def _together(part: Sequence[Message]) -> Parcel:
    return Pack.of(part) if len(part) > 1 else part[0]


# Built once.
_sent = keys.attempts(sent_at=DateTime(timezone=True))
_CLAIM_ALL = (
    update(Run)
    .where(keys.at(_sent, CLAIMABLE))
    .values(
        state=RunState.RUNNING,
        worker=bindparam("a_worker"),
        published_at=func.coalesce(Run.published_at, _sent.c.sent_at),
        heartbeat_at=func.statement_timestamp(),
    )
    .returning(Run.id, Run.heartbeat_at)
)

_started = keys.attempts(started_at=DateTime(timezone=True))
_BEGIN_ALL = (
    update(Run)
    .where(keys.at(_started, {RunState.RUNNING}))
    .values(
        started_at=func.coalesce(Run.started_at, _started.c.started_at),
        attempt_started_at=_started.c.started_at,
        heartbeat_at=func.statement_timestamp(),
    )
)

_done = keys.attempts(started_at=DateTime(timezone=True), finished_at=DateTime(timezone=True), result=Text())
_SUCCEED_ALL = (
    update(Run)
    .where(keys.at(_done, {RunState.RUNNING}))
    .values(
        state=RunState.SUCCEEDED,
        result=cast(_done.c.result, JSONB),
        error=null(),
        started_at=func.coalesce(Run.started_at, _done.c.started_at),
        attempt_started_at=_done.c.started_at,
        finished_at=_done.c.finished_at,
    )
    .returning(Run.id)
)

_GIVE_BACK = (
    update(Run)
    .where(
        keys.at(keys.attempts(), {RunState.RUNNING}),
        Run.attempt_started_at.is_(None),
        Run.heartbeat_at == bindparam("claimed_at"),
    )
    # not `published_at`: a beat that marks what waits must see that this message was taken
    .values(**keys.released(RunState.PENDING), worker=None, heartbeat_at=None)
)
