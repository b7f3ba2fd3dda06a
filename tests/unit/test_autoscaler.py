"""When a worker grows and when it shrinks: the judge alone, shown one look after the other."""

import pytest

from workers.autoscaler import PATIENCE, Change, Judge
from workers.gauge import Reading, used_memory

IDLE = Reading(cpu=0.1, own=0.0, memory=0.2)


@pytest.fixture
def judge():
    return Judge(least=2, most=8, cpu=0.9, memory=0.9, quiet=30.0, window_at=0.0)


def test_work_that_waits_brings_up_processes_after_a_moment_of_patience(judge):
    assert judge.decide(1.0, 2, 5, IDLE) is None
    assert judge.decide(1.0 + PATIENCE / 2, 2, 5, IDLE) is None
    assert judge.decide(1.01 + PATIENCE, 2, 5, IDLE) == Change(by=1, reason="3 wait")


def test_work_that_is_done_before_the_patience_ends_brings_up_none(judge):
    for at in range(20):
        assert judge.decide(at * PATIENCE * 0.9, 2, 5 if at % 2 else 1, IDLE) is None


def test_it_grows_by_one_with_each_look_until_nothing_waits(judge):
    judge.decide(1.0, 2, 8, IDLE)
    assert [judge.decide(1.3 + n / 10, 2 + n, 8, IDLE).by for n in range(6)] == [1] * 6
    assert judge.decide(1.9, 8, 8, IDLE) is None


def test_a_slow_fork_is_followed_by_a_rest(judge):
    judge.decide(1.0, 2, 8, IDLE)
    judge.rest(1.3, took=0.5)
    assert judge.decide(2.7, 3, 8, IDLE) is None
    assert judge.decide(2.9, 3, 8, IDLE).by == 1


def test_what_waits_at_the_broker_counts_too(judge):
    judge.decide(1.0, 2, 2, Reading(depth=1))
    assert judge.decide(1.3, 2, 2, Reading(depth=1)) == Change(by=1, reason="1 wait")


@pytest.mark.parametrize(
    ("seen", "grows"),
    [
        (Reading(memory=0.89), True),
        (Reading(memory=0.9), False),
        (Reading(cpu=0.89, own=1.0), True),
        (Reading(cpu=0.95, own=1.0), False),
        # the machine is busy with others, these processes only wait: one more helps
        (Reading(cpu=1.0, own=0.1), True),
    ],
)
def test_it_grows_only_where_there_is_room(judge, seen, grows):
    judge.decide(1.0, 2, 3, seen)
    change = judge.decide(1.3, 2, 3, seen)
    assert change.by == (1 if grows else 0)
    assert change.reason.startswith("1 wait")


def test_it_never_leaves_the_bounds(judge):
    judge.decide(1.0, 8, 50, IDLE)
    assert judge.decide(2.0, 8, 50, IDLE) is None
    assert judge.decide(3.0, 1, 0, IDLE).by == 1
    assert judge.decide(4.0, 9, 0, IDLE).by == -1


def test_after_quiet_it_shrinks_to_what_was_needed_meanwhile(judge):
    judge.decide(1.0, 8, 8, IDLE)
    judge.decide(5.0, 8, 8, IDLE)
    for at in range(6, 30):
        assert judge.decide(at, 8, 3, IDLE) is None
    assert judge.decide(30.0, 8, 3, IDLE) is None  # eight were needed in this window
    assert judge.decide(60.1, 8, 1, IDLE).by == -5
    assert judge.decide(70.0, 3, 1, IDLE) is None
    assert judge.decide(91.0, 3, 0, IDLE).by == -1
    assert judge.decide(125.0, 2, 0, IDLE) is None


def test_a_message_between_two_looks_counts_as_needed(judge):
    judge.decide(1.0, 8, 0, IDLE)
    judge.peak = max(judge.peak, 7)  # what `maybe_scale` does for each message
    assert judge.decide(31.0, 8, 0, IDLE).by == -1


def test_it_does_not_shrink_while_work_waits_at_the_broker(judge):
    judge.decide(1.0, 8, 0, Reading(depth=20))
    assert judge.decide(100.0, 8, 0, Reading(depth=20)) is None


def test_a_containers_limit_counts_where_it_is_tighter_than_the_machine(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("1500\n")
    (tmp_path / "memory.stat").write_text("anon 900\ninactive_file 501\n")
    assert used_memory(tmp_path) >= 0.999
    (tmp_path / "memory.max").write_text("max\n")
    assert 0 < used_memory(tmp_path) < 1
