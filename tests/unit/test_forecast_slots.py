"""When tasks are due, for many at once: the same as each task's own timetable says."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import schedules
from app.forecast import slots
from app.forecast.slots import Slots
from app.forecast.tasks import NONE, Source, Tasks
from app.schedules import Cron, Interval, Rrule, Timetable

START = datetime(2026, 11, 24, 8, 17, tzinfo=UTC)
DAY = 86_400
SECOND = timedelta(seconds=1)
SOMEBODY = UUID(int=7)


def some_tasks(*rows):
    """Tasks of one queue; each row says what differs from a task that is due once, at once."""
    usual = {
        "source": Source(text="", kind="once", rule=None, zone=None, every=None),
        "first": 0,
        "until": NONE,
        "left": NONE,
        "jitter": 0.0,
        "strides": False,
        "size": 1,
        "work": 0.1,
        "known": 1,
        "tasks": 1,
    }
    filled = [usual | row for row in rows]
    columns = {name: np.array([row[name] for row in filled]) for name in usual if name != "source"}
    sources = [row["source"] for row in filled]
    numbers = np.arange(len(rows))
    return Tasks(start=START, queues=["default"], sources=sources, source=numbers, queue=numbers * 0, **columns)


def cron(rule, zone="UTC"):
    return Source(text="", kind="cron", rule=rule, zone=zone, every=None)


def every(seconds):
    return Source(text="", kind="interval", rule=None, zone=None, every=seconds)


def rule(text):
    return Source(text="", kind="rrule", rule=text, zone="UTC", every=None)


def due(tasks, length=DAY):
    """The seconds of each row."""
    found = {row: [] for row in range(len(tasks))}
    for chunk in Slots(tasks=tasks, length=length).chunks():
        for row, second in zip(chunk.row.tolist(), chunk.second.tolist(), strict=True):
            found[row].append(second)
    return [sorted(seconds) for seconds in found.values()]


EXPRESSIONS = st.sampled_from(
    [
        "* * * * *",
        "*/7 * * * *",
        "0 9 * * *",
        "30 2 * * *",
        "15 */5 * * MON-FRI",
        "0 0 L * *",
        "5,35 1-3,22 1,24,25 * *",
        "0 12 * * TUE#4",
        "59 23 31 12 *",
        "@hourly",
        "0 6 13 * FRI",
    ]
)
ZONES = st.sampled_from(["UTC", "Europe/Paris", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"])
STARTS = st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 1)).map(  # noqa: DTZ001
    lambda found: found.replace(second=0, microsecond=0, tzinfo=UTC)
)


@given(rule=EXPRESSIONS, zone=ZONES, start=STARTS, hours=st.integers(1, 50))
@settings(max_examples=80, deadline=None)
def test_the_quick_way_to_a_schedules_slots_leads_to_those_of_its_timetable(rule, zone, start, hours):
    schedule, end = Cron(expression=rule, timezone=zone), start + timedelta(hours=hours)
    slow = Timetable(task_id=SOMEBODY, schedule=schedule).between(start - timedelta(microseconds=1), end - SECOND)
    assert list(schedules.offsets(schedule, start, end)) == [(slot - start) // SECOND for slot in slow]


@given(seconds=st.sampled_from([1, 7, 60, 61.5, 300, 3599, 90_000]), ago=st.integers(0, 90_000))
@settings(max_examples=60, deadline=None)
def test_an_interval_goes_on_from_its_next_slot(seconds, ago):
    anchored = Interval(every=timedelta(seconds=seconds), anchor=START - timedelta(seconds=ago))
    table = Timetable(task_id=SOMEBODY, schedule=anchored)
    end = START + timedelta(days=1) - SECOND
    slow = [int((slot - START) // SECOND) for slot in table.between(START - timedelta(microseconds=1), end)]
    if not slow:
        return
    # the next slot is known to the second; what it is beyond that may shift a later one by as much
    [found] = due(some_tasks({"source": every(seconds), "first": slow[0]}))
    assert len(found) in {len(slow), len(slow) + 1}
    assert all(abs(one - other) <= 1 for one, other in zip(found, slow, strict=False))


@pytest.mark.parametrize(
    "rule",
    ["FREQ=DAILY", "FREQ=WEEKLY;BYDAY=TU,WE", "FREQ=HOURLY;INTERVAL=5", "FREQ=DAILY;BYHOUR=9,12,18;BYMINUTE=0,30"],
)
def test_a_rule_goes_on_from_its_next_slot(rule):
    schedule = Rrule(rule=rule, starts=START - timedelta(days=9, seconds=11), timezone="Europe/Paris")
    table = Timetable(task_id=SOMEBODY, schedule=schedule)
    slow = [(slot - START) // SECOND for slot in table.between(START, START + timedelta(days=1) - SECOND)]
    source = Source(text="", kind="rrule", rule=rule, zone="Europe/Paris", every=None)
    assert due(some_tasks({"source": source, "first": slow[0]})) == [slow]


def test_what_is_due_in_the_minute_before_the_start_goes_on_from_there_and_counts_from_the_start_on():
    rows = [
        {"first": -20},
        {"source": every(600), "first": -20},
        {"source": every(7), "first": -60, "left": 10},
        {"source": every(DAY), "first": -60},
        {"source": rule("FREQ=HOURLY"), "first": -1},
        {"source": rule("FREQ=DAILY"), "first": -20},
        {"source": rule("FREQ=WEEKLY"), "first": -20},
        {"source": rule("FREQ=DAILY;BYHOUR=8,20"), "first": -20},
    ]
    assert due(some_tasks(*rows)) == [
        [],
        list(range(580, DAY, 600)),
        [3],
        [DAY - 60],
        list(range(3599, DAY, 3600)),
        [DAY - 20],
        [],
        [DAY // 2 - 20, DAY - 20],
    ]


def test_bounds_end_a_task_and_count_its_slots():
    rows = [
        {"source": every(600), "until": 1800},
        {"source": every(600), "left": 2},
        {"source": cron("*/10 * * * *"), "until": 1800},
        {"source": cron("*/10 * * * *"), "left": 2},
        {"first": 90},
        {"first": DAY},
    ]
    assert due(some_tasks(*rows)) == [[0, 600, 1200, 1800], [0, 600], [180, 780, 1380], [180, 780], [90], []]


def test_a_slot_that_falls_into_an_earlier_run_of_its_task_is_not_run():
    rows = [
        {"source": every(60), "work": 150.0, "strides": True},
        {"source": every(60), "work": 150.0, "strides": False},
        {"source": cron("*/10 * * * *"), "work": 1300.0, "strides": True},
    ]
    found = due(some_tasks(*rows), 3600)
    assert found[0] == list(range(0, 3600, 180))
    assert len(found[1]) == 60
    assert found[2] == [180, 1980]


def test_a_jitter_spreads_tasks_over_its_length_and_no_further_than_the_next_slot():
    rows = [{"source": cron("0 * * * *"), "jitter": 600.0}] * 300 + [
        {"source": cron("*/5 * * * *"), "jitter": 3600.0}
    ] * 300
    many = some_tasks(*rows)
    seconds = due(many, 7200)
    hourly = Counter((second - 2580) // 60 for row in seconds[:300] for second in row if second < 3600)
    assert set(hourly) == set(range(10))
    assert max(hourly.values()) < 2 * min(hourly.values())
    assert all(len(row) in {23, 24} for row in seconds[300:])


def test_squeezed_tasks_bring_what_they_bring_one_by_one():
    rows = [{"source": every(60), "first": n % 3, "work": 0.1 * (n % 2 + 1)} for n in range(30)]
    many = some_tasks(*rows)
    many = many.with_columns(source=many.source * 0)
    few = slots.squeezed(many)
    assert len(few) == 3
    assert few.tasks.sum() == 30
    assert (few.tasks * few.work).sum() == pytest.approx(many.work.sum())
    assert sorted(due(few)) == [list(range(first, DAY, 60)) for first in range(3)]


def test_how_many_slots_lie_between_two_seconds_is_what_is_counted():
    rows = [{"source": every(61), "first": 5}, {"source": cron("*/7 * * * *")}, {"first": 4000}]
    many = some_tasks(*rows)
    for start, end in ((0, 3600), (3600, 7200), (4000, 4001), (5, 6)):
        plainly = [sum(start <= second < end for second in row) for row in due(many)]
        assert Slots(tasks=many, length=DAY).within(start, end).tolist() == plainly


def test_what_cannot_be_computed_in_time_is_left_out_and_nothing_else_fails():
    rows = [{"source": cron(f"{n} * * * *")} for n in range(60)]
    over = Slots(tasks=some_tasks(*rows), length=DAY, is_over=lambda: True)
    assert list(over.chunks()) == []
