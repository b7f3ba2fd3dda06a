"""Answers as people read them: tables, and one thing with its fields. Pure text."""

import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cli.rest import Json, clean

Column = Callable[[Json], Any]


def table(items: Iterable[Json], columns: Mapping[str, Column]) -> str:
    """A line of headings and a line for each item."""
    rows = [[name.upper() for name in columns]]
    rows += [[cell(_value(column, item)) for column in columns.values()] for item in items]
    return "\n".join(aligned(rows))


def _value(column: Column, item: Json) -> Any:
    """What stands in a column; nothing where another version of the server does not tell it."""
    try:
        return column(item)
    except (KeyError, TypeError):
        return None


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose cells stand below each other."""
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_padded(text, size) for text, size in zip(row, widths, strict=True)).rstrip() for row in rows]


def fields(item: Any) -> str:
    """Each field of a JSON object on a line of its own, the fields inside it with dots."""
    flat = dict(_flat(item, ""))
    return "\n".join(aligned([[name, cell(value)] for name, value in flat.items()])) if flat else "nothing"


def _flat(value: Any, path: str) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping) and (value or not path):
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{clean(str(name))}".lstrip("."))
    else:
        yield path, value


def cell(value: Any) -> str:
    """A value in a few characters; what is not there is a dash."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str | int | float):
        return clean(str(value))
    if isinstance(value, list) and all(isinstance(inner, str | int) for inner in value):
        return clean(", ".join(map(str, value))) or "-"
    return clean(json.dumps(value, ensure_ascii=False))


def schedule(found: Json) -> str:
    """A schedule as one writes it."""
    match found:
        case {"type": "cron", "expression": str(expression)}:
            return f"{expression} {found.get('timezone', 'UTC')}"
        case {"type": "interval", "every": every}:
            return f"every {every} s"
        case {"type": "once", "at": at}:
            return f"once {at}"
        case {"type": "rrule", "rule": rule}:
            return f"{rule} {found.get('timezone', 'UTC')}"
    return str(found.get("type"))


def width(text: str) -> int:
    """The columns that a terminal needs for it."""
    wide = sum(unicodedata.east_asian_width(ch) in {"W", "F"} for ch in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


def _padded(text: str, size: int) -> str:
    return text + " " * (size - width(text))
