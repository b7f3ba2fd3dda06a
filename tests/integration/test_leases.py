"""Who may ring which bucket, with the real scripts on a real Redis and a clock that is moved by hand."""

import random
import time

import pytest

from beat import entries, leases
from beat.leases import Leases
from simulator.redis_model import RedisModel

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


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_several_beats_share_evenly_and_no_bucket_has_two(beats, count):
    several = beats(count)
    settle(*several, rounds=5)
    held = [one.held() for one in several]
    assert sorted(bucket for one in held for bucket in one) == list(range(BUCKETS))
    assert max(map(len, held)) - min(map(len, held)) <= 1


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
    redis_client.set(entries.lock_key(3), other.name, px=4000)
    mine.renew()
    assert 3 not in mine.held()
    mine.release()
    assert redis_client.get(entries.lock_key(3)) == other.name


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


def test_a_release_that_arrives_late_frees_nothing_that_was_taken_again(beats, redis_client):
    mine, other = beats(2)
    mine.renew()
    late = mine.tokens[3]
    other.renew()
    mine.renew()
    other.release()
    mine.renew()
    given_back = [bucket for bucket in mine.held() if mine.tokens[bucket] != late]
    assert given_back
    keys = [leases.BEATS_KEY, *map(entries.lock_key, given_back)]
    redis_client.register_script(leases.RELEASE)(keys=keys, args=["", *[late] * len(given_back)])
    assert all(redis_client.get(entries.lock_key(bucket)) == mine.tokens[bucket] for bucket in given_back)


def test_a_lease_whose_answer_was_lost_is_taken_over_at_once(beats, redis_client):
    [only] = beats(1)
    only.renew()
    only.until.clear()  # as if the answer to the taking had never come
    only.tokens.clear()
    only.renew()
    assert only.held() == set(range(BUCKETS))


@pytest.mark.parametrize("seed", range(3))
def test_the_model_of_the_simulation_answers_as_this_redis_does(redis_client, seed):
    """The same calls to both, with keys that run out. Where it took so long that it is unclear on which side of an end
    a call fell, both are emptied and it does not count."""
    chance = random.Random(seed)
    model = RedisModel(time.monotonic)
    keys = [entries.lock_key(bucket) for bucket in range(5)]
    compared = ends = 0
    while compared < 150:
        source, wanted, args = some_call(chance, keys)
        if chance.random() < 0.1:
            time.sleep(0.06)
        while any(abs(time.monotonic() - end) < 0.01 for end in ends_of(model)):
            time.sleep(0.002)
        started = time.monotonic()
        before = len(model.strings)
        expected = model.execute(source, wanted, args)
        answer = redis_client.register_script(source)(keys=wanted, args=args)
        there = redis_client.mget(keys)
        if time.monotonic() - started > 0.008:
            redis_client.flushdb()
            model = RedisModel(time.monotonic)
            continue
        assert unordered(answer) == unordered(expected)
        assert there == [model.get(key) for key in keys]
        ends += before > sum(value is not None for value in there)
        compared += 1
    assert ends, "nothing ran out"


def some_call(chance, keys):
    """A call of one of the scripts: its source, keys and arguments."""
    chosen = chance.sample(keys, chance.randint(0, len(keys)))
    held = [f"{chance.choice(['a', 'b', 'ab'])}:{chance.randint(1, 2)}" for _ in chosen]
    name, ttl = chance.choice(["a", "b", "ab"]), chance.choice([80, 60_000])
    return chance.choice(
        [
            (leases.RENEW, [leases.BEATS_KEY, *chosen], [name, ttl, chance.choice([40, 60_000]), *held]),
            (leases.TAKE, chosen, [name, ttl, chance.randint(0, 3), f"{name}:{chance.randint(1, 2)}"]),
            (leases.RELEASE, [leases.BEATS_KEY, *chosen], [chance.choice(["", name]), *held]),
        ]
    )


def ends_of(model):
    """When something of it runs out."""
    return [until / 1000 for _, until in model.strings.values()] + [at / 1000 + 0.04 for at in model.scores.values()]


def unordered(answer):
    """Beats that were heard of in the same millisecond by one clock may not have been by the other."""
    match answer:
        case [[*beats], renewed]:
            return [sorted(beats), renewed]
    return answer
