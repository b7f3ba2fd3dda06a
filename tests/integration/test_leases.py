"""Who may ring which bucket, with the real scripts on a real Redis and a clock that is moved by hand."""

import pytest

from beat import entries, leases
from beat.leases import Leases

BUCKETS = 16


class Clock:
    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def beats(redis_client, clock):
    return lambda count: [Leases(redis_client, BUCKETS, clock) for _ in range(count)]


def settle(*all_leases, rounds=3):
    for _ in range(rounds):
        for one in all_leases:
            one.renew()


def expire(redis_client, bucket):
    """Has a lease run out now, as if its TTL had passed."""
    redis_client.delete(entries.lock_key(bucket))


def test_one_beat_takes_all(beats):
    [only] = beats(1)
    settle(only)
    assert only.held() == set(range(BUCKETS))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_several_beats_share_evenly_and_no_bucket_has_two(beats, count):
    several = beats(count)
    settle(*several, rounds=5)
    held = [one.held() for one in several]
    assert sorted(bucket for one in held for bucket in one) == list(range(BUCKETS))
    assert max(map(len, held)) <= -(-BUCKETS // count)


def test_a_beat_that_joins_gets_its_share_at_once(beats):
    first, second = beats(2)
    settle(first)
    second.renew()
    first.renew()  # hears of the second and gives back
    second.renew()
    assert (len(first.held()), len(second.held())) == (8, 8)


def test_a_clean_stop_frees_everything_at_once(beats):
    first, second = beats(2)
    settle(first, second)
    first.release()
    second.renew()
    assert first.held() == set()
    assert second.held() == set(range(BUCKETS))


def test_a_lease_is_not_trusted_in_its_last_second(beats, clock):
    [only] = beats(1)
    only.renew()
    clock.time += leases.TTL - leases.MARGIN
    assert only.held() == set()


def test_a_beat_that_was_paused_past_its_leases_has_none(beats, redis_client, clock):
    paused, other = beats(2)
    settle(paused)
    for bucket in range(BUCKETS):
        expire(redis_client, bucket)
    clock.time += 10
    assert paused.held() == set()
    other.renew()
    paused.renew()
    assert not paused.held() & other.held()


def test_a_lock_that_another_holds_is_neither_renewed_nor_released(beats, redis_client):
    mine, other = beats(2)
    mine.renew()
    redis_client.set(entries.lock_key(3), other.token, px=4000)
    mine.renew()
    assert 3 not in mine.held()
    mine.release()
    assert redis_client.get(entries.lock_key(3)) == other.token


def test_an_emptied_redis_leaves_no_beat_believing_in_its_old_leases(beats, redis_client):
    first, second = beats(2)
    settle(first, second)
    redis_client.flushdb()
    first.renew()
    second.renew()
    assert not first.held() & second.held()
    settle(first, second)
    assert len(first.held() | second.held()) == BUCKETS


def test_leases_that_were_dropped_and_have_not_run_out_are_taken_back_at_once(beats):
    [only] = beats(1)
    only.renew()
    only.drop()
    assert only.held() == set()
    only.renew()
    assert only.held() == set(range(BUCKETS))


def test_a_lease_in_redis_runs_out_by_itself(beats, redis_client):
    [only] = beats(1)
    only.renew()
    assert 0 < redis_client.pttl(entries.lock_key(0)) <= leases.TTL * 1000


def test_renewing_takes_the_same_few_round_trips_however_many_buckets(redis_client, clock):
    def trips(buckets):
        only = Leases(redis_client, buckets, clock)
        only.renew()
        before = redis_client.info("stats")["total_reads_processed"]
        only.renew()
        after = redis_client.info("stats")["total_reads_processed"]
        only.release()
        return after - before

    # a long pipeline may reach the server in two or three reads, but not in one per bucket
    assert trips(64) <= trips(4) + 3
