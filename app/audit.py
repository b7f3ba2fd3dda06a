"""The audit log: each change that a person or an app made of a task, a run or a key, chained by hashes.

A use case notes its change in its own transaction, so the log holds what was done and nothing else. What Punctual does
by itself is not noted: its runs say that. The chain is forged a second later by a chore, one link after the other, so
that no two changes wait for each other. Whoever reads the log over REST can check it: see `digest`.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from app import actors, db, fields
from app.models import JSON, ApiKey, AuditEntry, Run, Task
from app.states import Action, Subject

Row = Task | Run | ApiKey
Sides = tuple[JSON | None, JSON | None]
"""What stood there before, and what stands there now."""

SUBJECTS: dict[type[Row], Subject] = {Task: Subject.TASK, Run: Subject.RUN, ApiKey: Subject.KEY}

PLAIN = frozenset({str, int, bool, dict, list, type(None)})
"""Kinds of value that are JSON as they are."""

FIRST = "0" * 64
"""What stands before the first link."""

BATCH = 1_000

_TASK = {
    "name": "name",
    "description": "description",
    "labels": "labels",
    "target": "target",
    "args": "args",
    "kwargs": "kwargs",
    "queue": "queue",
    "priority": "priority",
    "schedule": "schedule",
    "starts_at": "starts_at",
    "ends_at": "ends_at",
    "max_runs": "max_runs",
    "jitter": "jitter",
    "overlap": "overlap",
    "catchup_policy": "catchup.policy",
    "catchup_window": "catchup.window",
    "max_attempts": "retry.max_attempts",
    "backoff": "retry.backoff",
    "backoff_max": "retry.backoff_max",
    "backoff_jitter": "retry.jitter",
    "timeout": "timeout",
    "pause_after_failures": "pause_after_failures",
    "notify": "notify",
    "state": "state",
    "note": "note",
}
_RUN = {"state": "state", "reason": "reason", "cancel_reason": "cancelling", "attempt": "attempt"}
_KEY = {
    name: name for name in ("name", "role", "queues", "labels", "max_tasks", "expires_at", "revoked_at")
}  # never its digest
NOTED: dict[type[Row], dict[str, str]] = {Task: _TASK, Run: _RUN, ApiKey: _KEY}
"""The columns that are noted, by REST's words for them."""


def snapshot(row: Any, kind: type[Row] | None = None) -> JSON:
    """What is noted of a row, as JSON."""
    return {
        word: value if (value := getattr(row, column)).__class__ in PLAIN else _plain(value)
        for column, word in NOTED[kind or type(row)].items()
    }


@contextmanager
def noting(session: Session, now: datetime, action: Action, rows: Sequence[Row]) -> Iterator[None]:
    """Notes what changes of rows within it. Where nothing does, or nobody acts, there is nothing to note."""
    if actors.of(session) is None:
        yield
        return
    before = [snapshot(row) for row in rows]
    yield
    session.flush()
    changed = [(row, _differing(was, snapshot(row))) for row, was in zip(rows, before, strict=True)]
    note(session, now, action, [row for row, sides in changed if sides], [sides for _, sides in changed if sides])


def note(
    session: Session,
    now: datetime,
    action: Action,
    rows: Sequence[Any],
    sides: Sequence[Sides],
    kind: type[Row] | None = None,
) -> None:
    """Notes what an action did to each of the rows."""
    actor = actors.of(session)
    if actor is None or not rows:
        return
    by = {"at": now, "actor": actor.id, "actor_name": actor.name, "via": actor.via, "address": actor.address}
    entries = [
        by | _subject(row, kind or type(row)) | {"action": action, "before": before, "after": after}
        for row, (before, after) in zip(rows, sides, strict=True)
    ]
    if len(entries) == 1:  # COPY takes a round trip more
        session.execute(insert(AuditEntry), entries)
    else:
        db.copy(session, AuditEntry.__table__, entries)


def created(session: Session, now: datetime, kind: type[Row], rows: Sequence[Any]) -> None:
    """Notes that rows, or what has their attributes, are new."""
    if actors.of(session) is not None:
        note(session, now, Action.CREATE, rows, [(None, snapshot(row, kind)) for row in rows], kind)


def seal(session: Session, limit: int = BATCH) -> int:
    """Links what is not in the chain yet; returns how many entries that were. One beat at a time.

    Entries come in the order of their ids, but those of a transaction that ended late may come after higher ones: the
    chain has positions of its own.
    """
    if not db.is_alone(session, db.Lock.SEAL_AUDIT):
        return 0
    loose = select(AuditEntry).where(AuditEntry.position.is_(None)).order_by(AuditEntry.id).limit(limit)
    entries = session.scalars(loose).all()
    if not entries:
        return 0
    linked = select(AuditEntry.position, AuditEntry.hash).where(AuditEntry.position.is_not(None))
    last = session.execute(linked.order_by(AuditEntry.position.desc()).limit(1)).one_or_none()
    position, previous = (0, FIRST) if last is None else (last.position, last.hash)
    for position, entry in enumerate(entries, position + 1):  # noqa: B020 - goes on from it
        entry.position, entry.previous = position, previous
        entry.hash = previous = digest(shown(entry))
    return len(entries)


def shown(entry: AuditEntry) -> JSON:
    """An entry as REST shows it."""
    return {column.key: _plain(getattr(entry, column.key)) for column in AuditEntry.__table__.columns}


def digest(entry: JSON) -> str:
    """The hash of an entry as REST shows it: of all its fields but `hash` itself, as JSON with sorted keys and no
    spaces, in UTF-8. It names the hash before it, so a change of the past breaks every link behind it."""
    rest = {name: value for name, value in entry.items() if name != "hash"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _differing(before: JSON, after: JSON) -> Sides | None:
    """Both sides of what differs; None where nothing does."""
    words = [word for word, value in after.items() if not fields.is_same(value, before[word])]
    return ({word: before[word] for word in words}, {word: after[word] for word in words}) if words else None


def _subject(row: Any, kind: type[Row]) -> JSON:
    name = row.task_name if kind is Run else row.name
    return {"subject": SUBJECTS[kind], "subject_id": str(row.id), "subject_name": name}


def _plain(value: Any) -> Any:
    """A column's value as JSON has it."""
    if isinstance(value, datetime):
        return fields.instant(value)
    if isinstance(value, timedelta):
        return fields.number(value)
    return str(value) if isinstance(value, UUID | StrEnum) else value
