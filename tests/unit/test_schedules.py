"""Reading and writing schedules, intervals, bounds and jitter."""

import json
import re
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import errors, schedules

NOW = datetime(2026, 11, 21, 8, tzinfo=UTC)
TASK = UUID("6f1b1d0e-5f3a-4c6f-9d2a-0c8f0f6f9a11")
SECOND = timedelta(seconds=1)
TICK = timedelta(microseconds=1)
derandomized = settings(derandomize=True, deadline=None, database=None)

GOOD = [
    {"type": "now"},
    {"type": "once", "at": "2026-12-24T18:00:00+01:00"},
    {"type": "cron", "expression": "0 9 * * MON-FRI", "timezone": "Europe/Paris"},
    {"type": "cron", "expression": "@daily"},
    {"type": "cron", "expression": "*/5 * * * *", "timezone": "America/New_York"},
    {"type": "interval", "every": 90},
    {"type": "interval", "every": 1.25, "anchor": "2026-01-01T00:00:00.5Z"},
    {
        "type": "rrule",
        "rule": "FREQ=MONTHLY;BYDAY=-1FR",
        "starts": "2026-01-01T09:00:00+01:00",
        "timezone": "Europe/Paris",
    },
    {"type": "rrule", "rule": "FREQ=HOURLY;INTERVAL=7", "starts": "2026-01-01T09:00:00Z"},
    {"type": "rrule", "rule": "FREQ=DAILY;COUNT=400", "starts": "2026-11-01T09:00:00Z"},
]
RECURRING = GOOD[2:]


def parse(**fields):
    return schedules.parse(fields, now=NOW)


def table(fields, **bounds):
    return schedules.Timetable(task_id=TASK, schedule=schedules.parse(fields, now=NOW), **bounds)


def problems(**fields):
    with pytest.raises(errors.Invalid) as refused:
        parse(**fields)
    return refused.value.errors


@pytest.mark.parametrize("fields", GOOD, ids=str)
def test_what_is_written_is_read_as_the_same_again(fields):
    schedule = schedules.parse(fields, now=NOW)
    written = json.loads(json.dumps(schedules.dump(schedule)))
    assert schedules.parse(written, now=NOW + timedelta(days=400)) == schedule


def test_times_are_written_in_utc_with_z():
    assert schedules.dump(parse(type="once", at="2026-12-24T18:00:00+01:00"))["at"] == "2026-12-24T17:00:00Z"


def test_now_and_the_anchor_of_an_interval_are_fixed_at_registration():
    assert schedules.dump(parse(type="now")) == {"type": "now", "at": "2026-11-21T08:00:00Z"}
    assert schedules.dump(parse(type="interval", every=60))["anchor"] == "2026-11-21T08:00:00Z"


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({}, "type", "one of now, once, cron, interval, rrule"),
        ({"type": "cro"}, "type", "one of"),
        ({"type": ["now"]}, "type", "one of"),
        ({"type": "once"}, "at", "required"),
        ({"type": "once", "at": "2026-12-24T18:00:00"}, "at", "without an offset"),
        ({"type": "once", "at": "tomorrow"}, "at", "no time"),
        ({"type": "once", "at": "2026-02-30T00:00:00Z"}, "at", "no such time"),
        ({"type": "once", "at": "9999-12-31T23:59:59-12:00"}, "at", "Times lie"),
        ({"type": "once", "at": 1790000000}, "at", "no time"),
        ({"type": "once", "at": "2026-12-24T18:00:00Z", "timezone": "UTC"}, "timezone", "Unknown field."),
        ({"type": "cron"}, "expression", "required"),
        ({"type": "cron", "expression": ["* * * * *"]}, "expression", "not a text"),
        ({"type": "cron", "expression": "*" * 10_000}, "expression", "255"),
        ({"type": "cron", "expression": "0 0 * * *\0"}, "expression", "cannot be read"),
        ({"type": "cron", "expression": "0 0 * * *", "timezone": "Mars/Olympus"}, "timezone", "not known"),
        ({"type": "cron", "expression": "0 0 * * *", "timezone": "../etc/passwd"}, "timezone", "not known"),
        ({"type": "cron", "expression": "0 0 * * *", "timezone": "localtime"}, "timezone", "not known"),
        ({"type": "cron", "expression": "0 0 * * *", "timezone": ["UTC"]}, "timezone", "not known"),
        ({"type": "interval"}, "every", "required"),
        ({"type": "interval", "every": True}, "every", "number"),
        ({"type": "interval", "every": "60"}, "every", "number"),
        ({"type": "interval", "every": 0.5}, "every", "1 to"),
        ({"type": "interval", "every": 10**400}, "every", "1 to"),
        ({"type": "interval", "every": float("nan")}, "every", "1 to"),
        ({"type": "interval", "every": float("inf")}, "every", "1 to"),
        ({"type": "interval", "every": 1.0001}, "every", "three decimals"),
        ({"type": "interval", "every": 60, "anchor": "noon"}, "anchor", "no time"),
        ({"type": "rrule", "rule": "FREQ=DAILY"}, "starts", "required"),
        ({"type": "rrule", "rule": "X" * 2000, "starts": "2026-01-01T00:00:00Z"}, "rule", "1,000"),
    ],
)
def test_a_refusal_names_the_field_and_what_is_wrong(fields, field, words):
    (sentence,) = problems(**fields)[field]
    assert words in sentence


def test_all_wrong_fields_are_named_at_once():
    found = problems(type="cron", expression="nonsense", timezone=5, colour="red")
    assert set(found) == {"expression", "timezone", "colour"}


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
GOOD_AND_BAD_TIMES = [
    "2026-01-01T00:00:00Z",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59Z",
    "2026-01-01T24:00:00Z",
]
GOOD_AND_BAD_TEXTS = ["now", "interval", "UTC", "Asia", "", "* * * * *", "0 0 29 2 *", "@x", "FREQ=DAILY"]
near = st.sampled_from([*GOOD_AND_BAD_TEXTS, *GOOD_AND_BAD_TIMES, 10**30, -1, 1.5])
names = st.sampled_from(["type", "at", "expression", "timezone", "every", "anchor", "rule", "starts"])
kind = st.sampled_from(["now", "once", "cron", "interval", "rrule"])
objects = st.builds(
    lambda of, rest: {**rest, "type": of},
    kind | anything,
    st.dictionaries(names | st.text(max_size=5), near | anything, max_size=6),
)
cron_like = st.text("0123456789*/,-#LW@ MONSUJA", max_size=25) | st.lists(
    st.text("0123456789*/,-#LW", min_size=1, max_size=4), min_size=5, max_size=5
).map(" ".join)
NAMES = "FREQ INTERVAL COUNT UNTIL WKST BYDAY BYMONTH BYMONTHDAY BYYEARDAY BYHOUR BYSETPOS BYWEEKNO"
VALUES = "DAILY YEARLY MONTHLY HOURLY SECONDLY MO 1MO -5SU 1 2 31 -1 20270101 0 99 +3 1,2 999999 5,"
rule_part = st.tuples(st.sampled_from(NAMES.split()), st.sampled_from(VALUES.split())).map("=".join)
rule_like = st.lists(rule_part, max_size=5).map(lambda parts: ";".join(["FREQ=YEARLY", *parts]))


def read(fields):
    try:
        return schedules.parse(fields, now=NOW), {}
    except errors.Invalid as exc:
        return None, exc.errors


def holds(fields):
    """Whatever was read can be asked anything."""
    schedule, refused = read(fields)
    if schedule is None:
        assert refused
        assert all(isinstance(name, str) and sentences for name, sentences in refused.items())
        return
    mine = schedules.Timetable(task_id=TASK, schedule=schedule, jitter=SECOND)
    assert schedules.describe(schedule)
    assert isinstance(schedules.warnings(mine, now=NOW), list)
    assert schedules.parse(schedules.dump(schedule), now=NOW) == schedule
    slots = list(islice(mine.upcoming(NOW), 3))
    assert slots == sorted(set(slots))


@settings(derandomized, max_examples=600)
@given(data=objects)
def test_reading_any_json_yields_a_schedule_or_names_the_field(data):
    holds(data)


@settings(derandomized, max_examples=500)
@given(text=cron_like)
def test_any_expression_is_read_or_refused(text):
    holds({"type": "cron", "expression": text, "timezone": "Europe/Paris"})


@settings(derandomized, max_examples=400)
@given(text=rule_like)
def test_any_rule_is_read_or_refused(text):
    holds({"type": "rrule", "rule": text, "starts": "2026-03-01T02:30:00+01:00", "timezone": "Europe/Paris"})


def test_what_is_no_object_is_refused():
    for data in (None, [], "now", 5):
        with pytest.raises(errors.Invalid):
            schedules.parse(data, now=NOW)


def test_a_one_time_slot_stands_also_when_it_is_past():
    at = datetime(2026, 12, 24, 17, tzinfo=UTC)
    mine = table({"type": "once", "at": "2026-12-24T18:00:00+01:00"})
    assert mine.next_after(at - 9999 * timedelta(days=1)) == at
    assert mine.next_after(at - TICK) == at
    assert mine.next_after(at) is None


def test_an_interval_does_not_drift():
    anchor = datetime(2026, 1, 1, tzinfo=UTC)
    mine = table({"type": "interval", "every": 1.1, "anchor": "2026-01-01T00:00:00Z"})
    slots = list(islice(mine.upcoming(anchor - TICK), 10_001))
    assert slots == [anchor + k * timedelta(milliseconds=1100) for k in range(10_001)]


@settings(derandomized, max_examples=200)
@given(millis=st.integers(1000, 10**10), micros=st.integers(-(10**15), 10**15))
def test_the_next_slot_of_an_interval_is_exact_from_anywhere(millis, micros):
    every = timedelta(milliseconds=millis)
    mine = table({"type": "interval", "every": millis / 1000})
    instant = NOW + timedelta(microseconds=micros)
    slot = mine.next_after(instant)
    if slot is not None:  # None: beyond the horizon
        assert slot > instant
        assert slot >= NOW
        assert slot == NOW or (slot - NOW) % every == timedelta(0)
        assert slot - every <= instant or slot == NOW


def test_slots_lie_within_the_bounds_which_are_included():
    noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    fields = {"type": "cron", "expression": "0 * * * *"}
    mine = table(fields, starts_at=noon, ends_at=noon + timedelta(hours=2))
    assert [slot.hour for slot in mine.upcoming(NOW)] == [12, 13, 14]
    mine = table(fields, starts_at=noon + SECOND, ends_at=noon + timedelta(hours=2) - SECOND)
    assert [slot.hour for slot in mine.upcoming(NOW)] == [13]
    assert list(table(fields, ends_at=NOW - SECOND).upcoming(NOW)) == []


def test_bounds_at_the_ends_of_time_are_no_trouble():
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    for fields in GOOD:
        for jitter in (timedelta(0), timedelta(hours=1)):
            mine = table(fields, starts_at=first, ends_at=last, jitter=jitter)
            assert mine.next_after(first) is not None
            assert mine.next_after(last) is None


@pytest.mark.parametrize("jitter", [0, 3600], ids="jitter {}".format)
@pytest.mark.parametrize("fields", RECURRING, ids=str)
def test_the_ways_to_ask_agree(fields, jitter):
    mine = table(fields, jitter=timedelta(seconds=jitter))
    slots = list(islice(mine.upcoming(NOW), 60))
    assert slots == sorted(set(slots))
    assert list(mine.between(NOW, slots[-1])) == slots
    assert list(mine.between(slots[3], slots[7])) == slots[4:8]
    for before, after in pairwise(slots):
        assert mine.next_after(before) == after
        assert mine.next_after(after - TICK) == after
        assert mine.next_after(before + (after - before) / 2) == after


@settings(derandomized, max_examples=150)
@given(
    fields=st.sampled_from(
        [*RECURRING, {"type": "cron", "expression": "0,1,30 1-3 * * *", "timezone": "Europe/Paris"}]
    ),
    seconds=st.floats(0.001, 3600),
    task=st.uuids(),
    days=st.floats(0, 300),
)
def test_jitter_delays_each_slot_by_less_than_itself_and_the_gap(fields, seconds, task, days):
    schedule = schedules.parse(fields, now=NOW)
    jitter = timedelta(seconds=seconds)
    plain = schedules.Timetable(task_id=task, schedule=schedule)
    moved = schedules.Timetable(task_id=task, schedule=schedule, jitter=jitter)
    start = NOW + timedelta(days=days)
    nominal = list(islice(plain.upcoming(start), 20))
    slots = list(islice(moved.upcoming(nominal[0] - TICK), 20))
    first = slots.index(next(slot for slot in slots if slot >= nominal[0]))
    for (due, following), slot in zip(pairwise(nominal), slots[first:], strict=False):
        offset = slot - due
        assert timedelta(0) <= offset < max(min(jitter, following - due), TICK)
        assert offset % timedelta(milliseconds=1) == timedelta(0)


def test_jitter_is_the_same_in_every_process_and_differs_between_tasks():
    schedule = schedules.parse(GOOD[2], now=NOW)
    slots = {
        schedules.Timetable(task_id=UUID(int=k), schedule=schedule, jitter=timedelta(hours=1)).next_after(NOW)
        for k in range(100)
    }
    assert len(slots) > 95
    mine = table(GOOD[2], jitter=timedelta(hours=1)).next_after(NOW)
    assert mine == datetime(2026, 11, 23, 8, 3, 55, 497000, tzinfo=UTC)  # tasks in the database hold such slots


def test_the_last_slot_has_jitter_too_and_may_pass_the_end():
    ends_at = datetime(2026, 11, 23, 8, tzinfo=UTC)
    mine = table(GOOD[2], ends_at=ends_at, jitter=timedelta(hours=1))
    (slot,) = mine.upcoming(NOW)
    assert slot > ends_at
    once = table(GOOD[1], jitter=timedelta(hours=1)).next_after(NOW)
    assert timedelta(0) < once - datetime(2026, 12, 24, 17, tzinfo=UTC) < timedelta(hours=1)


def test_the_examples_of_the_documentation_are_read():
    page = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text()
    examples = [json.loads(example) for example in re.findall(r"`(\{.*?\})`", page)]
    assert {example["type"] for example in examples} == {"now", "once", "cron", "interval", "rrule"}
    for example in examples:
        holds(example)
        assert read(example)[0] is not None
