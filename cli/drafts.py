"""What an importer gives: tasks to be, each with the place that it comes from, and what it could not convert."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from zoneinfo import available_timezones

from cli import parameters
from cli.rest import Json

MAX_NAME = 200
DAY = 86_400
MAX_EVERY = 3650 * DAY

AS_BEFORE = {"overlap": "allow", "timeout": DAY}
"""Neither cron nor Celery skips a run while an earlier one goes on, or ends one that takes its time. A day is the most
that a run may take here."""

EPOCH = "2000-01-01T00:00:00Z"
"""From where intervals are counted that named no beginning: the same each time, so that a second import of them
changes nothing."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A task to be."""

    place: str
    fields: Json


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What could not be converted, or what is different from before."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(kw_only=True)
class Conversion:
    """All that was read. `problems` are what is left out against somebody's will, `notes` only have to be said."""

    drafts: list[Draft] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)

    def add(self, place: str, fields: Json) -> None:
        self.drafts.append(Draft(place=place, fields=fields))

    def miss(self, place: str, reason: str) -> None:
        self.problems.append(Problem(place=place, reason=reason))

    def note(self, place: str, reason: str) -> None:
        self.notes.append(Problem(place=place, reason=reason))


class Unconvertible(Exception):
    """Has no equal here; says why."""


class Names:
    """Gives each task a name of its own: the second of a name is told by a number, so the order decides and no more."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.given: set[str] = set()

    def unique(self, wanted: str) -> str:
        name = wanted = " ".join(wanted.split())[:MAX_NAME]
        while name in self.given:
            self.seen[wanted] += 1
            end = f" {self.seen[wanted] + 1}"
            name = wanted[: MAX_NAME - len(end)] + end
        self.given.add(name)
        return name


def interval(seconds: float, anchor: str = EPOCH) -> Json:
    """An interval schedule. Raises Unconvertible where it is too short, too long, or too fine."""
    if not 1 <= seconds <= MAX_EVERY:
        raise Unconvertible(f"an interval of {seconds:g} s: it may be from 1 second to 3,650 days")
    if round(seconds, 3) != seconds:
        raise Unconvertible(f"an interval of {seconds} s: it may have three decimals")
    return {"type": "interval", "every": int(seconds) if float(seconds).is_integer() else seconds, "anchor": anchor}


@cache
def zones() -> frozenset[str]:
    """The names of the time zones that there are."""
    return frozenset(available_timezones())


def plain(value: Any) -> Any:
    """The value as JSON has it. Raises Unconvertible."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as exc:
        raise Unconvertible(f"its arguments are no JSON: {exc}") from None


def definitions(path: str, lines: Iterable[str]) -> Conversion:
    """JSON lines: a task's definition each, as `export` writes them."""
    found = Conversion()
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        place = f"{path}:{number}"
        try:
            fields = parameters.loads(text)
        except (ValueError, RecursionError) as exc:
            found.miss(place, f"this is no JSON: {exc}")
            continue
        if not isinstance(fields, dict):
            found.miss(place, "this is no JSON object")
        elif not isinstance(fields.get("name"), str) or not fields["name"]:
            found.miss(place, "it has no name, by which tasks are told apart")
        else:
            found.add(place, fields)
    return found


def refuse_doubles(found: Conversion) -> None:
    """Two definitions of one name would undo each other: the later one is left out."""
    first: dict[str, str] = {}
    kept = []
    for draft in found.drafts:
        name = draft.fields["name"]
        if name in first:
            found.miss(draft.place, f"the name {name!r} stands at {first[name]} already")
        else:
            first[name] = draft.place
            kept.append(draft)
    found.drafts = kept
