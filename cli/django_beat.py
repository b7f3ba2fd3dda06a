"""A fixture of django-celery-beat, `manage.py dumpdata django_celery_beat`, as tasks. Pure: JSON in, tasks out."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from celery.schedules import ParseException
from celery.schedules import crontab as Crontab  # noqa: N812 - it is a class

from cli import celery_beat
from cli.drafts import AS_BEFORE, Conversion, Names, Unconvertible, interval
from cli.rest import Json

APP = "django_celery_beat."
TASK = "periodictask"
PERIODS = ("days", "hours", "minutes", "seconds", "microseconds")
LEFT_OUT = ("expire_seconds", "exchange", "routing_key")


def convert(objects: list[Any], *, now: datetime) -> Conversion:
    """The tasks of a fixture. What is off, or over by `now`, is noted and left out."""
    found, names = Conversion(), Names()
    rows = {(each["model"].lower(), each["pk"]): each["fields"] for each in objects if _is_row(each)}
    for (model, key), fields in rows.items():
        if model != APP + TASK:
            continue
        place = str(fields.get("name") or f"periodic task {key}")
        try:
            over = _over(fields, rows, now)
            made, notes = (None, [over]) if over else _task(fields, rows)
        except Unconvertible as exc:
            found.miss(place, str(exc))
            continue
        if made:
            found.add(place, {"name": names.unique(place)} | made)
        for note in notes:
            found.note(place, note)
    return found


def _is_row(each: Any) -> bool:
    return (
        isinstance(each, dict)
        and isinstance(each.get("model"), str)
        and each["model"].lower().startswith(APP)
        and isinstance(each.get("fields"), dict)
        and isinstance(each.get("pk"), int | str)
    )


def _over(fields: Json, rows: dict[Any, Json], now: datetime) -> str | None:
    """Why a row asks for no run any more; None where it does."""
    if fields.get("enabled") is False:
        return "it is disabled, and left out"
    ends = _instant(fields, "expires")
    if ends and ends <= now:
        return "it has expired, and is left out"
    if fields.get("clocked") is not None:
        at = _instant(_row(rows, "clocked", fields["clocked"]), "clocked_time")
        if at and at <= now:
            return "its time has passed, and it is left out"
    if fields.get("one_off") and fields.get("total_run_count"):
        return "it has run once, as it should, and is left out"
    return None


def _task(fields: Json, rows: dict[Any, Json]) -> tuple[Json, list[str]]:
    if not fields.get("task"):
        raise Unconvertible("it names no task")
    made: Json = {
        "target": str(fields["task"]),
        "description": str(fields.get("description") or "")[:2000],
        "args": _arguments(fields, "args", list),
        "kwargs": _arguments(fields, "kwargs", dict),
        "schedule": _schedule(fields, rows),
    }
    if fields.get("queue"):
        made["queue"] = str(fields["queue"])
    if fields.get("priority") is not None:
        made["priority"] = celery_beat.priority(fields["priority"])
    if fields.get("one_off") and made["schedule"]["type"] != "once":
        made["max_runs"] = 1
    for ours, theirs in (("starts_at", "start_time"), ("ends_at", "expires")):
        if _instant(fields, theirs):
            made[ours] = fields[theirs]
    notes = [f"{name} is left out: it has no equal here" for name in LEFT_OUT if fields.get(name)]
    if fields.get("headers") not in (None, "", "{}", {}):
        notes.append("headers is left out: messages carry ours alone")
    return made | AS_BEFORE, notes


def _arguments(fields: Json, name: str, kind: type[list[Any]] | type[dict[str, Any]]) -> Any:
    """They are kept as JSON in a text."""
    given = fields.get(name)
    if not given:
        return kind()
    try:
        found = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        found = None
    if not isinstance(found, kind):
        raise Unconvertible(f"its {name} are not JSON of the right kind: {given!r}")
    return found


def _schedule(fields: Json, rows: dict[Any, Json]) -> Json:
    named = [kind for kind in ("interval", "crontab", "clocked", "solar") if fields.get(kind) is not None]
    if len(named) != 1:
        raise Unconvertible("it names no schedule, or several")
    kind = named[0]
    if kind == "solar":
        raise Unconvertible("a solar schedule: no schedule here follows the sun")
    return _READERS[kind](_row(rows, kind, fields[kind]))


def _row(rows: dict[Any, Json], kind: str, key: Any) -> Json:
    try:
        return rows[f"{APP}{kind}schedule", key]
    except (KeyError, TypeError):
        raise Unconvertible(f"the fixture does not hold its {kind} schedule {key!r}") from None


def _interval(row: Json) -> Json:
    if row.get("period") not in PERIODS or not isinstance(row.get("every"), int):
        raise Unconvertible(f"an interval of {row.get('every')!r} {row.get('period')!r}")
    try:
        return interval(timedelta(**{row["period"]: row["every"]}).total_seconds())
    except OverflowError:
        raise Unconvertible(f"an interval of {row['every']} {row['period']}: it is too long") from None


def _crontab(row: Json) -> Json:
    names = ("minute", "hour", "day_of_week", "day_of_month", "month_of_year")
    try:
        read = Crontab(**{name: "".join(str(row.get(name, "*")).split()) for name in names})
    except (ParseException, ValueError) as exc:
        raise Unconvertible(f"its crontab cannot be read: {exc}") from None
    return celery_beat.crontab(read, celery_beat.zone_name(str(row.get("timezone") or "UTC")))


def _clocked(row: Json) -> Json:
    if _instant(row, "clocked_time") is None:
        raise Unconvertible("its clocked schedule has no time")
    return {"type": "once", "at": row["clocked_time"]}


_READERS: dict[str, Callable[[Json], Json]] = {"interval": _interval, "crontab": _crontab, "clocked": _clocked}


def _instant(fields: Json, name: str) -> datetime | None:
    """A time of the fixture. Raises Unconvertible where it is none, or has no offset."""
    given = fields.get(name)
    if given is None:
        return None
    try:
        found = datetime.fromisoformat(given)
    except (TypeError, ValueError):
        raise Unconvertible(f"its {name} is no time: {given!r}") from None
    if found.tzinfo is None:
        raise Unconvertible(f"its {name} has no offset: {given}")
    return found.astimezone(UTC)
