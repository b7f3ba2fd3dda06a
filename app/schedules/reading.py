"""Schedules as clients write them: JSON in, JSON out. Nothing but Invalid may leave here."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from app import errors
from app.schedules import cron, kinds, parts, rules, zones

MAX_EVERY = 3650 * 24 * 3600

_MILLISECOND = timedelta(milliseconds=1)
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?([Zz]|[+-][0-9]{2}:[0-9]{2})?"
)


def parse(data: Mapping[str, Any], *, now: datetime) -> kinds.Schedule:
    """The schedule that the JSON stands for. Raises Invalid, which names each field of it that is wrong."""
    if not isinstance(data, Mapping):
        raise errors.Invalid(errors={"type": ['A schedule is an object such as {"type": "now"}.']})
    kind = data.get("type")
    form = _FORMS.get(kind) if isinstance(kind, str) else None
    if form is None:
        raise errors.Invalid(errors={"type": [f"The type is one of {', '.join(_FORMS)}."]})
    values, problems = _read(form, data, now)
    if problems:
        raise errors.Invalid(errors=problems)
    return form.make(**values)


def dump(schedule: kinds.Schedule) -> dict[str, Any]:
    """The JSON of a schedule, which `parse` reads as the same again."""
    match schedule:
        case kinds.Now():
            return {"type": "now", "at": _shown(schedule.at)}
        case kinds.Once():
            return {"type": "once", "at": _shown(schedule.at)}
        case kinds.Cron():
            return {"type": "cron", "expression": schedule.expression, "timezone": schedule.timezone}
        case kinds.Interval():
            millis = schedule.every // _MILLISECOND
            every = millis / 1000 if millis % 1000 else millis // 1000
            return {"type": "interval", "every": every, "anchor": _shown(schedule.anchor)}
        case kinds.Rrule():
            starts = _shown(schedule.starts)
            return {"type": "rrule", "rule": schedule.rule, "starts": starts, "timezone": schedule.timezone}


@dataclass(frozen=True, kw_only=True)
class _Field:
    """How a field is read; `default` gives its value where it is left out, None: it is required."""

    read: Callable[[Any], Any]
    default: Callable[[datetime], Any] | None = None


@dataclass(frozen=True, kw_only=True)
class _Form:
    make: Callable[..., kinds.Schedule]
    fields: Mapping[str, _Field]


def _read(form: _Form, data: Mapping[str, Any], now: datetime) -> tuple[dict[str, Any], dict[str, list[str]]]:
    values: dict[str, Any] = {}
    problems = {str(name): ["Unknown field."] for name in data if name != "type" and name not in form.fields}
    for name, field in form.fields.items():
        try:
            values[name] = _value(field, data.get(name), now)
        except errors.Invalid as exc:
            problems[name] = [exc.message]
    return values, problems


def _value(field: _Field, given: Any, now: datetime) -> Any:
    if given is not None:
        return field.read(given)
    if field.default is None:
        raise errors.Invalid("This field is required.")
    return field.default(now)


def _time(given: Any) -> datetime:
    form = _TIME.fullmatch(given) if isinstance(given, str) else None
    if form is None:
        raise errors.Invalid("This is no time: write it as 2026-12-24T18:00:00+01:00.")
    if form[3] is None:
        raise errors.Invalid("This is a time without an offset: end it with Z or with one such as +01:00.")
    try:
        found = datetime.fromisoformat(given.upper())
    except ValueError:
        raise errors.Invalid("There is no such time.") from None
    if not zones.FLOOR.year < found.year < zones.HORIZON.year - 1:  # a year's room for offsets and jitter
        raise errors.Invalid(f"Times lie from {zones.FLOOR.year + 1} to {zones.HORIZON.year - 2}.")
    return found.astimezone(UTC)


def _whole_second(given: Any) -> datetime:
    return _time(given).replace(microsecond=0)


def _shown(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _zone(given: Any) -> str:
    if not isinstance(given, str) or given not in zones.names():
        raise errors.Invalid("This time zone is not known: use a name such as Europe/Paris.")
    return given


def _line(given: Any, length: int) -> str:
    if not isinstance(given, str):
        raise errors.Invalid("This is not a text.")
    line = given.strip()
    if not line or len(line) > length:
        raise errors.Invalid(f"This must have 1 to {length:,} characters.")
    return line


def _expression(given: Any) -> str:
    line = _line(given, cron.MAX_LENGTH)
    cron.pattern(line)
    return line


def _rule(given: Any) -> str:
    line = _line(given, parts.MAX_LENGTH)
    parts.read(line)
    return line


def _every(given: Any) -> timedelta:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise errors.Invalid("This is a number of seconds.")
    if not 1 <= given <= MAX_EVERY:  # nor is NaN
        raise errors.Invalid(f"This is 1 to {MAX_EVERY:,} seconds.")
    millis = round(given * 1000)
    if millis / 1000 != given:
        raise errors.Invalid("This has three decimals at most.")
    return millis * _MILLISECOND


def _rrule(**values: Any) -> kinds.Rrule:
    schedule = kinds.Rrule(**values)
    try:
        rules.compiled(schedule)
    except errors.Invalid as exc:
        raise errors.Invalid(errors={"rule": [exc.message]}) from exc
    return schedule


def _utc(_now: datetime) -> str:
    return "UTC"


def _same(now: datetime) -> datetime:
    return now


_FORMS: Mapping[str, _Form] = {
    "now": _Form(make=kinds.Now, fields={"at": _Field(read=_time, default=_same)}),
    "once": _Form(make=kinds.Once, fields={"at": _Field(read=_time)}),
    "cron": _Form(
        make=kinds.Cron,
        fields={"expression": _Field(read=_expression), "timezone": _Field(read=_zone, default=_utc)},
    ),
    "interval": _Form(
        make=kinds.Interval, fields={"every": _Field(read=_every), "anchor": _Field(read=_time, default=_same)}
    ),
    "rrule": _Form(
        make=_rrule,
        fields={
            "rule": _Field(read=_rule),
            "starts": _Field(read=_whole_second),
            "timezone": _Field(read=_zone, default=_utc),
        },
    ),
}
