"""How values look on a page: durations, numbers, JSON, the words of a schedule. Pure."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import flask_bootstrap
from markupsafe import Markup, escape

from app import clock, errors, fields, nodes, policies, schedules, schemas
from app.messages import OWN
from app.schedules import zones
from app.states import Action, Reason, RunState, TaskState

TONES = {
    RunState.PENDING: "wait",
    RunState.QUEUED: "wait",
    RunState.RUNNING: "busy",
    RunState.RETRYING: "warn",
    RunState.SUCCEEDED: "good",
    RunState.FAILED: "bad",
    RunState.CANCELLED: "quiet",
    RunState.SKIPPED: "quiet",
    Reason.TIMEOUT: "bad",
    Reason.LOST: "bad",
    Reason.REJECTED: "bad",
    TaskState.ACTIVE: "good",
    TaskState.PAUSED: "warn",
    TaskState.COMPLETED: "quiet",
    TaskState.DELETED: "quiet",
}
"""The colour of a state, by what it asks of a person; each has a sign of its own too, as not all see colours."""

SIGNS = {"good": "✓", "bad": "✕", "warn": "↻", "busy": "▸", "wait": "·", "quiet": "\N{EN DASH}"}

UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
NOTHING = "\N{EN DASH}"
ICONS = Path(flask_bootstrap.__file__).parent / "static" / "bootstrap5" / "icons" / "bootstrap-icons.svg"
SHORT = 10
"""Below so many seconds a duration shows its fraction."""


def tone(state: str) -> str:
    return TONES.get(state, "quiet")  # type: ignore[call-overload,no-any-return]


def time(instant: datetime | None, shown: str = "ago") -> Markup:
    """An instant: exact in UTC as it is sent, then as the script shows it: `ago`, `in`, `clock` or `both`."""
    if instant is None:
        return Markup('<span class="none">{}</span>').format(NOTHING)
    return Markup('<time datetime="{}" data-as="{}">{}</time>').format(fields.instant(instant), shown, exact(instant))


def exact(instant: datetime, zone: str = "UTC") -> str:
    """An instant as a zone's clocks show it."""
    return f"{zones.wall(instant, ZoneInfo(zone)):%a %Y-%m-%d %H:%M:%S} {zone}"


def duration(value: timedelta | float | None) -> str:
    """A duration, or milliseconds, in one or two units: `12 ms`, `4.2 s`, `3 min 20 s`, `2 d 4 h`."""
    if value is None:
        return NOTHING
    seconds = value.total_seconds() if isinstance(value, timedelta) else value / 1000
    if abs(seconds) < 1:
        return f"{seconds * 1000:.0f} ms"
    if abs(seconds) < SHORT:
        return f"{seconds:.1f} s"
    left = round(abs(seconds))
    parts = []
    for size, name in UNITS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {name}")
    return ("-" if seconds < 0 else "") + " ".join(parts[:2])


def lateness(run: Any) -> timedelta | None:
    """From the slot to the first start; None where the contract gives none."""
    milliseconds = schemas.lateness(run)
    return None if milliseconds is None else timedelta(milliseconds=milliseconds)


def took(run: Any) -> timedelta | None:
    """From the current attempt's start to its end, or to now."""
    if run.attempt_started_at is None or run.attempt_started_at > (run.finished_at or clock.now()):
        return None
    span: timedelta = (run.finished_at or clock.now()) - run.attempt_started_at
    return span


def is_late(run: Any) -> bool:
    """Whether the promise was broken for it."""
    late = lateness(run)
    return late is not None and late > policies.GRACE


def words(task: Any) -> str:
    """A task's schedule in words."""
    try:
        return schedules.describe(schedules.parse(task.schedule, now=task.created_at))
    except (errors.Invalid, ValueError, OverflowError):
        return "a schedule that cannot be read"  # one that an older release wrote


def count(number: int | None, noun: str = "") -> str:
    """`1 run`, `12,000 runs`, `2 processes`."""
    if number is None:
        return NOTHING
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{plural}" if noun else f"{number:,}"


def percent(share: float | None) -> str:
    """Rounded down: 99.99 % of runs in time are not all of them."""
    if share is None:
        return NOTHING
    whole = int(share * 10_000) / 100
    return f"{whole:g} %"


def pretty(value: Any) -> str:
    """JSON, readable."""
    return json.dumps(value, indent=2, ensure_ascii=False)


@cache
def icon(name: str) -> Markup:
    """One of Bootstrap's icons. It says nothing by itself: there is a word beside it, or a label around it."""
    drawing = re.search(rf'<symbol [^>]*id="{re.escape(name)}"[^>]*>(.*?)</symbol>', ICONS.read_text(), re.DOTALL)
    if drawing is None:
        raise LookupError(f"there is no icon {name}")
    # drawn in place: as a part of its file of a megabyte it would be asked for with every refresh
    return Markup(f'<svg class="bi" viewBox="0 0 16 16" aria-hidden="true">{drawing[1].strip()}</svg>')  # noqa: S704 - the package's own file


def marks(states: Sequence[str]) -> Markup:
    """The last outcomes of a task as small marks, oldest first."""
    each = Markup('<i class="mark {}">{}</i>')
    drawn = Markup("").join(each.format(tone(state), SIGNS[tone(state)]) for state in states)
    told = ", ".join(str(state) for state in states) or "no run yet"
    return Markup('<span class="marks" role="img" aria-label="{}">{}</span>').format(told, drawn)


def badge(state: str) -> Markup:
    """A state: a sign, its word, a colour."""
    kind = tone(state)
    return Markup('<span class="state {}"><i aria-hidden="true">{}</i> {}</span>').format(
        kind, SIGNS[kind], escape(str(state))
    )


def incident(found: Any) -> Markup:
    """An incident's kind: a sign, its word, a colour; quiet once it is over."""
    kind = "quiet" if found.closed_at else "bad"
    return Markup('<span class="state {}"><i aria-hidden="true">{}</i> {}</span>').format(
        kind, SIGNS[kind], escape(found.kind)
    )


def told(notify: Mapping[str, Any]) -> str:
    """Whom a task's incidents are told, and which. Of a webhook its host alone: the rest may be a secret."""
    if not notify["on"]:
        return "to nobody"
    webhook = [f"{urlsplit(notify['webhook']).hostname} by webhook"] if notify["webhook"] else []
    to = [*webhook, *notify["email"]] or ["whom the settings name"]
    return f"{', '.join(notify['on'])}: to {', '.join(to)}"


MOST_TELLING = ("target", "schedule", "role", "labels", "queues")
"""What is shown of something new; all of it stands in the log."""


def difference(entry: Any) -> list[tuple[str, str, str]]:
    """What a change of the audit log changed: field by field what stood there and what stands there."""
    before, after = entry.before or {}, entry.after or {}
    is_new = entry.action == Action.CREATE
    words = [name for name in MOST_TELLING if after.get(name)] if is_new else list(after)
    return [(name, plain(before.get(name)), plain(after.get(name))) for name in words]


def plain(value: Any) -> str:
    """JSON on one line; text as it is, and a dash for nothing."""
    if value is None:
        return NOTHING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


FILTERS = {
    "difference": difference,
    "ago": time,
    "duration": duration,
    "lateness": lateness,
    "took": took,
    "is_late": is_late,
    "words": words,
    "count": count,
    "percent": percent,
    "pretty": pretty,
    "exact": exact,
    "told": told,
    "tick_age": nodes.tick_age,
    "is_present": nodes.is_present,
}

TESTS = {"of_clients": lambda task: not task.target.startswith(OWN)}

GLOBALS = {"badge": badge, "icon": icon, "incident": incident, "marks": marks, "time": time}
