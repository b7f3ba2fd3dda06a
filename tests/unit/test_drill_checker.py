"""What the checker says of tables of slots, runs and starts. Times are seconds after noon; it reads at 100."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from drill import opinion
from drill.checker import Fault, Offence, check
from drill.ledger import Attempt, Row
from drill.oracle import Demand, Slot
from drill.witness import Start

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
UNTIL = 100
FAULT = Fault(name="fault", begin=NOON + timedelta(seconds=20), healed=NOON + timedelta(seconds=40))


def at(seconds):
    return NOON + timedelta(seconds=seconds)


def slot(seconds, demand=Demand.MUST, due=None, overtaken=None, task="t"):
    return Slot(
        task=task,
        at=at(seconds),
        due=at(seconds if due is None else due),
        demand=demand,
        kind="interval",
        overtaken_at=None if overtaken is None else at(overtaken),
    )


def row(seconds, run="r", claimed=True, **fields):
    claimed_at = at(seconds) if claimed else None
    return Row(run=run, task="t", slot=at(seconds), attempt_started_at=claimed_at, **fields)


def start(seconds, run="r", task="t"):
    return Start(at=at(seconds), run=run, task=task)


def past(number):
    return Attempt(attempt=number, worker="w", started_at=at(50), finished_at=at(51), outcome="lost")


def judge(slots, rows, starts, faults=()):
    return check(slots, rows, starts, faults=faults, until=at(UNTIL))


FINE = {
    "on time": ([slot(50)], [row(50)], [start(50.01)]),
    "at the bound": ([slot(50)], [row(50)], [start(60)]),
    "a hair early": ([slot(50)], [row(50)], [start(49.96)]),
    "a past slot right after the answer": ([slot(10, due=50)], [row(10)], [start(51)]),
    "a past slot before the answer came": ([slot(10, due=50)], [row(10)], [start(49)]),
    "not demanded yet": ([slot(91)], [row(91, state="queued", claimed=False)], []),
    "not demanded yet and running": ([slot(91)], [row(91, state="running")], [start(91)]),
    "may and did not": ([slot(50, Demand.MAY)], [], []),
    "may and did": ([slot(50, Demand.MAY)], [row(50)], [start(50)]),
    "may and did so late, as it may not have been there before": ([slot(50, Demand.MAY)], [row(50)], [start(70)]),
    "may and was skipped": ([slot(50, Demand.MAY)], [row(50, state="skipped", claimed=False)], []),
    "paused and recorded so": ([slot(50, Demand.PAUSED)], [row(50, state="skipped", claimed=False)], []),
    "paused and not recorded": ([slot(50, Demand.PAUSED)], [], []),
    "two starts in two attempts": ([slot(50)], [row(50, attempt=2, attempts=(past(1),))], [start(50), start(55)]),
    "deleted while it was on its way": (
        [slot(50, overtaken=52)],
        [row(50, state="cancelled", reason="task_deleted", claimed=False)],
        [],
    ),
    "deleted before it was recorded": ([slot(50, overtaken=52)], [], []),
    "failed, but in time": ([slot(50)], [row(50, state="failed", reason="error")], [start(50)]),
}


@pytest.mark.parametrize("name", FINE)
def test_nothing_is_found_where_nothing_is_wrong(name):
    verdict = judge(*FINE[name])
    assert verdict.offences == ()
    assert verdict.valid


WRONG = {
    "no run and no start": ([slot(50)], [], [], [Offence.LOST]),
    "recorded and never started": ([slot(50)], [row(50, state="pending", claimed=False)], [], [Offence.LOST]),
    "said to have succeeded and never started": ([slot(50)], [row(50)], [], [Offence.LOST]),
    "cancelled long after it was due": (
        [slot(50, overtaken=70)],
        [row(50, state="cancelled", claimed=False)],
        [],
        [Offence.LOST],
    ),
    "cancelled though nobody asked": ([slot(50)], [row(50, state="cancelled", claimed=False)], [], [Offence.LOST]),
    "skipped though it must start": ([slot(50)], [row(50, state="skipped", claimed=False)], [], [Offence.MISSED]),
    "folded into a later one": ([slot(50), slot(52)], [row(52, missed=1)], [start(52)], [Offence.MISSED]),
    "late": ([slot(50)], [row(50)], [start(60.1)], [Offence.LATE]),
    "a past slot, late after the answer": ([slot(10, due=50)], [row(10)], [start(61)], [Offence.LATE]),
    "early": ([slot(50)], [row(50)], [start(49.9)], [Offence.EARLY]),
    "recorded twice": ([slot(50)], [row(50), row(50, run="s", claimed=False)], [start(50)], [Offence.RECORDED_TWICE]),
    "executed twice": ([slot(50)], [row(50)], [start(50), start(51)], [Offence.EXECUTED_TWICE]),
    "executed twice, and a second attempt is only waiting": (
        [slot(50)],
        [row(50, state="retrying", attempt=1, attempts=(past(1),))],
        [start(50), start(51)],
        [Offence.EXECUTED_TWICE, Offence.UNENDED],
    ),
    "recorded and executed twice": (
        [slot(50)],
        [row(50), row(50, run="s")],
        [start(50), start(50, run="s")],
        [Offence.RECORDED_TWICE, Offence.EXECUTED_TWICE],
    ),
    "a run without a slot": ([], [row(50)], [], [Offence.PHANTOM]),
    "a run without a slot that started": (
        [slot(52)],
        [row(50), row(52, run="s")],
        [start(50), start(52, "s")],
        [Offence.PHANTOM],
    ),
    "a start without a run": ([slot(50)], [row(50)], [start(50), start(51, run="unknown")], [Offence.PHANTOM]),
    "a start that is not recorded": ([slot(50)], [], [start(50)], [Offence.LOST, Offence.PHANTOM]),
    "a start while paused": ([slot(50, Demand.PAUSED)], [row(50)], [start(50)], [Offence.PHANTOM]),
    "fired while paused": ([slot(50, Demand.PAUSED)], [row(50, state="queued")], [], [Offence.PHANTOM]),
    "still running": ([slot(50)], [row(50, state="running")], [start(50)], [Offence.UNENDED]),
    "may, but early": ([slot(50, Demand.MAY)], [row(50)], [start(49)], [Offence.EARLY]),
    "may, but twice": ([slot(50, Demand.MAY)], [row(50)], [start(50), start(51)], [Offence.EXECUTED_TWICE]),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_offence_is_found_and_no_other(name):
    slots, rows, starts, expected = WRONG[name]
    verdict = judge(slots, rows, starts)
    assert verdict.counts == Counter(expected)
    assert not verdict.valid
    assert len(verdict.offences) == len(expected)


def test_an_offence_names_the_slot():
    [told] = judge([slot(50)], [row(50, state="pending", claimed=False)], []).offences
    assert told == "lost: t at 2026-06-01 12:00:50.000000 never started: its run is pending"


def test_of_many_offences_the_first_few_are_told_and_all_are_counted():
    verdict = judge([slot(n) for n in range(50)], [], [])
    assert verdict.lost == 50
    assert len(verdict.offences) == 5


FAULTS = {
    # due, start, worst in the fault, after the heal, whether it is excused
    "before the fault, long over": (5, 16, 0, 0, False),
    "on its way when the fault began": (15, 45, 0, 5, True),
    "due within, started within": (21, 33, 12, 0, True),
    "due within, started after the heal": (25, 47, 22, 7, True),
    "due while it recovered": (49, 61, 0, 0, True),
    "due after it had recovered": (51, 62, 0, 0, False),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_late_by_a_fault_is_left_to_the_faults_own_bound(name):
    due, started, worst, after_heal, excused = FAULTS[name]
    verdict = judge([slot(due)], [row(due)], [start(started)], [FAULT])
    [fault] = verdict.faults
    assert (fault.worst, fault.after_heal) == (worst, after_heal)
    assert verdict.late == 1
    assert verdict.worst == started - due
    assert verdict.worst_outside == (0 if excused else started - due)
    assert verdict.valid == excused


def test_a_fault_excuses_no_loss_and_no_double():
    verdict = judge([slot(25), slot(30)], [row(30)], [start(50), start(51)], [FAULT])
    assert verdict.counts == Counter([Offence.LOST, Offence.EXECUTED_TWICE])
    assert (verdict.lost, verdict.doubled) == (1, 1)


def test_a_slot_that_a_fault_held_up_may_be_overtaken_by_a_deletion_later_than_usual():
    rows = [row(25, state="cancelled", claimed=False)]
    assert judge([slot(25, overtaken=45)], rows, [], [FAULT]).valid
    assert not judge([slot(25, overtaken=55)], rows, [], [FAULT]).valid


def test_figures_add_up():
    slots = [slot(n) for n in range(21, 31)] + [slot(60, Demand.MAY), slot(95)]
    rows = [row(n, run=f"r{n}") for n in range(21, 31)]
    starts = [start(45 if n < 25 else n + 0.5, run=f"r{n}") for n in range(21, 31)]
    verdict = judge(slots, rows, starts, [FAULT])
    assert (verdict.slots, verdict.on_time, verdict.late, verdict.lost) == (10, 6, 4, 0)
    [fault] = verdict.faults
    assert (fault.slots, fault.on_time, fault.late, fault.worst, fault.after_heal) == (10, 6, 4, 24, 5)
    assert verdict.valid


@pytest.mark.parametrize(("slow", "p99"), [(0, 0.5), (1, 0.5), (2, 5)])
def test_99_in_a_hundred_of_a_faults_slots_are_no_later_than_its_p99(slow, p99):
    within = [20 + n / 10 for n in range(100)]
    rows = [row(n, run=f"r{n}") for n in (*within, 90)]
    starts = [start(n + (5 if place < slow else 0.5), run=f"r{n}") for place, n in enumerate(within)]
    verdict = judge([slot(n) for n in (*within, 90)], rows, [*starts, start(99, run="r90")], [FAULT])
    assert verdict.faults[0].p99 == p99


ASSIGNMENTS = {
    "each its own": ([0, 5, 10], [0, 5, 10], 3),
    "one is missing": ([0, 20, 40], [0, 40], 2),
    "one too many": ([0, 20], [0, 1, 20], 2),
    "late but within": ([0, 5], [9, 15], 2),
    "too late": ([0], [10.1], 0),
    "too early": ([5], [4.9], 0),
    "one start may fill the gap before it": ([0, 5], [6], 1),
    "two starts after two slots": ([0, 5], [6, 7], 2),
}


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_a_largest_assignment_of_starts_to_windows(name):
    slots, starts, expected = ASSIGNMENTS[name]
    windows = [(at(n - 0.05), at(n + 10)) for n in slots]
    assert len(opinion.assign(windows, [at(n) for n in starts])) == expected


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (opinion.Found(in_time=1, starts=1), 0),
        (opinion.Found(in_time=2, starts=1), 1),  # it would have seen a start that was none
        (opinion.Found(in_time=1, starts=0), 1),  # it would have overlooked one
    ],
)
def test_the_second_opinion_contradicts_a_checker_that_is_wrong(found, told):
    differing = opinion.disagreements(
        [slot(50), slot(70)],
        [start(50)],
        {"t": found},
        bound=timedelta(seconds=10),
        early=timedelta(seconds=0.05),
    )
    assert len(list(differing)) == told
