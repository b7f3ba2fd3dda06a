"""Hundreds of beats and thousands of buckets on a simulated clock: the real lease code, a model of Redis, and links
that are slow, lose requests and answers, or deliver them late.

Time passes only between events, so each run is the same for the same seed. A beat is a greenlet: it waits where a
process would block, and may be paused or killed there, also between sending a renewal and reading its answer.
"""

import heapq
import random
from itertools import count

import pytest
import redis
from greenlet import getcurrent, greenlet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_model import RedisModel

from beat import leases
from beat.leases import Leases

DRIFT = 300e-6
"""By how much clocks may be too fast or too slow."""

TICK = 0.5
SOCKET_TIMEOUT = 2.0

SETTLED = 5.0
"""Seconds within which, after the last trouble, every bucket has its one owner and shares are fair."""


class World:
    """The clock, what is to come, and who believes what."""

    def __init__(self, seed, buckets, kind=Leases):
        self.random = random.Random(seed)
        self.buckets = buckets
        self.kind = kind
        self.time = 0.0
        self.coming = []
        self.order = count()
        self.beats = []
        self.claims = [set() for _ in range(buckets)]
        self.violations = []
        self.trouble = 0.0
        """The share of calls that are lost or late."""
        self.last_late = 0.0
        self.redis = RedisModel(self.clock())

    def clock(self):
        rate, offset = 1 + self.random.uniform(-DRIFT, DRIFT), self.random.uniform(0, 1e6)
        return lambda: offset + rate * self.time

    def at(self, time, event):
        heapq.heappush(self.coming, (time, next(self.order), event))

    def run(self, seconds):
        end = self.time + seconds
        while self.coming and self.coming[0][0] <= end:
            self.time, _, event = heapq.heappop(self.coming)
            event()
        self.time = end

    def join(self, number=1):
        joined = [Beat(self, f"beat{len(self.beats) + n}") for n in range(number)]
        self.beats += joined
        return joined

    @property
    def alive(self):
        return [beat for beat in self.beats if beat.alive]

    def check(self, beat):
        """A beat may have come to believe something: nobody else may believe the same now."""
        for bucket in beat.leases.held():
            claims = self.claims[bucket]
            claims.add(beat)
            for other in claims - {beat} if len(claims) > 1 else ():
                if not other.alive or bucket not in other.leases.until:
                    claims.discard(other)
                elif bucket in other.leases.held():
                    self.violations.append((self.time, bucket, beat.name, other.name))

    def shares(self):
        return {beat: beat.leases.held() for beat in self.alive}

    def is_settled(self):
        held = list(self.shares().values())
        sizes = [len(one) for one in held]
        return sum(sizes) == len(set().union(*held)) == self.buckets and max(sizes) - min(sizes) <= 1

    def time_to_settle(self, within=60.0, every=0.05):
        started = self.time
        while not self.is_settled():
            assert self.time - started < within, f"not settled within {within} s"
            self.run(every)
        return self.time - started


class Beat:
    """One process: ticks, and calls Redis over a link of its own."""

    def __init__(self, world, name):
        self.world = world
        self.name = name
        self.alive = True
        self.paused_until = 0.0
        self.stopping = False
        self.latency = world.random.uniform(0.0002, 0.03)
        self.leases = world.kind(self, world.buckets, world.clock(), name)
        self.process = greenlet(self.live)
        world.at(world.time + world.random.uniform(0, TICK), self.resume)

    def live(self):
        while not self.stopping:
            try:
                self.leases.renew()
            except redis.RedisError:
                self.leases.drop()
            self.wait(self.world.random.uniform(0.05, TICK))
        self.leases.release()
        self.alive = False

    def resume(self, value=None):
        """The process goes on, unless it is dead; while it is paused, at its end."""
        if not self.alive:
            return
        if self.world.time < self.paused_until:
            self.world.at(self.paused_until, lambda: self.resume(value))
            return
        self.process.switch(value) if self.process else self.process.switch()
        if self.alive:
            self.world.check(self)

    def wait(self, seconds):
        self.world.at(self.world.time + seconds, self.resume)
        getcurrent().parent.switch()

    def pause(self, seconds):
        self.paused_until = max(self.paused_until, self.world.time + seconds)

    def kill(self):
        self.alive = False

    def stop(self):
        self.stopping = True

    def register_script(self, source):
        """What a client of Redis has."""
        return lambda keys, args, client: client.call(source, keys, args)

    def call(self, source, keys, args):
        """As the real client: a call that is not answered in time is sent once more, then it raises."""
        for _ in range(2):
            answer = self.send(source, keys, args)
            if answer is not None:
                return answer[0]
        raise redis.TimeoutError

    def send(self, source, keys, args):
        """Sends a request and waits; returns a tuple of the answer, or None where none came in time."""
        chance = self.world.random
        self.wait(chance.uniform(0, 0.005))  # it may be paused before it has sent anything
        fate = chance.random() / self.world.trouble if self.world.trouble else 1.0
        there, back = (self.latency * chance.uniform(0.5, 3) for _ in range(2))
        if fate < 0.4:
            there += chance.uniform(1, 15)  # arrives when nobody waits for it any more, after later ones
            self.world.last_late = max(self.world.last_late, self.world.time + there)
        waiting = True
        sender = self.process

        def arrive():
            answer = self.world.redis.execute(source, keys, args)
            if not 0.4 <= fate < 0.7:
                self.world.at(self.world.time + back, lambda: end((answer,)))

        def end(value):
            nonlocal waiting
            if waiting and self.process is sender:
                waiting = False
                self.resume(value)

        if not 0.7 <= fate < 1:
            self.world.at(self.world.time + there, arrive)
        self.world.at(self.world.time + SOCKET_TIMEOUT, lambda: end(None))
        return getcurrent().parent.switch()


def disturb(world, seconds, most):
    """Beats join, die, stop, pause and wake, each one each few seconds; the network is bad at times."""
    chance = world.random
    end = world.time + seconds
    while world.time < end:
        world.trouble = chance.choice([0, 0, 0.02, 0.3])
        for _ in range(chance.randint(1, 10)):
            world.run(chance.uniform(0, 8 / most))
            deed = chance.choice(["join", "join", "kill", "stop", "pause", "pause", "pause"])
            if deed == "join" and len(world.alive) < most:
                world.join(chance.randint(1, max(1, most // 10)))
            elif deed == "pause":
                for beat in chance.sample(world.alive, min(len(world.alive), chance.randint(1, 3))):
                    beat.pause(chance.choice([0.1, 0.5, 1, 2.9, 3, 3.5, 4, 4.5, 10, 30]) * chance.uniform(0.9, 1.1))
            elif deed in {"kill", "stop"} and len(staying := [one for one in world.alive if not one.stopping]) > 1:
                getattr(chance.choice(staying), deed)()
    world.trouble = 0


def settle(world):
    """Waits for the end of the trouble: beats wake, late requests arrive, what was sent has timed out or was answered.
    From then on what is left of it must be mended in time."""
    quiet_at = max([world.last_late, *(beat.paused_until for beat in world.alive)])
    world.run(max(0.0, quiet_at - world.time) + 2 * SOCKET_TIMEOUT)
    world.run(SETTLED)
    assert world.is_settled()


@pytest.mark.parametrize(
    ("seed", "buckets", "beats", "seconds"),
    [(1, 2048, 150, 6), *((seed, 256, 40, 30) for seed in range(2, 6)), (6, 40, 60, 60), (7, 16, 5, 300)],
)
def test_no_bucket_ever_has_two_beats_and_after_quiet_each_has_one(seed, buckets, beats, seconds):
    world = World(seed, buckets)
    world.join(beats)
    disturb(world, seconds, most=beats)
    settle(world)
    assert world.violations == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), buckets=st.integers(1, 64), beats=st.integers(1, 20))
def test_so_it_is_for_any_number_of_either(seed, buckets, beats):
    world = World(seed, buckets)
    world.join(beats)
    disturb(world, 10, most=beats)
    settle(world)
    assert world.violations == []


def settled(seed, buckets, beats):
    world = World(seed, buckets)
    world.join(beats)
    world.time_to_settle()
    return world


SIZES = [(1, 16, 2), (2, 16, 3), (3, 7, 10), (4, 256, 40), (5, 1024, 100)]


@pytest.mark.parametrize(("seed", "buckets", "beats"), SIZES)
def test_who_joins_has_its_share_in_time_and_nothing_else_moves(seed, buckets, beats):
    world = settled(seed, buckets, beats)
    before = world.shares()
    joined = world.join(max(1, beats // 3))
    world.run(SETTLED)
    after = world.shares()
    assert world.is_settled()
    assert all(after[beat] <= before[beat] for beat in before)
    assert sum(len(after[beat]) for beat in joined) >= len(joined) * (buckets // len(after))
    assert world.violations == []


@pytest.mark.parametrize(("leaves", "within"), [("kill", SETTLED), ("stop", 1.5)])
@pytest.mark.parametrize(("seed", "buckets", "beats"), SIZES)
def test_who_leaves_loses_its_share_in_time_and_nothing_else_moves(seed, buckets, beats, leaves, within):
    world = settled(seed, buckets, beats)
    for beat in world.alive[: max(1, beats // 3)]:
        getattr(beat, leaves)()
    before = {beat: held for beat, held in world.shares().items() if not beat.stopping}
    world.run(within)
    after = world.shares()
    assert world.is_settled()
    assert all(before[beat] <= after[beat] for beat in after)
    assert world.violations == []


@pytest.mark.parametrize(("seed", "buckets", "beats"), SIZES)
def test_nothing_moves_while_beats_are_paused_for_less_than_a_lease(seed, buckets, beats):
    world = settled(seed, buckets, beats)
    before = {beat: set(beat.leases.until) for beat in world.alive}
    for _ in range(10):
        world.random.choice(world.alive).pause(world.random.uniform(0.5, leases.TTL - TICK - 0.1))
        world.run(leases.TTL)
    assert {beat: set(beat.leases.until) for beat in world.alive} == before


class Careless(Leases):
    """Counts a lease from the answer and not from before the renewal was sent."""

    def renew(self):
        super().renew()
        self.until = dict.fromkeys(self.until, self.monotonic() + leases.TTL)


def test_the_simulation_sees_a_beat_that_counts_from_the_answer():
    world = World(1, 64, Careless)
    world.join(10)
    disturb(world, 60, most=10)
    assert world.violations


def test_the_simulation_sees_a_margin_that_is_negative(monkeypatch):
    monkeypatch.setattr(leases, "MARGIN", -1.0)
    world = World(1, 64)
    world.join(10)
    disturb(world, 60, most=10)
    assert world.violations


def test_the_simulation_sees_shares_that_differ_by_more(monkeypatch):
    monkeypatch.setattr(leases, "_share", lambda buckets, live, _name: -(-buckets // len(live)))
    world = World(1, 16)
    world.join(3)
    world.run(60)
    assert not world.is_settled()
