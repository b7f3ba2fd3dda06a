"""The queue model by itself: figures that can be worked out by hand, and what must hold whatever falls due."""

import math
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.forecast import loads, mends, model, outlook
from app.forecast.loads import BEGINS, LASTS, PER_MINUTE, PLACE, RUNS, SQUARE, WORK
from app.forecast.model import Pool
from app.forecast.tasks import NONE, QUICK, Source, Tasks, size

MINUTES = 10
LATE = model.GRACE


def a_load(*due):
    """What falls due: the second, how many runs, and how long each takes."""
    load = loads.empty(MINUTES * PER_MINUTE)
    for second, runs, seconds in due:
        minute, rest = divmod(second, 60)
        bin_ = int(np.searchsorted(BEGINS, rest, side="right")) - 1
        where = int(size(np.array([seconds]))[0]), minute * PER_MINUTE + bin_
        place = rest - BEGINS[bin_]
        for moment, value in ((RUNS, runs), (WORK, runs * seconds), (PLACE, runs * place), (SQUARE, runs * place**2)):
            load[moment][where] += value
    return load


def a_pool(processes, *queues):
    return Pool(queues=frozenset(queues or {"default"}), processes=processes)


def waits(processes, *due):
    return model.simulate({"default": a_load(*due)}, [a_pool(processes)])["default"]


def test_a_burst_starts_its_last_run_after_all_the_others_have_had_their_turn():
    found = waits(4, (120, 40, 2.0))
    assert found.longest[2] == pytest.approx(9 * 2.0, abs=0.1)
    # each process has ten of them, and begins the seventh after 12 s; the number is taken from a straight line
    assert found.late[2] == pytest.approx(16, abs=2)
    assert found.late_minutes == [2]


def test_as_many_long_runs_as_there_are_processes_wait_for_nothing_but_hold_up_what_comes_next():
    found = waits(2, (0, 2, 130.0), (60, 5, 0.1))
    assert found.longest[0] == 0
    assert found.longest[1] == pytest.approx(70, abs=1)


def test_one_process_that_is_left_free_is_enough_for_the_short_ones():
    assert waits(3, (0, 2, 130.0), (60, 5, 0.1)).longest[1] < 1


def test_a_backlog_is_carried_into_the_next_minutes():
    found = waits(1, (0, 1, 100.0), (60, 1, 5.0), (120, 1, 5.0))
    assert found.longest[1] == pytest.approx(40, abs=0.1)
    assert found.longest[2] == 0


def test_what_comes_one_after_the_other_waits_for_nobody():
    """Sixty runs of 2 s in a minute are the work of two processes, but at once they would wait for half a minute."""
    assert waits(4, *((second, 1, 2.0) for second in range(60))).longest[0] == 0
    assert waits(4, (0, 60, 2.0)).longest[0] > 20


def test_many_short_runs_of_one_target_travel_together():
    together = loads.empty(MINUTES * PER_MINUTE)
    together[:2, QUICK, 0] = 10_000, 10
    apart = loads.empty(MINUTES * PER_MINUTE)
    apart[:2, QUICK + 1, 0] = 10_000, 10
    packed, single = (
        model.simulate({"default": load}, [a_pool(2)])["default"].longest[0] for load in (together, apart)
    )
    assert packed == pytest.approx(10_000 * (0.001 + model.PACKED) / 2, abs=0.1)
    assert single == pytest.approx(10_000 * (0.001 + model.SINGLE) / 2, abs=0.1)


def test_no_run_begins_before_it_was_fired():
    found = waits(10_000, (0, 60_000, 0.001))
    assert found.longest[0] == pytest.approx(60_000 / model.FIRED, abs=1)


def test_without_a_worker_every_run_waits_for_ever_and_of_another_app_nothing_is_known():
    due = a_load((60, 5, 1.0))
    assert model.simulate({"default": due}, [a_pool(4, "other")])["default"].longest[1] == math.inf
    assert model.simulate({"default": due}, [], {"default"})["default"].late_minutes == []


def test_queues_that_share_processes_make_each_other_wait_and_others_do_not():
    given = {"a": a_load((0, 40, 5.0)), "b": a_load((10, 1, 0.1)), "c": a_load((10, 1, 0.1))}
    found = model.simulate(given, [a_pool(2, "a", "b"), a_pool(1, "c")])
    assert found["b"].longest[0] > LATE
    assert found["c"].longest[0] == 0


def test_a_worker_of_a_queue_of_its_own_helps_that_queue():
    given = {"a": a_load((0, 40, 5.0)), "b": a_load((10, 1, 0.1))}
    found = model.simulate(given, [a_pool(2, "a", "b"), a_pool(1, "b")])
    assert found["a"].longest[0] > LATE
    assert found["b"].longest[0] == 0


@pytest.mark.parametrize(("runs", "seconds"), [(40, 2.0), (100, 3.0), (7, 60.0), (3000, 0.4)])
def test_the_processes_that_are_needed_are_the_fewest_that_do(runs, seconds):
    given = {"default": a_load((120, runs, seconds))}
    enough = mends.processes(given, [a_pool(2)], "default", slice(0, MINUTES))
    assert waits(enough, (120, runs, seconds)).longest[2] <= LATE
    assert waits(enough - 1, (120, runs, seconds)).longest[2] > LATE


def some_tasks(*groups):
    """Tasks that are due once: the second, how many, and how long each of them runs; each group has a schedule."""
    rows = [(group, *due) for group, due in enumerate(groups)]
    usual = {"until": NONE, "left": NONE, "jitter": 0.0, "strides": False, "size": 2, "known": 1, "queue": 0}
    columns = {name: np.full(len(rows), value) for name, value in usual.items()}
    named = {
        name: np.array(each)
        for name, each in zip(("source", "first", "tasks", "work"), zip(*rows, strict=True), strict=True)
    }
    sources = [Source(text=str(group), kind="once", rule=None, zone=None, every=None) for group in range(len(rows))]
    start = datetime(2026, 11, 24, 8, 17, tzinfo=UTC)
    return Tasks(start=start, queues=["default"], sources=sources, **columns | named)


def moved(minute, *full):
    """The move that would mend a burst in a minute, where others are full too."""
    others = [(each * 60, 8, 2.0) for each in full]
    found = outlook.look(some_tasks((minute * 60, 10, 2.0), *others), [a_pool(2)], MINUTES)
    [late] = mends.troubles(found, outlook.spells(found), 1)
    assert (late.spell.start, late.spell.end) == (minute, minute + 1)
    return late.mend.minutes


def test_a_move_that_mends_leads_to_a_minute_of_the_forecast_that_has_room():
    every = set(range(MINUTES))
    assert moved(2, *every - {4}) == 2
    assert moved(2, *every - {0}) == -2
    assert moved(8, *every - {4}) == -4
    # what would be moved out of the forecast is late no more, as it is not seen any more
    assert [moved(minute, *every) for minute in (0, 2, 8, MINUTES - 1)] == [None] * 4


DUE = st.tuples(
    st.integers(0, MINUTES * 60 - 1), st.integers(1, 400), st.sampled_from([0.01, 0.3, 2.0, 6.0, 30.0, 200.0])
)


@given(due=st.lists(DUE, min_size=1, max_size=12), processes=st.integers(1, 40), more=st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_more_processes_make_nothing_later(due, processes, more):
    before, after = waits(processes, *due).longest, waits(processes + more, *due).longest
    # what is poured is right to a second: see the model
    assert all(new <= old + 1 for old, new in zip(before, after, strict=True))


@given(due=st.lists(DUE, min_size=1, max_size=12), extra=DUE, processes=st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_more_runs_make_nothing_earlier(due, extra, processes):
    before, after = waits(processes, *due).longest, waits(processes, *due, extra).longest
    # one more run widens the time over which its bin is taken to come, by the bin's length at most to either side
    assert all(new >= old - 2 * max(LASTS) for old, new in zip(before, after, strict=True))


@given(due=st.lists(DUE, min_size=1, max_size=12), processes=st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_nobody_is_late_who_does_not_wait_and_no_more_than_there_are(due, processes):
    found = waits(processes, *due)
    for minute in range(MINUTES):
        there = sum(runs for second, runs, _ in due if second // 60 == minute)
        assert found.late[minute] <= there * 1.001 + 0.01
        assert (found.late[minute] > 0) == (found.longest[minute] > LATE)


def test_the_bins_of_a_minute_are_its_seconds():
    assert sum(LASTS) == 60
    assert (np.cumsum(LASTS)[:-1] == BEGINS[1:]).all()
