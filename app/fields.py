"""The kinds of value that a client may send: strict, each with a sentence that says what is right. Knows no task.

What passes fits its column: PostgreSQL's text and jsonb refuse NUL and half surrogates, its integers overflow.
"""
# ruff: noqa: ARG002, RUF012 - marshmallow's own signatures and names

import json
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import marshmallow as ma
from marshmallow import fields, validate

MAX_DEPTH = 50
YEARS = range(1970, 2199)
EXAMPLE = "2026-12-24T18:00:00+01:00"

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+-]\d\d:\d\d)?", re.ASCII)


def check_text(value: str) -> None:
    """Raises ValidationError where PostgreSQL could not store the text."""
    if _UNSTORABLE.search(value):
        raise ma.ValidationError("May not hold the character U+0000 or half of a surrogate pair.")


TAGGED = {"__type__", "__value__"}
"""Kombu's reader of JSON takes such an object for a value of a type of its own, or fails on it."""


def check_json(value: Any, depth: int = 0) -> None:
    """Raises ValidationError where a JSON value is too deep, or holds what PostgreSQL could not store."""
    if depth > MAX_DEPTH:
        raise ma.ValidationError(f"May be nested {MAX_DEPTH} deep at most.")
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, int | float):
        _check_number(value)
    elif isinstance(value, dict | list):
        if isinstance(value, dict) and value.keys() == TAGGED:
            raise ma.ValidationError("An object may not have just the keys __type__ and __value__.")
        for inner in _inside(value):
            check_json(inner, depth + 1)


def _inside(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return [*value, *value.values()] if isinstance(value, dict) else value


def _check_number(value: float) -> None:
    if not abs(value) <= sys.float_info.max:  # false for NaN too; jsonb gives a large float back as an integer
        raise ma.ValidationError("Numbers must be finite and fit into a double.")


def is_same(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same. Python takes 1, 1.0 and true for equal."""
    return one == other and json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def number(value: timedelta) -> float:
    """Seconds, as an integer where they are whole."""
    seconds = value.total_seconds()
    return int(seconds) if seconds.is_integer() else seconds


def instant(value: datetime) -> str:
    """RFC 3339 in UTC, with milliseconds: the one form in which answers give times."""
    return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.{value.microsecond // 1000:03}Z"


class Text(fields.String):
    """A string of `low` to `high` characters that PostgreSQL can store; `pattern` matches the whole of it."""

    default_error_messages = {"invalid": "Must be a string.", "pattern": "Must match {pattern}."}

    def __init__(self, low: int = 0, high: int | None = None, *, pattern: str | None = None, **options: Any) -> None:
        length = validate.Length(min=low or None, max=high)
        options["validate"] = [length, *options.pop("validate", [])] if low or high else options.pop("validate", None)
        if pattern:
            options["metadata"] = {"pattern": f"^{pattern}$"} | options.get("metadata", {})
        super().__init__(**options)
        self.pattern = re.compile(pattern) if pattern else None

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        check_text(text)
        if self.pattern and not self.pattern.fullmatch(text):
            raise self.make_error("pattern", pattern=self.pattern.pattern)
        return text


class Choice(Text):
    """One of a few words."""

    def __init__(self, choices: Iterable[str], **options: Any) -> None:
        one_of = validate.OneOf([str(choice) for choice in choices], error="Must be one of: {choices}.")
        super().__init__(validate=[one_of], **options)


class Whole(fields.Integer):
    """An integer from `low` to `high`; neither a string nor a boolean counts as one."""

    default_error_messages = {"invalid": "Must be an integer."}

    def __init__(self, low: int, high: int, **options: Any) -> None:
        super().__init__(strict=True, validate=validate.Range(min=low, max=high), **options)

    def _validated(self, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class Flag(fields.Boolean):
    """A JSON boolean and nothing that looks like one."""

    default_error_messages = {"invalid": "Must be true or false."}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class Seconds(fields.Field[timedelta]):
    """A duration: a number of seconds from `low` to `high`."""

    default_error_messages = {
        "invalid": "Must be a number of seconds.",
        "range": "Must be from {low} to {high} seconds.",
    }

    def __init__(self, low: float, high: float, **options: Any) -> None:
        options["metadata"] = {"type": "number", "minimum": low, "maximum": high} | options.get("metadata", {})
        if options.get("allow_none"):
            options["metadata"]["type"] = ["number", "null"]
        super().__init__(**options)
        self.low, self.high = low, high

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> timedelta:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.make_error("invalid")
        if not self.low <= value <= self.high:  # false for NaN too
            raise self.make_error("range", low=self.low, high=self.high)
        return timedelta(seconds=value)

    def _serialize(self, value: timedelta | None, attr: str | None, obj: Any, **kwargs: Any) -> float | None:
        return None if value is None else number(value)


class Instant(fields.DateTime):
    """A time with an offset, in RFC 3339; answers are UTC with milliseconds."""

    default_error_messages = {
        "invalid": f"Must be a time such as {EXAMPLE}.",
        "naive": f"A time needs an offset, e.g. {EXAMPLE}.",
        "years": f"Must lie in the years {YEARS[0]} to {YEARS[-1]}.",
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> datetime:
        moment = self._parse(value)
        if moment.tzinfo is None:
            raise self.make_error("naive")
        if moment.year not in YEARS:
            raise self.make_error("years")
        return moment.astimezone(UTC)

    def _parse(self, value: Any) -> datetime:
        if not isinstance(value, str) or not _RFC_3339.fullmatch(value):
            raise self.make_error("invalid", input=value, obj_type="time")
        try:
            return datetime.fromisoformat(value.upper())
        except ValueError as exc:
            raise self.make_error("invalid", input=value, obj_type="time") from exc

    def _serialize(self, value: datetime | None, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return None if value is None else instant(value)


class JsonArray(fields.List[Any]):
    """A JSON array of anything."""

    default_error_messages = {"invalid": "Must be an array."}

    def __init__(self, **options: Any) -> None:
        super().__init__(fields.Raw(allow_none=True), validate=check_json, **options)


class JsonObject(fields.Dict):
    """A JSON object of anything."""

    default_error_messages = {"invalid": "Must be an object."}

    def __init__(self, **options: Any) -> None:
        super().__init__(validate=check_json, **options)
