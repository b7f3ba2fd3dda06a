"""What is told of incidents, to whom, and when. Pure.

People keep notifications switched on that are few. So what opens within seconds is told together; the more was said to
somebody within the hour, the longer the next notice waits for company; and what comes and goes is told of once.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from app import fields
from app.settings import Settings
from app.states import Told, Trouble

NAMED = 20
"""Incidents that a notice names; of the others it says how many."""

BUNDLE = timedelta(seconds=5)
LONGEST = timedelta(minutes=10)
"""How long a notice waits for company: at first, and at most. Each that was given within REMEMBERED doubles it: about a
dozen in an hour."""

REMEMBERED = timedelta(hours=1)

DEFAULT = "default"
MESSAGE = 300
"""Characters of what a run failed by."""


@dataclass(frozen=True, kw_only=True)
class Audience:
    """Who is told together."""

    key: str
    """Names it in runs, which anybody may read who may read runs: so without the address of a webhook in it."""
    webhook: bool
    email: tuple[str, ...]

    @property
    def is_anybody(self) -> bool:
        return self.webhook or bool(self.email)


@dataclass(frozen=True, kw_only=True)
class Said:
    """What an audience was told lately."""

    count: int = 0
    last_at: datetime | None = None


def audience(notify: Mapping[str, Any] | None, config: Settings) -> Audience:
    """Who is told of the incidents of a task."""
    if notify and (notify["webhook"] or notify["email"]):
        return Audience(key=fingerprint(notify), webhook=bool(notify["webhook"]), email=tuple(sorted(notify["email"])))
    return Audience(key=DEFAULT, webhook=config.PUNCTUAL_NOTIFY_WEBHOOK is not None, email=config.PUNCTUAL_NOTIFY_EMAIL)


def fingerprint(notify: Mapping[str, Any]) -> str:
    """Stands for whom a task names, and tells nothing of it."""
    named = json.dumps([notify["webhook"], sorted(notify["email"])])
    return hashlib.sha256(named.encode()).hexdigest()[:16]


def is_wanted(notify: Mapping[str, Any] | None, kind: str, config: Settings) -> bool:
    """Whether anybody asked to be told of this kind of incident."""
    return kind in (config.PUNCTUAL_NOTIFY_ON if notify is None else notify["on"])


def step(told: str | None, *, is_open: bool, wanted: bool) -> Told | None:
    """What is to be told next of an incident; None: nothing. One that was over before anybody was told of it is told in
    two steps, so that nobody hears of its end alone."""
    if told is None:
        return Told.OPENED if wanted else Told.NOTHING
    if told == Told.OPENED:
        return None if is_open else Told.CLOSED
    return Told.OPENED if told == Told.CLOSED and is_open else None


def is_due(now: datetime, since: datetime, said: Said) -> bool:
    """Whether an audience is to be told now of what waits for it since then."""
    if now - since < BUNDLE:
        return False
    return said.last_at is None or now - said.last_at >= pause(said.count)


def pause(count: int) -> timedelta:
    """Between two notices, where so many were given within the hour."""
    doublings = min(count, 20)  # beyond any bound, and below what overflows
    return min(timedelta(seconds=BUNDLE.total_seconds() * 2**doublings), LONGEST)


def compose(key: str, told: Told, id: str, now: datetime, rows: Sequence[Any], errors: Mapping[Any, Any]) -> Any:  # noqa: A002
    """A notice as it is kept with its runs, as JSON: the same in each attempt. `errors` are those of runs, by id."""
    first = sorted(rows, key=lambda row: (row.opened_at, row.task_name))[:NAMED]
    notice = {
        "id": id,
        "audience": key,
        "type": f"incident.{told}",
        "at": fields.instant(now),
        "tasks": len({row.task_id for row in rows}),
        "total": len(rows),
        "kinds": dict(Counter(row.kind for row in rows)),
        "incidents": [_item(row, errors.get(row.run_id)) for row in first],
    }
    if told == Told.CLOSED:
        notice["answers"] = sorted({str(row.told_by) for row in first if row.told_by})
    return notice


def _item(row: Any, error: Mapping[str, Any] | None) -> dict[str, Any]:
    """An incident of a notice."""
    return {
        "id": str(row.id),
        "kind": row.kind,
        "task_id": str(row.task_id),
        "task_name": row.task_name,
        "run_id": str(row.run_id) if row.run_id else None,
        "scheduled_for": _instant(row.scheduled_for),
        "opened_at": fields.instant(row.opened_at),
        "closed_at": _instant(row.closed_at),
        "count": row.count,
        "reopened": row.reopened,
        "why": _why(row, error),
    }


def _why(row: Any, error: Mapping[str, Any] | None) -> str | None:
    if row.kind == Trouble.FAILED and error:
        return f"{error['type']}: {error['message']}".strip()[:MESSAGE]
    return None if row.note is None else row.note[:MESSAGE]


def _instant(moment: datetime | None) -> str | None:
    return None if moment is None else fields.instant(moment)
