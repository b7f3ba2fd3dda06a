"""The five kinds of schedule, as values. How each is read, shown and computed stands in the rooms beside."""

from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, kw_only=True)
class Now:
    """Once, at once: `at` is the instant of registration."""

    at: datetime


@dataclass(frozen=True, kw_only=True)
class Once:
    at: datetime


@dataclass(frozen=True, kw_only=True)
class Cron:
    expression: str
    timezone: str = "UTC"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Slot k is anchor + k * every, for k >= 0."""

    every: timedelta
    anchor: datetime


@dataclass(frozen=True, kw_only=True)
class Rrule:
    """`starts` is DTSTART, to be shown on the wall clock of `timezone`."""

    rule: str
    starts: datetime
    timezone: str = "UTC"


OF_ITS_START = ("anchor", "starts", "at")
"""The fields that a schedule counts from. Where they are not given it is when the task was registered, which stays."""

Schedule = Now | Once | Cron | Interval | Rrule
