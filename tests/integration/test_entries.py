"""RedBeat's entries: readable by RedBeat, written by the holder only."""

import os
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from celery import Celery
from redbeat import RedBeatSchedulerEntry

from beat import entries
from beat.entries import Entries, Entry

SLOT = datetime(2026, 12, 24, 17, 0, 0, 250_000, tzinfo=UTC)


@pytest.fixture
def store(redis_client):
    redis_client.set(entries.lock_key(3), "mine")
    return Entries(redis_client)


def card(slot=SLOT):
    return Entry(task_id=uuid4(), target="debug.echo", slot=slot)


def test_an_entry_rings_at_its_slot_and_not_before(store):
    mine = card()
    store.write({3: [mine]}, {3: "mine"})
    before = store.due([3], SLOT - timedelta(milliseconds=1), 10)
    assert (before.tasks, before.next_at) == ({}, SLOT)
    assert store.due([3], SLOT, 10).tasks == {mine.task_id: 3}


def test_redbeat_itself_can_read_an_entry(store, redis_client):
    mine = card()
    store.write({3: [mine]}, {3: "mine"})
    stock = Celery(set_as_current=False)
    stock.conf.update(redbeat_redis_url=os.environ["REDIS_URL"], redbeat_redis_options={})
    stock.conf.update(redbeat_key_prefix=entries.prefix(3))
    read = RedBeatSchedulerEntry.from_key(entries.prefix(3) + str(mine.task_id), app=stock)
    assert (read.name, read.task, read.enabled) == (str(mine.task_id), "debug.echo", True)
    assert read.schedule.rrule[0] == SLOT.replace(microsecond=0)  # dateutil keeps no fractions
    assert redis_client.zrank(entries.schedule_key(3), read.key) == 0
    stock.redbeat_redis.close()


def test_a_beat_without_the_lease_writes_nothing(store, redis_client):
    assert store.write({3: [card()]}, {3: "another's"}) == set()
    assert redis_client.zcard(entries.schedule_key(3)) == 0


def test_an_entry_that_goes_leaves_nothing_behind(store, redis_client):
    mine = card()
    store.write({3: [mine]}, {3: "mine"})
    store.write({3: [Entry(task_id=mine.task_id, target="", slot=None)]}, {3: "mine"})
    assert redis_client.keys("*") == [entries.lock_key(3)]


def test_a_member_that_is_no_task_is_told_apart(store, redis_client):
    redis_client.zadd(entries.schedule_key(3), {"garbage": 1})
    mine = card()
    store.write({3: [mine]}, {3: "mine"})
    due = store.due([3], SLOT, 10)
    assert (due.tasks, due.unreadable) == ({mine.task_id: 3}, {"garbage": 3})
    store.discard(3, "garbage")
    assert store.due([3], SLOT, 10).unreadable == {}


def test_due_entries_come_soonest_first_and_bounded(store):
    cards = [card(SLOT + timedelta(seconds=s)) for s in (3, 1, 2)]
    store.write({3: cards}, {3: "mine"})
    due = store.due([3], SLOT + timedelta(minutes=1), 2)
    assert list(due.tasks) == [cards[1].task_id, cards[2].task_id]


def test_a_bucket_is_incomplete_until_it_is_marked(store, redis_client):
    assert store.incomplete([3]) == {3}
    store.write({3: []}, {3: "mine"}, complete=True)
    assert store.incomplete([3]) == set()
    redis_client.flushdb()
    assert store.incomplete([3]) == {3}


def test_a_member_that_is_no_text_or_is_never_due_is_a_strangers_and_stops_nothing(store, redis_client):
    redis_client.zadd(entries.schedule_key(3), {b"\xff no text": 1, b"\x80": float("inf")})
    due = store.due([3], SLOT, 10)
    assert (due.tasks, len(due.unreadable)) == ({}, 1)
    assert due.next_at == SLOT + timedelta(seconds=entries.FAR)
    for member in due.unreadable:
        store.discard(3, member)
    assert store.due([3], SLOT, 10).unreadable == {}
