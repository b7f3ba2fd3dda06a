"""All arithmetic of time: which slots a schedule has. Pure: reads no clock, writes nothing.

Only this package knows time zones. Everything that goes in or comes out is aware UTC.
"""

from app.schedules.cautions import warnings
from app.schedules.kinds import OF_ITS_START, Cron, Interval, Now, Once, Rrule, Schedule
from app.schedules.nearby import offsets
from app.schedules.reading import dump, parse
from app.schedules.timetable import NOBODY, Timetable
from app.schedules.words import describe

__all__ = [
    "NOBODY",
    "OF_ITS_START",
    "Cron",
    "Interval",
    "Now",
    "Once",
    "Rrule",
    "Schedule",
    "Timetable",
    "describe",
    "dump",
    "offsets",
    "parse",
    "warnings",
]
