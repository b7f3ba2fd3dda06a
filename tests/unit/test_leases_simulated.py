"""Hundreds of beats and thousands of buckets on a simulated clock: the real lease code, a model of Redis, and links
that are slow, lose requests and answers, or deliver them late.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beat import leases
from beat.leases import Leases
from simulator.system import SETTLED, TICK, System
from simulator.world import World


def system_of(seed, buckets, kind=Leases):
    return System(World(seed), buckets, kind)


@pytest.mark.parametrize(
    ("seed", "buckets", "beats", "seconds"),
    [(1, 2048, 150, 6), *((seed, 256, 40, 30) for seed in range(2, 6)), (6, 40, 60, 60), (7, 16, 5, 300)],
)
def test_no_bucket_ever_has_two_beats_and_after_quiet_each_has_one(seed, buckets, beats, seconds):
    system = system_of(seed, buckets)
    system.join(beats)
    system.disturb(seconds, most=beats)
    system.settle()
    assert system.is_settled()
    assert system.violations == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), buckets=st.integers(1, 64), beats=st.integers(1, 20))
def test_so_it_is_for_any_number_of_either(seed, buckets, beats):
    system = system_of(seed, buckets)
    system.join(beats)
    system.disturb(10, most=beats)
    system.settle()
    assert system.is_settled()
    assert system.violations == []


def settled(seed, buckets, beats):
    system = system_of(seed, buckets)
    system.join(beats)
    system.time_to_settle()
    return system


SIZES = [(1, 16, 2), (2, 16, 3), (3, 7, 10), (4, 256, 40), (5, 1024, 100)]


@pytest.mark.parametrize(("seed", "buckets", "beats"), SIZES)
def test_who_joins_has_its_share_in_time_and_nothing_else_moves(seed, buckets, beats):
    system = settled(seed, buckets, beats)
    before = system.shares()
    joined = system.join(max(1, beats // 3))
    system.run(SETTLED)
    after = system.shares()
    assert system.is_settled()
    assert all(after[beat] <= before[beat] for beat in before)
    assert sum(len(after[beat]) for beat in joined) >= len(joined) * (buckets // len(after))
    assert system.violations == []


@pytest.mark.parametrize(("leaves", "within"), [("kill", SETTLED), ("stop", 1.5)])
@pytest.mark.parametrize(("seed", "buckets", "beats"), SIZES)
def test_who_leaves_loses_its_share_in_time_and_nothing_else_moves(seed, buckets, beats, leaves, within):
    system = settled(seed, buckets, beats)
    for beat in system.alive[: max(1, beats // 3)]:
        getattr(beat, leaves)()
    before = {beat: held for beat, held in system.shares().items() if not beat.stopping}
    system.run(within)
    after = system.shares()
    assert system.is_settled()
    assert all(before[beat] <= after[beat] for beat in after)
    assert system.violations == []


@pytest.mark.parametrize(("seed", "buckets", "beats"), SIZES)
def test_nothing_moves_while_beats_are_paused_for_less_than_a_lease(seed, buckets, beats):
    system = settled(seed, buckets, beats)
    before = {beat: set(beat.leases.until) for beat in system.alive}
    for _ in range(10):
        system.world.random.choice(system.alive).pause(system.world.random.uniform(0.5, leases.TTL - TICK - 0.1))
        system.run(leases.TTL)
    assert {beat: set(beat.leases.until) for beat in system.alive} == before


class Careless(Leases):
    """Counts a lease from the answer and not from before the renewal was sent."""

    def renew(self):
        super().renew()
        self.until = dict.fromkeys(self.until, self.monotonic() + leases.TTL)


def test_the_simulation_sees_a_beat_that_counts_from_the_answer():
    system = system_of(1, 64, Careless)
    system.join(10)
    system.disturb(60, most=10)
    assert system.violations


def test_the_simulation_sees_a_margin_that_is_negative(monkeypatch):
    monkeypatch.setattr(leases, "MARGIN", -1.0)
    system = system_of(1, 64)
    system.join(10)
    system.disturb(60, most=10)
    assert system.violations


def test_the_simulation_sees_shares_that_differ_by_more(monkeypatch):
    monkeypatch.setattr(leases, "_share", lambda buckets, live, _name: -(-buckets // len(live)))
    system = system_of(1, 16)
    system.join(3)
    system.run(60)
    assert not system.is_settled()
