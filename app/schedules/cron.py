"""Cron expressions: what cronsim reads, matched against the bare wall clock. Zones stand in `zones`."""

import copy
import functools
import re
from collections.abc import Iterator
from datetime import datetime

from cronsim import CronSim, CronSimError

from app import errors
from app.schedules import zones

MAX_LENGTH = 255

NICKNAMES = {
    "@HOURLY": "0 * * * *",
    "@DAILY": "0 0 * * *",
    "@MIDNIGHT": "0 0 * * *",
    "@WEEKLY": "0 0 * * 0",
    "@MONTHLY": "0 0 1 * *",
    "@YEARLY": "0 0 1 1 *",
    "@ANNUALLY": "0 0 1 1 *",
}

FIELDS = ("minute", "hour", "day of month", "month", "day of week")
HOURS = 24

_START = datetime(2000, 1, 1)  # noqa: DTZ001 - a wall-clock time; whether an expression ever matches is asked from here


@functools.lru_cache(maxsize=2048)
def pattern(expression: str) -> CronSim:
    """The expression, read. Copy before use: iterating moves it. Raises Invalid with one sentence."""
    fields = spelled(expression).split()
    _count(fields)
    for position, field in enumerate(fields):
        _check(position, field)
    try:
        found = CronSim(" ".join(fields), _START)
        next(copy.copy(found))
    except (CronSimError, StopIteration):  # each field was read, so there is no such day
        raise errors.Invalid("This never happens: no month that it names has such a day.") from None
    return found


def spelled(expression: str) -> str:
    """The five fields in capitals, with a nickname written out."""
    bare = " ".join(expression.upper().split())
    if bare.startswith("@") and bare not in NICKNAMES:
        known = ", ".join(name.lower() for name in NICKNAMES)
        raise errors.Invalid(f"This nickname is not known; these are: {known}.")
    return NICKNAMES.get(bare, bare)


def hourly(expression: str) -> bool:
    """Whether it runs every hour or more often, and so follows real time: it names no hour."""
    return len(pattern(expression).hours) == HOURS


def walls(expression: str, after: datetime) -> Iterator[datetime]:
    """The wall-clock times that match, strictly after the given one."""
    found = copy.copy(pattern(expression))
    found.dt = after.replace(microsecond=0)
    for shown in found:
        if shown.year >= zones.HORIZON.year:
            return
        yield shown


def _count(fields: list[str]) -> None:
    if len(fields) == len(FIELDS) + 1:
        raise errors.Invalid(
            "This has six fields; five are read: minute, hour, day of month, month, day of week."
            " For seconds use an interval."
        )
    if len(fields) != len(FIELDS):
        raise errors.Invalid(
            f"An expression has five fields, this has {len(fields)}: minute, hour, day of month, month, day of week."
        )


def _check(position: int, field: str) -> None:
    """Reads one field alone, so that the sentence can name it."""
    sentence = f"The {FIELDS[position]} “{field}” cannot be read."
    if not re.fullmatch(r"[A-Z0-9*/,#-]+", field):
        raise errors.Invalid(sentence)
    alone = ["*"] * len(FIELDS)
    alone[position] = field
    try:
        CronSim(" ".join(alone), _START)
    except CronSimError:
        raise errors.Invalid(sentence) from None
