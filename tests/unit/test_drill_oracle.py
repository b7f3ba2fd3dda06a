"""What must, may and must not run, from tables of calls. Times are seconds after noon."""

from datetime import UTC, datetime, timedelta

import pytest

from drill import oracle
from drill.history import Answer, Call, Deed, History
from drill.oracle import Demand

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
OK, REFUSED, UNKNOWN = Answer.ACKNOWLEDGED, Answer.REFUSED, Answer.UNKNOWN


def at(seconds):
    return NOON + timedelta(seconds=seconds)


def once(seconds):
    return {"type": "once", "at": at(seconds).isoformat()}


def every(seconds, anchor=0.0):
    return {"type": "interval", "every": seconds, "anchor": at(anchor).isoformat()}


def call(deed, asked, answered, answer=OK, schedule=None, task="t"):
    return Call(task=task, deed=deed, asked_at=at(asked), answered_at=at(answered), answer=answer, schedule=schedule)


def demanded(calls, until=20.0):
    """Seconds after noon of each slot, by what is demanded of it."""
    found = {demand: [] for demand in Demand}
    for slot in oracle.slots(History(calls=tuple(calls)), at(until)):
        found[slot.demand].append((slot.at - NOON).total_seconds())
    return found[Demand.MUST], found[Demand.MAY], found[Demand.PAUSED]


REGISTERED = call(Deed.REGISTER, 0.9, 1.1, schedule=every(2))

HISTORIES = {
    "a one-time slot ahead must run": ([call(Deed.REGISTER, 0, 1, schedule=once(5))], [5], [], []),
    "one that is past when it is answered must run too": (
        [call(Deed.REGISTER, 0, 1, schedule=once(-40))],
        [-40],
        [],
        [],
    ),
    "one beyond the end is none": ([call(Deed.REGISTER, 0, 1, schedule=once(21))], [], [], []),
    "refused means none": ([call(Deed.REGISTER, 0, 1, REFUSED, once(5))], [], [], []),
    "unknown means maybe": ([call(Deed.REGISTER, 0, 1, UNKNOWN, once(5))], [], [5], []),
    "unknown and past means maybe too": ([call(Deed.REGISTER, 0, 1, UNKNOWN, once(-5))], [], [-5], []),
    "an interval runs on its grid from the answer on": ([REGISTERED], [2, 4, 6, 8, 10, 12, 14, 16, 18], [0], []),
    "its anchor may lie ahead": ([call(Deed.REGISTER, 0, 1, schedule=every(5, 7.5))], [7.5, 12.5, 17.5], [], []),
    "or far behind": ([call(Deed.REGISTER, 0, 1, schedule=every(7, -1000))], [1, 8, 15], [], []),
    "between asking and answer it may run": (
        [call(Deed.REGISTER, 1, 5, schedule=every(2))],
        [6, 8, 10, 12, 14, 16, 18],
        [0, 2, 4],
        [],
    ),
    "a change puts another grid in its place": (
        [REGISTERED, call(Deed.CHANGE, 6.9, 7.1, schedule=every(4, 1))],
        [2, 4, 9, 13, 17],
        [0, 6, 8],
        [],
    ),
    "where both grids agree around a change, it may still be either": (
        [REGISTERED, call(Deed.CHANGE, 6.9, 7.1, schedule=every(4))],
        [2, 4, 12, 16],
        [0, 6, 8],
        [],
    ),
    "a pause stops it, with a doubt of a second": (
        [REGISTERED, call(Deed.PAUSE, 6.9, 7.1)],
        [2, 4],
        [0, 6, 8],
        [10, 12, 14, 16, 18],
    ),
    "until it is resumed": (
        [REGISTERED, call(Deed.PAUSE, 6.9, 7.1), call(Deed.RESUME, 12.9, 13.1)],
        [2, 4, 16, 18],
        [0, 6, 8, 12, 14],
        [10],
    ),
    "a refused pause changes nothing": (
        [REGISTERED, call(Deed.PAUSE, 6.9, 7.1, REFUSED)],
        [2, 4, 6, 8, 10, 12, 14, 16, 18],
        [0],
        [],
    ),
    "after an unknown pause nothing is certain": (
        [REGISTERED, call(Deed.PAUSE, 6.9, 15, UNKNOWN)],
        [2, 4],
        [0, 6, 8, 10, 12, 14, 16, 18],
        [],
    ),
    "nor after an unknown change, of either grid": (
        [REGISTERED, call(Deed.CHANGE, 6.9, 15, UNKNOWN, every(6, 1))],
        [2, 4],
        [0, 6, 7, 8, 10, 12, 13, 14, 16, 18, 19],
        [],
    ),
    "deletion ends it": ([REGISTERED, call(Deed.DELETE, 6.9, 7.1)], [2, 4], [0, 6, 8], []),
    "a one-time slot that is moved runs at its new time": (
        [call(Deed.REGISTER, 0, 1, schedule=once(12)), call(Deed.CHANGE, 5, 5.1, schedule=once(9))],
        [9],
        [],
        [],
    ),
    "one that is moved into the past runs at once": (
        [call(Deed.REGISTER, 0, 1, schedule=once(12)), call(Deed.CHANGE, 5, 5.1, schedule=once(2))],
        [2],
        [],
        [],
    ),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_what_is_demanded(name):
    calls, *expected = HISTORIES[name]
    assert demanded(calls) == tuple(expected)


def test_a_minutely_cron_is_due_on_each_minute():
    schedule = {"type": "cron", "expression": "* * * * *", "timezone": "Europe/Paris"}
    assert demanded([call(Deed.REGISTER, 1, 2, schedule=schedule)], until=185) == ([60, 120, 180], [0], [])


def test_a_past_slot_is_due_from_the_answer_on():
    [slot] = oracle.slots(History(calls=(call(Deed.REGISTER, 0, 1, schedule=once(-40)),)), at(20))
    assert (slot.at, slot.due) == (at(-40), at(1))


def test_a_slot_knows_what_overtook_it():
    found = oracle.slots(History(calls=(REGISTERED, call(Deed.DELETE, 6.9, 7.1))), at(20))
    assert {slot.overtaken_at for slot in found if slot.demand == Demand.MUST} == {at(6.9)}


def test_a_kind_that_it_does_not_know_is_no_silent_pass():
    with pytest.raises(ValueError, match="rrule"):
        oracle.slots(History(calls=(call(Deed.REGISTER, 0, 1, schedule={"type": "rrule"}),)), at(20))


def test_a_history_is_the_same_after_a_journey_as_json():
    history = History(calls=(REGISTERED, call(Deed.PAUSE, 6.9, 15, UNKNOWN)))
    assert History.load(history.dump()) == history
