"""The text of an RRULE, read strictly: each part is known, in range, and allowed beside the others."""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from app import errors
from app.schedules import zones

MAX_LENGTH = 1_000
MAX_COUNT = 1_000
MAX_INTERVAL = 1_000_000

WEEKDAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
UNITS = {"HOURLY": timedelta(hours=1), "MINUTELY": timedelta(minutes=1), "SECONDLY": timedelta(seconds=1)}
FREQUENCIES = ("YEARLY", "MONTHLY", "WEEKLY", "DAILY", *UNITS)

Days = tuple[tuple[int, int], ...]
"""(weekday, n): n is 0 for each such day, else the nth of its month or year."""

_MAX_LIST = 366


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A rule's parts; an empty one was left out."""

    freq: str
    interval: int = 1
    count: int | None = None
    until: datetime | None = None
    week_start: int = 0
    month: tuple[int, ...] = ()
    monthday: tuple[int, ...] = ()
    yearday: tuple[int, ...] = ()
    weekno: tuple[int, ...] = ()
    day: Days = ()
    hour: tuple[int, ...] = ()
    minute: tuple[int, ...] = ()
    second: tuple[int, ...] = ()
    setpos: tuple[int, ...] = ()

    @property
    def fine(self) -> bool:
        return self.freq in UNITS

    @property
    def unit(self) -> timedelta:
        return UNITS[self.freq]

    @property
    def named(self) -> bool:
        """Whether it names any time or day, rather than counting from DTSTART alone."""
        return any((self.month, self.monthday, self.yearday, self.day, self.hour, self.minute, self.second))


@functools.lru_cache(maxsize=1024)
def read(rule: str) -> Parts:
    """The rule's parts. Raises Invalid with one sentence."""
    bare = rule.strip().upper().removeprefix("RRULE:")
    if re.search(r"\s|DTSTART|EXRULE|RDATE|EXDATE|RRULE", bare):
        raise errors.Invalid("A rule is one line, FREQ=…;…, and nothing else: DTSTART goes into “starts”.")
    values: dict[str, Any] = {}
    for part in bare.removesuffix(";").split(";"):
        name, _, text = part.partition("=")
        if name not in _READERS:
            raise errors.Invalid(f"The part “{part}” is not known; parts look like FREQ=DAILY or BYDAY=MO,TU.")
        field, reader = _READERS[name]
        if field in values:
            raise errors.Invalid(f"{name} stands twice.")
        values[field] = reader(name, text)
    if "freq" not in values:
        raise errors.Invalid("FREQ is missing.")
    found = Parts(**values)
    _check(found)
    return found


def _choice(name: str, text: str, values: tuple[str, ...]) -> str:
    if text not in values:
        raise errors.Invalid(f"{name} is one of {', '.join(values)}.")
    return text


def _frequency(name: str, text: str) -> str:
    return _choice(name, text, FREQUENCIES)


def _week_start(name: str, text: str) -> int:
    return WEEKDAYS.index(_choice(name, text, WEEKDAYS))


def _number(low: int, high: int) -> Callable[[str, str], int]:
    def read_one(name: str, text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise errors.Invalid(f"{name} is a whole number from {low} to {high:,}.")
        return int(text)

    return read_one


def _count(name: str, text: str) -> int:
    if re.fullmatch(r"[0-9]{1,9}", text) and int(text) > MAX_COUNT:
        raise errors.Invalid(f"COUNT is {MAX_COUNT:,} at most: for more use the task's max_runs.")
    return _number(1, MAX_COUNT)(name, text)


def _numbers(low: int, high: int, *, negative: bool = False) -> Callable[[str, str], tuple[int, ...]]:
    sign, also = ("[+-]?", f", or -{high} to -{low}") if negative else ("", "")

    def read_many(name: str, text: str) -> tuple[int, ...]:
        found = text.split(",")
        right = all(re.fullmatch(sign + "[0-9]{1,3}", each) and low <= abs(int(each)) <= high for each in found)
        if not right or len(found) > _MAX_LIST:
            raise errors.Invalid(f"{name} lists numbers from {low} to {high}{also}.")
        return tuple(sorted({int(each) for each in found}))

    return read_many


def _days(name: str, text: str) -> Days:
    found = [re.fullmatch(r"([+-]?[0-9]{1,2})?(MO|TU|WE|TH|FR|SA|SU)", each) for each in text.split(",")]
    days = {(WEEKDAYS.index(each[2]), int(each[1] or 0)) for each in found if each is not None}
    outside = any(each is None or (each[1] and not 1 <= abs(int(each[1])) <= 53) for each in found)  # noqa: PLR2004 - weeks
    if outside:
        raise errors.Invalid(f"{name} lists weekdays such as MO,FR or 1MO,-1FR.")
    return tuple(sorted(days))


def _until(_name: str, text: str) -> datetime:
    """A UTC time is aware; a local one is naive, and a day stands for its last second."""
    form = re.fullmatch(r"([0-9]{8})(T[0-9]{6}(Z?))?", text)
    sentence = "UNTIL looks like 20261231, 20261231T180000 or 20261231T180000Z."
    if form is None:
        raise errors.Invalid(sentence)
    try:
        found = datetime.strptime(form[1] + (form[2] or "T235959").removesuffix("Z"), "%Y%m%dT%H%M%S")  # noqa: DTZ007
    except ValueError:
        raise errors.Invalid(sentence) from None
    if not zones.FLOOR.year <= found.year < zones.HORIZON.year:
        raise errors.Invalid(f"UNTIL lies from {zones.FLOOR.year} to {zones.HORIZON.year - 1}.")
    return found.replace(tzinfo=UTC) if form[3] else found


_READERS: Mapping[str, tuple[str, Callable[[str, str], Any]]] = {
    "FREQ": ("freq", _frequency),
    "INTERVAL": ("interval", _number(1, MAX_INTERVAL)),
    "COUNT": ("count", _count),
    "UNTIL": ("until", _until),
    "WKST": ("week_start", _week_start),
    "BYMONTH": ("month", _numbers(1, 12)),
    "BYMONTHDAY": ("monthday", _numbers(1, 31, negative=True)),
    "BYYEARDAY": ("yearday", _numbers(1, 366, negative=True)),
    "BYWEEKNO": ("weekno", _numbers(1, 53, negative=True)),
    "BYDAY": ("day", _days),
    "BYHOUR": ("hour", _numbers(0, 23)),
    "BYMINUTE": ("minute", _numbers(0, 59)),
    "BYSECOND": ("second", _numbers(0, 59)),
    "BYSETPOS": ("setpos", _numbers(1, 366, negative=True)),
}


def _check(rule: Parts) -> None:
    """Refuses what RFC 5545 forbids, and the little that cannot be computed in a bounded time."""
    for refused, sentence in (
        (rule.count is not None and rule.until is not None, "COUNT and UNTIL exclude each other."),
        (rule.weekno and rule.freq != "YEARLY", "BYWEEKNO needs FREQ=YEARLY."),
        (rule.yearday and rule.freq in ("MONTHLY", "WEEKLY", "DAILY"), "BYYEARDAY does not fit this FREQ."),
        (rule.monthday and rule.freq == "WEEKLY", "BYMONTHDAY does not fit FREQ=WEEKLY."),
        (_nth(rule) and not _takes_nth(rule), "A numbered day such as 1MO needs FREQ=MONTHLY or YEARLY."),
        (rule.setpos and rule.freq not in ("MONTHLY", "YEARLY"), "BYSETPOS needs FREQ=MONTHLY or YEARLY."),
        (rule.setpos and not _picks_days(rule), "BYSETPOS picks among days: name days, and one time of the day."),
        (rule.fine and rule.named and not _divides(rule), "Beside BY… parts, INTERVAL must divide a day evenly."),
    ):
        if refused:
            raise errors.Invalid(sentence)


def _nth(rule: Parts) -> bool:
    return any(nth for _, nth in rule.day)


def _takes_nth(rule: Parts) -> bool:
    return rule.freq in ("MONTHLY", "YEARLY") and not rule.weekno


def _picks_days(rule: Parts) -> bool:
    one_time = max(len(rule.hour), len(rule.minute), len(rule.second)) <= 1
    return one_time and bool(rule.day or rule.monthday or rule.yearday or rule.weekno or rule.month)


def _divides(rule: Parts) -> bool:
    return zones.DAY % (rule.interval * rule.unit) == timedelta(0)
