"""Which runs share a message, and how many."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from app import packs
from app.messages import Message, Pack, Ticket, TicketError

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def message(target="quick", attempt=1, **changed):
    ticket = Ticket(task=uuid4(), run=uuid4(), slot=NOW, attempt=attempt, sent_at=NOW)
    made = {"ticket": ticket, "target": target, "queue": "default", "priority": 5, "args": [], "kwargs": {}}
    return Message(**made | {"timeout": timedelta(seconds=9)} | changed)


def batch(count, **changed):
    return [message(**changed) for _ in range(count)]


def sizes(messages, durations, processes=2):
    pace = packs.Pace(durations=durations, processes={"default": processes})
    return [len(parcel.messages) for parcel in packs.pack(messages, pace)]


@pytest.mark.parametrize(
    ("count", "seconds", "processes", "largest"),
    [
        (1000, 0.001, 2, 200),  # as much as a pack may hold
        (1000, 0.010, 2, 20),  # 200 ms of work
        (1000, 0.150, 2, 1),  # a slow target goes alone
        (4000, 0.0, 2, 500),  # quicker than can be measured
        (200, 0.001, 2, 50),  # spread over all processes before packs grow
        (200, 0.002, 50, 2),
        (15, 0.005, 2, 1),  # too few to be spread
        (15, 0.001, 2, 5),  # less work than a message costs
        (200, 0.0, 50, 12),
        (1, 0.001, 2, 1),
        (6, 0.0, 2, 6),
    ],
)
def test_a_pack_holds_what_its_target_does_in_200_ms_and_leaves_no_process_idle(count, seconds, processes, largest):
    made = sizes(batch(count), {"quick": seconds}, processes)
    assert (max(made), sum(made)) == (largest, count)


def test_an_unknown_target_is_never_packed():
    assert sizes(batch(500, target="unknown"), {"quick": 0.001}) == [1] * 500


def test_a_second_attempt_is_never_packed():
    assert sizes(batch(500, attempt=2), {"quick": 0.001}) == [1] * 500


def test_a_pack_holds_one_target_one_queue_and_one_priority():
    mixed = batch(50) + batch(50, target="other") + batch(50, queue="reports") + batch(50, priority=9)
    pace = packs.Pace(durations={"quick": 0.001, "other": 0.001}, processes={})
    parcels = packs.pack(mixed, pace)
    for parcel in parcels:
        assert len({(each.target, each.queue, each.priority) for each in parcel.messages}) == 1
    assert sum(len(parcel.messages) for parcel in parcels) == 200


def test_large_arguments_make_small_packs():
    parcels = packs.pack(
        batch(100, args=["x" * 30_000]), packs.Pace(durations={"quick": 0.001}, processes={"default": 1})
    )
    assert max(len(parcel.messages) for parcel in parcels) * 30_000 <= packs.MAX_BYTES


def test_a_pack_is_read_as_it_was_written():
    sent = Pack.of(batch(3, args=[1], kwargs={"n": None}))
    assert Pack.decode(sent.encode()) == sent
    assert Pack.decode(sent.encode()).messages[0].ticket.sent_at == NOW


@pytest.mark.parametrize("raw", [None, "pack", {}, {"id": "1"}, Pack.of(batch(1)).encode() | {"runs": [["x"]]}])
def test_what_is_no_pack_is_refused(raw):
    with pytest.raises(TicketError):
        Pack.decode(raw)
