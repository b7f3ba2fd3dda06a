"""Notifications: incidents that opened or are over are told, once, by runs of Punctual's own.

A notice is a run of a system task for each channel: it is recorded, retried and shown as any other run. It is made in
the transaction that notes that it was told, so none is lost and none doubled. What is told, and when, is decided by
`app.notices`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ARRAY, Boolean, Text, Uuid, any_, bindparam, cast, func, select, tuple_, update
from sqlalchemy.orm import Session

from app import db, models, nodes, notices, outbox, planning, runs, settings, system
from app.messages import CALLS_QUEUE, DEFAULT_QUEUE, EMAIL, WEBHOOK, Message
from app.models import Incident, Run, Task
from app.notices import Audience, Said
from app.states import Told, Trigger, Trouble

MOST = 10_000
"""Incidents that are told of in one transaction."""

RETRY = {"max_attempts": 60, "backoff": 10, "backoff_max": 900, "jitter": True}
"""Hours: a server of mails that is away for the night is no reason to lose what was said."""

TIMEOUT = 60
CHANNELS = {WEBHOOK: "Tells of incidents by a signed webhook.", EMAIL: "Tells of incidents by e-mail."}


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    """Incidents of tasks that name the same people: since when the first of them waits to be told."""

    notify: Mapping[str, Any] | None
    text: str
    """`notify` as PostgreSQL writes it; empty for none."""
    since: datetime


def tell(session: Session, now: datetime) -> list[Message]:
    """Makes the notices that are due and says what to send. One beat at a time: another one would not know yet what
    was said."""
    waiting = _look(session)
    if not waiting or not db.is_alone(session, db.Lock.NOTIFY):
        return []
    queues = {target: _queue(session, target) for target in CHANNELS}
    due = _due(session, now, waiting, {target for target, queue in queues.items() if queue})
    told: list[tuple[Any, Told | None, UUID | None]] = []
    messages = []
    for to, rows in _by_audience(session, due).items():
        steps = [(row, _step(row, to)) for row in rows]
        for kind in (Told.OPENED, Told.CLOSED):
            id, those = uuid4(), [row for row, step in steps if step == kind]  # noqa: A001
            told += [(row, kind, id) for row in those]
            if those and to.is_anybody:
                notice = notices.compose(to.key, kind, str(id), now, those, _errors(session, those))
                messages += [_make(session, now, queues, *each) for each in _deliveries(to, notice)]
        told += [(row, step, None) for row, step in steps if step in {None, Told.NOTHING}]
    _note(session, told)
    return messages


def recipient(session: Session, key: str, task_ids: Iterable[UUID]) -> str | None:
    """The webhook of the tasks that name this audience; None where none does any more."""
    named = select(Task.notify).where(Task.id.in_(task_ids), Task.notify.is_not(None))
    for notify in session.scalars(named):
        if notify and notices.fingerprint(notify) == key:
            return str(notify["webhook"]) if notify["webhook"] else None
    return None


def _look(session: Session) -> list[_Waiting]:
    rows = session.execute(
        select(Task.notify, _NOTIFY.label("text"), func.min(Incident.changed_at).label("since"))
        .join_from(Incident, Task, Task.id == Incident.task_id)
        .where(Incident.untold)
        .group_by(Task.notify)
    )
    return [_Waiting(notify=row.notify, text=row.text, since=row.since) for row in rows]


def _due(session: Session, now: datetime, waiting: Sequence[_Waiting], can: set[str]) -> list[str]:
    """Which of them are to be told now, by `text`: those of an audience together. Where no worker can take a notice it
    waits; where nobody is to be told, nothing does."""
    config = settings.load()
    said = _said(session, now)
    together: dict[Audience, list[_Waiting]] = defaultdict(list)
    for each in waiting:
        together[notices.audience(each.notify, config)].append(each)
    due = []
    for to, those in together.items():
        is_due = notices.is_due(now, min(each.since for each in those), said.get(to.key, Said()))
        if not to.is_anybody or (_wants(to) <= can and is_due):
            due += [each.text for each in those]
    return due


def _wants(to: Audience) -> set[str]:
    """The targets that it takes to reach an audience."""
    return {target for target, wanted in ((WEBHOOK, to.webhook), (EMAIL, to.email)) if wanted}


def _said(session: Session, now: datetime) -> dict[str, Said]:
    """What each audience was told lately, by its key."""
    key, id = (Run.kwargs["notice"][name].astext for name in ("audience", "id"))  # noqa: A001
    ours = select(Task.id).where(models.is_system(Task), Task.target.in_(CHANNELS))
    rows = session.execute(
        select(key.label("key"), func.count(id.distinct()).label("number"), func.max(Run.fired_at).label("last_at"))
        .where(Run.task_id.in_(ours), Run.scheduled_for > now - notices.REMEMBERED)
        .group_by(key)
    )
    return {row.key: Said(count=row.number, last_at=row.last_at) for row in rows}


def _by_audience(session: Session, due: Sequence[str]) -> dict[Audience, list[Any]]:
    """The incidents that are to be told of. One that is being reported or closed right now is told a moment later."""
    config = settings.load()
    found: dict[Audience, list[Any]] = defaultdict(list)
    rows = db.execute(session, _UNTOLD, {"due": due, "limit": MOST}) if due else ()
    for row in rows:
        found[notices.audience(row.notify, config)].append(row)
    return found


def _step(row: Any, to: Audience) -> Told | None:
    wanted = to.is_anybody and notices.is_wanted(row.notify, row.kind, settings.load())
    return notices.step(row.told, is_open=row.closed_at is None, wanted=wanted)


def _errors(session: Session, rows: Sequence[Any]) -> dict[UUID, Any]:
    """By what the runs failed that are about to be named."""
    failed = [(row.run_id, row.scheduled_for) for row in rows if row.kind == Trouble.FAILED][: notices.NAMED]
    query = select(Run.id, Run.error).where(tuple_(Run.id, Run.scheduled_for).in_(failed), Run.error.is_not(None))
    return {row.id: row.error for row in session.execute(query)}


def _deliveries(to: Audience, notice: Any) -> Iterable[tuple[str, dict[str, Any]]]:
    """A run for each channel and address, so that one that fails is retried alone: its target, and its kwargs."""
    if to.webhook:
        yield WEBHOOK, {"notice": notice}
    for address in to.email:
        yield EMAIL, {"notice": notice, "to": address}


def _queue(session: Session, target: str) -> str | None:
    """The queue on which workers can take a notice; None while there is none."""
    can = nodes.offering(session, target) - settings.load().external_queues
    return min(can, key=lambda queue: (queue != DEFAULT_QUEUE, queue == CALLS_QUEUE, queue), default=None)


def _make(
    session: Session, now: datetime, queues: Mapping[str, str | None], target: str, kwargs: dict[str, Any]
) -> Message:
    """Records a run of a notice."""
    queue = queues[target]
    assert queue is not None
    task = session.get_one(
        Task,
        system.register(
            session,
            now,
            f"{target}.{queue}",
            has_slots=False,
            description=CHANNELS[target],
            target=target,
            queue=queue,
            priority=9,
            schedule={"type": "now"},
            retry=RETRY,
            timeout=TIMEOUT,
        ),
    )
    for slot in (planning.whole(now) + timedelta(milliseconds=n, microseconds=1) for n in count()):
        new = runs.NewRun(id=uuid4(), task=task, slot=slot, trigger=Trigger.MANUAL, kwargs=kwargs)
        if runs.record(session, now, [new]):  # else another notice has this very millisecond
            break
    return outbox.message(task, new)


def _note(session: Session, told: Sequence[tuple[Any, Told | None, UUID | None]]) -> None:
    """Notes what was told, and what is still to be."""
    if not told:
        return
    rows = [
        (row.id, step or row.told, notices.step(step or row.told, is_open=row.closed_at is None, wanted=True), id)
        for row, step, id in told  # noqa: A001
    ]
    given = db.arrays(
        "said",
        id=(row[0] for row in rows),
        told=(row[1] for row in rows),
        untold=(row[2] is not None for row in rows),
        by=(row[3] if row[1] == Told.OPENED else None for row in rows),
    )
    db.execute(session, _NOTE, given)


_NOTIFY = func.coalesce(cast(Task.notify, Text), "")
_UNTOLD = (
    select(
        Incident.id,
        Incident.kind,
        Incident.task_id,
        Incident.task_name,
        Incident.run_id,
        Incident.scheduled_for,
        Incident.note,
        Incident.count,
        Incident.reopened,
        Incident.opened_at,
        Incident.closed_at,
        Incident.told,
        Incident.told_by,
        Task.notify,
    )
    .join(Task, Task.id == Incident.task_id)
    .where(Incident.untold, any_(bindparam("due", type_=ARRAY(Text()))) == _NOTIFY)
    .order_by(Incident.changed_at)
    .limit(bindparam("limit"))
    .with_for_update(of=Incident, skip_locked=True)
)
_said_rows = db.rows("said", id=Uuid(), told=Text(), untold=Boolean(), by=Uuid())
_NOTE = (
    update(Incident)
    .where(Incident.id == _said_rows.c.id)
    .values(
        told=_said_rows.c.told,
        untold=_said_rows.c.untold,
        told_by=func.coalesce(_said_rows.c.by, Incident.told_by),
        changed_at=func.statement_timestamp(),
    )
)
