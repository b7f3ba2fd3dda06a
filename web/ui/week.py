"""The week ahead as a heat map, and calendars for other programs."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import flask
from itsdangerous import BadSignature, URLSafeSerializer

from app import db, errors, planning, queries, settings
from app.fields import Instant, instant
from app.forecast import hours
from app.models import Task
from app.states import TaskState
from web import auth
from web import schemas as web_schemas
from web.ui import pages, reading, showing
from web.ui.pages import blp, page

DAYS = 7
SHOWN = 100
"""Schedules of an hour, the most runs first."""

EVENTS = 50
"""Slots of one task in a calendar."""

MANY, MOST = 100, 1_000
"""Tasks in a calendar of some, the soonest first, and slots in it."""

FOLD = 73
"""Octets of a calendar's line, after which it goes on in the next one."""


class FilterSchema(web_schemas.TasksQuerySchema):
    """Which tasks, and which hour of the week is looked at."""

    hour = Instant()


@blp.get("/week")
def week() -> flask.Response:
    """Shows how much falls on each hour of the next seven days, until this hour comes again."""
    asked = pages.asked()
    wanted, problems = reading.filters(FilterSchema(), asked)
    named = {name: wanted[name] for name in ("q", "target", "label") if name in wanted}
    with auth.reading() as session:
        now = db.now(session)
        due = hours.read(session, now, DAYS, queries.like(**named))
        targets = [each.target.name for each in queries.targets(session)]
    found = hours.look(due, DAYS)  # after the transaction: it may take its time
    at = wanted.get("hour")
    hour = (at - found.start) // timedelta(hours=1) if at and found.start <= at < found.end else None
    groups = [] if hour is None else found.at(hour)[:SHOWN]
    with auth.transaction() as session:
        examples = hours.examples(session, found, groups)
    return page(
        "week",
        found=found,
        rows=list(_rows(found)),
        total=sum(found.loads),
        asked=asked,
        problems=problems,
        targets=targets,
        hour=hour,
        hour_at=None if hour is None else found.start + timedelta(hours=hour),
        due=[(group, examples.get((group.source, group.first), "")) for group in groups],
        calendar=calendar_address(**{name: asked[name] for name in named}),
    )


@blp.get("/calendar/<token>.ics")
def calendar(token: str) -> flask.Response:
    """The next slots of a task, or of some, for a program that has no session: the address itself is the key to it."""
    given = _opened(token)
    with db.transaction(by=auth.as_key(given["by"]) if "by" in given else None) as session:
        now = db.now(session)
        if "task" in given:
            chosen = [queries.task(session, UUID(given["task"]))]
        else:
            wanted, problems = reading.filters(web_schemas.TasksQuerySchema(), given)
            if problems:
                raise errors.NotFound
            chosen = queries.tasks(session, **wanted | {"order": "next", "limit": MANY}).items
    events = sorted(_events(chosen, now), key=lambda event: event[0])
    text = "".join(f"{each}\r\n" for each in _calendar(given.get("name", "Punctual"), events[:MOST], now))
    return flask.Response(text, content_type="text/calendar; charset=utf-8")


def _events(chosen: Sequence[Task], now: datetime) -> Iterator[tuple[datetime, Task]]:
    for task in chosen:
        if task.state == TaskState.ACTIVE:
            with suppress(errors.Invalid):  # one that cannot be computed is none of the others'
                yield from ((slot, task) for slot in planning.coming(task, now, EVENTS))


def calendar_address(**given: str) -> str:
    """Where a calendar is: of the `task` of an id, or of those that filters of the list choose; `name` is its title.

    It shows what the key sees that it was made with. It is void when that key ends, and when the administrator's key or
    the SECRET_KEY is not the one any more that it was made with.
    """
    actor = auth.actor()
    by = {"by": actor.key} if actor and actor.key else {}
    return flask.url_for("ui.calendar", token=next(_signers()).dumps(given | by), _external=True)


def _opened(token: str) -> dict[str, str]:
    """What a calendar's address says. Raises NotFound where it is none."""
    for signer in _signers():
        with suppress(BadSignature):
            given: dict[str, str] = signer.loads(token)
            return given
    raise errors.NotFound


def _signers() -> Iterator[URLSafeSerializer]:
    """The first is for new addresses."""
    secrets = settings.load().secret_keys[::-1]  # the last one signs
    for mark in auth.administrator_marks():
        # the mark alone would not do: each session's cookie shows it
        yield URLSafeSerializer(list(secrets), salt=f"calendar {mark}")


def _rows(found: hours.Hours) -> Iterator[dict[str, Any]]:
    """A row per day, with 24 hours each; hours before the first one and after the last one stand empty."""
    top = max(found.loads, default=0)
    lead = found.start.hour
    for day in range(DAYS + 1):
        date = (found.start - timedelta(hours=lead) + timedelta(days=day)).date()
        numbers = range(day * 24 - lead, day * 24 - lead + 24)
        yield {"date": date, "hours": [_cell(found.start, hour, found.loads, top) for hour in numbers]}


def _cell(start: datetime, hour: int, loads: list[int], top: int) -> dict[str, Any] | None:
    if not 0 <= hour < len(loads):
        return None
    level = 0 if not loads[hour] else min(4, 1 + loads[hour] * 4 // (top + 1))
    return {"at": instant(start + timedelta(hours=hour)), "load": loads[hour], "level": level}


def _calendar(name: str, events: list[tuple[datetime, Task]], now: datetime) -> Iterator[str]:
    """RFC 5545."""
    yield from ("BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//Punctual//EN")
    yield from _folded(f"X-WR-CALNAME:{_escaped(name)}")
    for slot, task in events:
        yield "BEGIN:VEVENT"
        yield from _folded(f"UID:{task.id}-{slot:%Y%m%dT%H%M%SZ}@punctual")
        yield f"DTSTAMP:{now:%Y%m%dT%H%M%SZ}"
        yield f"DTSTART:{slot:%Y%m%dT%H%M%SZ}"
        yield from _folded(f"SUMMARY:{_escaped(task.name)}")
        yield from _folded(f"DESCRIPTION:{_escaped(f'{task.target}: {showing.words(task)}')}")
        yield "TRANSP:TRANSPARENT"
        yield "END:VEVENT"
    yield "END:VCALENDAR"


def _escaped(text: str) -> str:
    for sign in ("\\", ";", ","):
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\r\n", "\\n").replace("\n", "\\n").replace("\r", "\\n")


def _folded(line: str) -> Iterator[str]:
    """A line in pieces of FOLD octets, never within a character."""
    piece = ""
    for character in line:
        if len((piece + character).encode()) > FOLD:
            yield piece
            piece = " "
        piece += character
    yield piece
