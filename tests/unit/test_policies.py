"""What becomes of due slots, as tables of cases."""

from datetime import UTC, datetime, timedelta

import pytest

from app import policies
from app.policies import Due, Fate, bound, overlap, settle
from app.states import Catchup, Overlap

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def ago(*seconds: float) -> list[datetime]:
    return [NOW - timedelta(seconds=s) for s in seconds]


@pytest.mark.parametrize("policy", list(Catchup))
def test_slots_that_can_still_start_in_time_are_each_fired_whatever_the_policy(policy):
    assert settle(ago(10, 5, 0), NOW, policy) == [Due(slot=slot) for slot in ago(10, 5, 0)]


@pytest.mark.parametrize("policy", list(Catchup))
def test_nothing_due_is_nothing_recorded(policy):
    assert settle([], NOW, policy) == []


def test_latest_fires_the_newest_missed_slot_and_says_how_many_it_stands_for():
    assert settle(ago(25, 20, 15, 10, 5), NOW, Catchup.LATEST) == [
        Due(slot=ago(15)[0], missed=2),
        *(Due(slot=slot) for slot in ago(10, 5)),
    ]


def test_latest_with_one_missed_slot_fires_it():
    assert settle(ago(86_400), NOW, Catchup.LATEST) == [Due(slot=ago(86_400)[0])]


def test_all_fires_each_missed_slot():
    assert settle(ago(25, 20, 5), NOW, Catchup.ALL) == [Due(slot=slot) for slot in ago(25, 20, 5)]


def test_none_records_each_missed_slot_as_skipped():
    assert settle(ago(25, 20, 5), NOW, Catchup.NONE) == [
        *(Due(slot=slot, skipped=True) for slot in ago(25, 20)),
        Due(slot=ago(5)[0]),
    ]


@pytest.mark.parametrize("policy", [Catchup.ALL, Catchup.NONE])
def test_beyond_the_bound_the_oldest_that_is_recorded_stands_for_those_before_it(policy):
    slots = ago(*range(policies.MAX_CATCHUP + 60, 10, -1))
    due = settle(slots, NOW, policy)
    assert len(due) == policies.MAX_CATCHUP
    assert due[0].missed == len(slots) - policies.MAX_CATCHUP
    assert all(d.skipped == (policy == Catchup.NONE) for d in due)
    assert sum(d.missed + 1 for d in due) == len(slots)


def test_max_runs_leaves_out_what_comes_after_the_last_run():
    due = [Due(slot=slot) for slot in ago(3, 2, 1)]
    assert bound(due, 2) == due[:2]
    assert bound(due, 5) == due
    assert bound(due, 0) == []


def test_slots_that_are_only_recorded_do_not_count_toward_max_runs():
    due = [Due(slot=slot, skipped=True) for slot in ago(30, 20)] + [Due(slot=slot) for slot in ago(2, 1)]
    assert bound(due, 1) == due[:3]


RUN, HOLD, SKIP, MISS = Fate.RUN, Fate.HOLD, Fate.SKIP, Fate.MISS


@pytest.mark.parametrize(
    ("policy", "nothing_open", "one_open", "one_open_and_one_held"),
    [
        (Overlap.ALLOW, [RUN, RUN, RUN], [RUN, RUN, RUN], [RUN, RUN, RUN]),
        (Overlap.SKIP, [RUN, SKIP, SKIP], [SKIP, SKIP, SKIP], [SKIP, SKIP, SKIP]),
        (Overlap.QUEUE, [RUN, HOLD, SKIP], [HOLD, SKIP, SKIP], [SKIP, SKIP, SKIP]),
        (Overlap.CANCEL, [SKIP, SKIP, RUN], [SKIP, SKIP, HOLD], [SKIP, SKIP, HOLD]),
    ],
)
def test_what_becomes_of_three_slots_that_are_due_at_once(policy, nothing_open, one_open, one_open_and_one_held):
    due = [Due(slot=slot) for slot in ago(3, 2, 1)]
    assert overlap(due, policy, is_open=False, has_held=False) == nothing_open
    assert overlap(due, policy, is_open=True, has_held=False) == one_open
    assert overlap(due, policy, is_open=True, has_held=True) == one_open_and_one_held


@pytest.mark.parametrize("policy", list(Overlap))
def test_a_slot_that_was_missed_stands_in_nobodys_way(policy):
    due = [Due(slot=ago(3)[0], skipped=True), Due(slot=ago(1)[0]), Due(slot=ago(0)[0], skipped=True)]
    assert overlap(due, policy, is_open=False, has_held=False) == [MISS, RUN, MISS]
