"""Celery's own `beat_schedule` as tasks: from a Celery app, or from the dict."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from celery import schedules
from celery.beat import ScheduleEntry
from cronsim import CronSim, CronSimError

from cli.drafts import AS_BEFORE, DAY, EPOCH, Conversion, Names, Unconvertible, interval, plain, zones
from cli.rest import Json

MAX_PRIORITY = 9
BROKEN = ("countdown", "eta")
LEFT_OUT = {
    "expires": "a run that waits is not thrown away",
    "exchange": "a queue is named by its name",
    "routing_key": "a queue is named by its name",
    "headers": "messages carry ours alone",
    "link": "nothing is called with the result",
    "link_error": "nothing is called with the error",
    "retry": "a task's own `retry` says what becomes of a failed run",
    "retry_policy": "a task's own `retry` says what becomes of a failed run",
}
_DAYS = ("SU", "MO", "TU", "WE", "TH", "FR", "SA")
_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
_WEEKS = [frozenset(range(first, min(first + 7, 32))) for first in range(1, 32, 7)]
_NOW = datetime(2000, 1, 1)  # noqa: DTZ001 - cronsim wants one; its fields do not depend on it


def convert(entries: Mapping[str, Any], *, timezone: Any = "UTC") -> Conversion:
    """The tasks of a `beat_schedule`; `timezone` is the app's."""
    found, names = Conversion(), Names()
    for name, entry in entries.items():
        place = str(name)
        try:
            fields, notes = _task(_fields(entry), timezone)
        except Unconvertible as exc:
            found.miss(place, str(exc))
            continue
        found.add(place, {"name": names.unique(place)} | fields)
        for note in notes:
            found.note(place, note)
    return found


def _fields(entry: Any) -> Mapping[str, Any]:
    """An entry as a mapping; Celery also takes its own objects."""
    given = vars(entry) if isinstance(entry, ScheduleEntry) else entry
    if not isinstance(given, Mapping) or not given.get("task"):
        raise Unconvertible("it names no task")
    return given


def _task(entry: Mapping[str, Any], timezone: Any) -> tuple[Json, list[str]]:
    target = getattr(entry["task"], "name", entry["task"])
    if not isinstance(target, str):
        raise Unconvertible("its task has no name")
    due = schedule(entry.get("schedule"), timezone, relative=bool(entry.get("relative")))
    options, notes = _options(entry.get("options") or {})
    made = {
        "target": target,
        "args": plain(list(entry.get("args") or ())),
        "kwargs": plain(dict(entry.get("kwargs") or {})),
        "schedule": due,
    }
    return made | AS_BEFORE | options, notes


def _options(given: Mapping[str, Any]) -> tuple[Json, list[str]]:
    """What a message's options mean for a task, and what is different."""
    made: Json = {}
    notes = []
    for name, value in given.items():
        if value is None:
            continue
        if name == "queue":
            made["queue"] = str(getattr(value, "name", value))
        elif name == "priority":
            made["priority"] = priority(value)
        elif name in {"time_limit", "soft_time_limit"} and isinstance(value, int | float) and 1 <= value <= DAY:
            made["timeout"] = min(value, made.get("timeout", value))
        elif name in BROKEN:
            raise Unconvertible(f"the option {name}: a run starts when it is due")
        else:
            notes.append(f"the option {name} is left out: {LEFT_OUT.get(name, 'it has no equal here')}")
    return made, notes


def priority(value: Any) -> int:
    """A priority of ours. Raises Unconvertible."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_PRIORITY:
        raise Unconvertible(f"a priority of {value!r}: it may be from 0 to {MAX_PRIORITY}")
    return value


def schedule(given: Any, timezone: Any, *, relative: bool = False) -> Json:
    """A schedule of Celery's as one of ours. Raises Unconvertible."""
    match given:
        case schedules.crontab():
            if given.nowfun is not None:
                raise Unconvertible("its crontab has a clock of its own (nowfun)")
            return crontab(given, zone_name(getattr(given, "tz", None) if _has_zone(given) else timezone))
        case schedules.solar():
            raise Unconvertible("a solar schedule: no schedule here follows the sun")
        case schedules.schedule():
            return _interval(given.run_every, timezone, relative=given.relative)
        case timedelta():
            return _interval(given, timezone, relative=relative)
        case int() | float() if not isinstance(given, bool):
            return _interval(timedelta(seconds=given), timezone, relative=relative)
    raise Unconvertible(f"a schedule of the type {type(given).__name__}")


def _has_zone(given: Any) -> bool:
    """Whether it has a zone of its own, as django-celery-beat's crontab has; Celery's asks an app for one."""
    return "tz" in vars(given)


def zone_name(zone: Any) -> str:
    """The name of a time zone. Raises Unconvertible."""
    name = zone if isinstance(zone, str) else zone.key if isinstance(zone, ZoneInfo) else str(zone)
    if name not in zones():
        raise Unconvertible(f"the time zone {name!r} has no name of the IANA database: set the app's `timezone`")
    return name


def _interval(every: timedelta, timezone: Any, *, relative: bool) -> Json:
    """A relative one comes on the round minute, hour or day of its length; other ones have no phase."""
    seconds = every.total_seconds()
    checked = interval(seconds)
    unit = next((unit for unit in (DAY, 3600, 60) if seconds >= unit), None)
    if not relative or unit is None:
        return checked
    if seconds % unit:
        raise Unconvertible(f"a relative interval of {seconds:g} s, which is no whole number of its unit")
    zone = zone_name(timezone)
    midnight = datetime(2000, 1, 1, tzinfo=ZoneInfo(zone)).isoformat()
    if unit == DAY:  # on the wall clock, where a day has not always 24 hours
        return {
            "type": "rrule",
            "rule": f"FREQ=DAILY;INTERVAL={seconds // DAY:.0f}",
            "starts": midnight,
            "timezone": zone,
        }
    return interval(seconds, midnight)


def crontab(given: schedules.crontab, timezone: str) -> Json:
    """Celery wants both days to match where both are restricted; of ours either is enough then, unless one of the
    two fields begins with a star."""
    sets = (given.minute, given.hour, given.day_of_month, given.month_of_year, given.day_of_week)
    written = (
        given._orig_minute,  # noqa: SLF001 - the only place where they stand as they were written
        given._orig_hour,  # noqa: SLF001
        given._orig_day_of_month,  # noqa: SLF001
        given._orig_month_of_year,  # noqa: SLF001
        given._orig_day_of_week,  # noqa: SLF001
    )
    parts = [_spelled(position, *pair) for position, pair in enumerate(zip(written, sets, strict=True))]
    if not (parts[2].startswith("*") or parts[4].startswith("*")):
        weeks = [number for number, days in enumerate(_WEEKS, 1) if days <= given.day_of_month]
        if set().union(*(_WEEKS[number - 1] for number in weeks)) != given.day_of_month:
            return _rule(sets, timezone)
        parts[4] = ",".join(f"{day}#{week}" for day in sorted(given.day_of_week) for week in weeks)
        parts[2] = "*"
    return {"type": "cron", "expression": " ".join(parts), "timezone": timezone}


def _spelled(position: int, written: Any, meant: set[int]) -> str:
    """A field as it was written, where that is read here as it is there; else spelled anew."""
    low, high = _RANGES[position]
    if meant == set(range(low, high + 1)):
        return "*"  # also where it was written otherwise, as a leading star says how the days are joined
    if isinstance(written, str) and _read(position, written) == meant:
        return written
    return compact(meant, low, high)


def _read(position: int, text: str) -> set[int] | None:
    """The values of a field as they are read here."""
    parts = ["*"] * len(_RANGES)
    parts[position] = text
    if len(text.split()) != 1:
        return None
    try:
        found = CronSim(" ".join(parts), _NOW)
    except (CronSimError, ValueError):
        return None
    days = {day % 7 if isinstance(day, int) else day for day in found.weekdays}
    values: Sequence[set[Any]] = (found.minutes, found.hours, found.days, found.months, days)
    return values[position]


def compact(values: set[int], low: int, high: int) -> str:
    """The values of a field in few characters."""
    ordered = sorted(values)
    step = ordered[1] - ordered[0] if len(ordered) > 1 else 0
    if step > 1 and ordered == list(range(low, high + 1, step)):
        return f"*/{step}"
    spans: list[list[int]] = []
    for value in ordered:
        if spans and value == spans[-1][-1] + 1:
            spans[-1].append(value)
        else:
            spans.append([value])
    return ",".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)


def _rule(sets: Sequence[set[int]], timezone: str) -> Json:
    """What no cron expression says: a day of the month that is also a certain day of the week."""
    minutes, hours, days, months, weekdays = (sorted(values) for values in sets)
    parts = {
        "FREQ": "DAILY",
        "BYMONTH": ",".join(map(str, months)) if len(months) < _RANGES[3][1] else "",
        "BYMONTHDAY": ",".join(map(str, days)),
        "BYDAY": ",".join(_DAYS[day] for day in weekdays),
        "BYHOUR": ",".join(map(str, hours)),
        "BYMINUTE": ",".join(map(str, minutes)),
        "BYSECOND": "0",
    }
    rule = ";".join(f"{name}={value}" for name, value in parts.items() if value)
    return {"type": "rrule", "rule": rule, "starts": EPOCH, "timezone": timezone}
