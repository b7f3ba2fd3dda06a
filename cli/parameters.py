"""The kinds of value that options take, and files that hold JSON. Knows no command."""

import json
import math
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from cli.rest import CliError, Json

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?([smhdw]?)", re.ASCII)


class Duration(click.ParamType[float]):
    """Seconds, or a number with a unit: 90, 90s, 5m, 2h, 30d, 1w."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = _DURATION.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            self.fail(f"{value!r} is no duration such as 90s, 5m, 2h or 30d.", param, ctx)
        seconds = float(found[1]) * UNITS[found[2]]
        return int(seconds) if seconds.is_integer() else seconds


class Moment(click.ParamType[str]):
    """A time as the API takes it, or a duration from now: ahead, or back."""

    name = "time"

    def __init__(self, *, ahead: bool) -> None:
        self.ahead = ahead

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not isinstance(value, str) or not _DURATION.fullmatch(value):
            return str(value)  # a time; whether it is one, the server says
        seconds = DURATION.convert(value, param, ctx)
        try:
            moved = datetime.now(UTC) + timedelta(seconds=seconds if self.ahead else -seconds)
        except OverflowError:
            self.fail(f"{value!r} is too far away.", param, ctx)
        return f"{moved:%Y-%m-%dT%H:%M:%S}.{moved.microsecond // 1000:03}Z"


class JsonText(click.ParamType[Any]):
    """JSON of one kind, or of any."""

    def __init__(self, kind: type | None = None, word: str = "JSON") -> None:
        self.kind = kind
        self.name = self.word = word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            found = loads(value)
        except (ValueError, RecursionError) as exc:
            self.fail(f"{value!r} is not {self.word}: {exc}", param, ctx)
        if self.kind is not None and not isinstance(found, self.kind):
            self.fail(f"{value!r} is not {self.word}.", param, ctx)
        return found


class Pair(click.ParamType[tuple[str, Any]]):
    """Two texts with a sign between them; the right one may have to be JSON."""

    def __init__(self, sign: str, name: str, right: click.ParamType[Any] | None = None) -> None:
        self.sign, self.name, self.right = sign, name, right

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        left, found, right = str(value).partition(self.sign)
        if not (left and found):
            self.fail(f"{value!r} is not {self.name}.", param, ctx)
        return left, self.right.convert(right, param, ctx) if self.right else right


DURATION = Duration()
AHEAD = Moment(ahead=True)
BACK = Moment(ahead=False)
OBJECT = JsonText(dict, "a JSON object")
ARRAY = JsonText(list, "a JSON array")
LABEL = Pair(":", "key:value")
FIELD = Pair("=", "field=JSON", JsonText())


class Filter(click.ParamType[str]):
    """A label to look for, as the API takes it."""

    name = "key:value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return ":".join(LABEL.convert(value, param, ctx))


FILTER = Filter()


def loads(text: str) -> Any:
    """Reads JSON as the API does. Raises ValueError, also where a number is none that JSON knows."""
    found = json.loads(text, parse_constant=_refuse)
    _check(found)
    return found


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def _check(found: Any) -> None:
    if isinstance(found, float) and not math.isfinite(found):
        raise ValueError("a number is too large")
    if isinstance(found, str):
        found.encode()  # half of a surrogate pair cannot be sent
    if isinstance(found, Mapping):
        found = [*found, *found.values()]
    if isinstance(found, list):
        for inner in found:
            _check(inner)


def read_text(path: str) -> str:
    """What a file holds, or standard input for `-`."""
    try:
        raw = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CliError(f"{path}: this is no text in UTF-8") from None
    except OSError as exc:
        raise CliError(f"{path}: cannot be read: {exc.strerror}") from None


def read_object(path: str) -> Json:
    """The JSON object that a file holds."""
    try:
        found = loads(read_text(path))
    except (ValueError, RecursionError) as exc:
        raise CliError(f"{path}: this is no JSON: {exc}") from None
    if not isinstance(found, dict):
        raise CliError(f"{path}: this must be a JSON object")
    return found
