"""What a person typed, as the contract has it: filters, JSON, times of a zone's clocks. Pure."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import marshmallow as ma

from app import errors, fields
from app.schedules import zones
from web.ui.pages import lines


def filters(schema: ma.Schema, asked: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """What a form of filters asks for, and what of it could not be read, which then filters nothing."""
    given = {name: value for name, value in asked.items() if name in schema.fields}
    problems = schema.validate(given)
    found = schema.load({name: value for name, value in given.items() if name not in problems})
    return dict(found), lines(problems)


def parsed(text: str, field: str) -> Any:
    """JSON. Raises Invalid that names the field."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise errors.Invalid(errors={field: [f"Must be JSON: {exc}."]}) from exc


def value(text: str, annotation: str | None) -> Any:
    """An argument: text where the target wants text, else JSON where it is some, else the text."""
    if _is_text(annotation):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def typed(given: Any, annotation: str | None) -> str:
    """How a person would type an argument; empty where no text means it."""
    plain = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    if annotation == "bool" and not isinstance(given, bool):
        return ""  # its field offers only the two
    means = [
        text
        for text in (plain, json.dumps(given, ensure_ascii=False))
        if fields.is_same(value(text, annotation), given)
    ]
    fits = means and means[0].strip() and len(means[0].splitlines()) == 1  # browsers drop line breaks
    return means[0] if fits else ""


def _is_text(annotation: str | None) -> bool:
    kinds = {part.strip() for part in (annotation or "").split("|")} - {"None"}
    return bool(kinds) and kinds <= {"str", "Optional[str]"}


def labels(texts: Iterable[str]) -> dict[str, str]:
    """Each is `team: billing`."""
    pairs = (text.partition(":") for text in texts if text.strip())
    return {key.strip(): value.strip() for key, _, value in pairs}


def instant(text: str, zone: str, field: str) -> str | None:
    """What a field for local times holds, in UTC; None where it is empty. Raises Invalid that names the field."""
    if not text.strip():
        return None
    try:
        shown = datetime.fromisoformat(text.strip())
        found = shown if shown.tzinfo else zones.instant(shown, place(zone))
    except (ValueError, OverflowError) as exc:
        raise errors.Invalid(errors={field: ["Must be a date and a time such as 2026-12-24 18:00."]}) from exc
    return found.isoformat()


def local(instant: datetime | None, zone: str) -> str:
    """An instant as a field for local times shows it."""
    if instant is None:
        return ""
    shown = zones.wall(instant, place(zone))
    return shown.isoformat(timespec="milliseconds" if shown.microsecond else "seconds")


def place(zone: str) -> ZoneInfo:
    """Raises Invalid where there is no such zone."""
    if zone not in zones.names():
        raise errors.Invalid(errors={"timezone": [f"There is no zone {zone!r}; choose one of the list."]})
    return ZoneInfo(zone)
