"""Beats that fire, on a simulated clock: the real code that leases, mirrors, rings, audits, plans and sends; models of
Redis, PostgreSQL and the broker; links that are slow, lose requests and answers, or deliver them late.

What breaks on purpose shows that the simulation sees it.
"""

from datetime import timedelta

import pytest

from app import dispatch, policies
from beat import leases
from simulator import costs
from simulator.__main__ import main
from simulator.firing import CHORES, FiringSystem
from simulator.judge import judge
from simulator.tables import Tables
from simulator.world import World

AUDITED = dispatch.OVERDUE.total_seconds() + 1.0
"""Seconds after its slot within which the audit path sees a task that nobody rang."""

BOUND = leases.TTL + AUDITED
"""Seconds within which a slot is recorded though a beat dies: what that one locked is free 4 s later at the latest,
when PostgreSQL ends a transaction of which nothing is heard."""

PROMISE = policies.GRACE.total_seconds()


def system_of(seed, buckets, beats, tasks, every, **options):
    system = FiringSystem(World(seed), buckets, **options)
    system.register(tasks, every)
    system.register(tasks // 20, every, overlap="skip")
    system.join(beats)
    return system


def judged(system):
    """The verdict on all slots up to now, when there was time for them."""
    until = system.world.time
    system.run(PROMISE)
    assert system.failures.texts == []
    return judge(system, until)


def after_trouble(system, seconds, most):
    system.disturb(seconds, most)
    system.settle()
    verdict = judged(system)
    assert system.is_settled()
    return verdict


def emptied(system, times):
    """Redis is emptied now and then."""
    for _ in range(times):
        system.world.at(system.world.random.uniform(5, 40), system.redis.clear)
    return system


@pytest.mark.parametrize(
    ("seed", "buckets", "beats", "tasks", "every", "seconds"),
    [(1, 512, 40, 1_500, 60, 3), (2, 128, 20, 600, 20, 10), *((seed, 40, 12, 300, 5, 20) for seed in (3, 4, 5))],
)
def test_whatever_happens_no_slot_is_doubled_lost_or_early(seed, buckets, beats, tasks, every, seconds):
    system = emptied(system_of(seed, buckets, beats, tasks, every), times=2)
    verdict = after_trouble(system, seconds, beats)
    assert verdict.slots > tasks / 3
    assert verdict.faults == 0, verdict


def test_each_slot_is_recorded_within_its_bound_and_sent_as_promised_though_beats_die_one_by_one():
    system = system_of(1, 128, 14, 500, 6)
    system.time_to_settle()
    for _ in range(4):
        system.run(system.world.random.uniform(9, 11))
        system.random_beat().kill()
    verdict = judged(system)
    assert verdict.faults == 0
    assert verdict.recorded <= BOUND
    assert verdict.sent <= PROMISE


def test_the_audit_path_alone_is_enough():
    system = system_of(1, 40, 8, 300, 6)
    for beat in system.beats:
        beat.client.link.is_cut = True
    system.run(30)
    verdict = judged(system)
    assert verdict.faults == 0
    assert verdict.recorded <= AUDITED + 1
    assert verdict.sent <= PROMISE


def test_the_alarm_path_alone_is_enough():
    system = system_of(1, 40, 8, 300, 6, chores=frozenset())
    system.time_to_settle()
    system.run(5)
    system.random_beat().kill()
    system.run(15)
    verdict = judged(system)
    assert verdict.recorded <= BOUND


def rung(system):
    """How much each beat sent of what fell due in a time without trouble."""
    system.time_to_settle()
    system.run(5)
    before = {beat: beat.publisher.sent for beat in system.alive}
    system.run(20)
    return [beat.publisher.sent - before[beat] for beat in system.alive]


def test_work_is_shared_fairly_and_nobody_has_to_audit():
    system = system_of(1, 128, 8, 1_500, 10)
    shares = rung(system)
    mean = sum(shares) / len(shares)
    assert sum(shares) > 2_500
    assert 0.7 * mean < min(shares) <= max(shares) < 1.3 * mean
    assert sum(beat.auditor.sent for beat in system.alive) == 0


def test_the_simulation_sees_work_that_is_not_shared(monkeypatch):
    monkeypatch.setattr(leases, "_share", lambda buckets, live, name: buckets if min(live) == name else 0)
    shares = rung_by_any(system_of(1, 64, 4, 300, 10))
    assert min(shares) == 0


def rung_by_any(system):
    system.run(20)
    return [beat.publisher.sent for beat in system.alive]


def test_the_locks_of_rows_are_enough_without_the_unique_slot():
    verdict = after_trouble(emptied(system_of(6, 16, 12, 300, 5, tables=without("unique")), times=3), 20, 12)
    assert verdict.doubled == 0


@pytest.mark.parametrize("seed", [6, 7])
def test_the_unique_slot_is_enough_without_the_locks_for_no_slot_to_have_two_runs(seed):
    """That no two runs stand for the same missed slot takes the locks: of two who look at a task in the same moment,
    each counts it."""
    system = emptied(system_of(seed, 16, 12, 300, 5, tables=without("locks")), times=3)
    after_trouble(system, 20, 12)
    assert system.tables.doubled == []


def without(*walls):
    return type("Broken", (Tables,), dict.fromkeys(walls, False))


def test_the_simulation_sees_slots_that_are_recorded_twice():
    verdict = after_trouble(emptied(system_of(6, 16, 12, 300, 5, tables=without("unique", "locks")), times=3), 20, 12)
    assert verdict.doubled


class Forgetful(Tables):
    """Loses some runs of a commit, but not what the same commit set in tasks."""

    def _insert(self, run):
        if self.world.random.random() > 0.01:
            super()._insert(run)


def test_the_simulation_sees_slots_that_are_lost():
    system = system_of(7, 16, 5, 300, 5, tables=Forgetful)
    system.run(15)
    assert judged(system).lost


class Fast(Tables):
    """Its clock is fast, as a beat's may be: whoever went by that would fire so."""

    def now(self):
        return super().now() + timedelta(seconds=1)


def test_the_simulation_sees_slots_that_are_early():
    system = system_of(8, 16, 5, 300, 5, tables=Fast)
    system.run(15)
    assert judged(system).early


def test_the_simulation_sees_runs_that_nobody_sends_again():
    system = system_of(7, 40, 12, 300, 5, chores=CHORES - {"publish_pending"})
    system.run(10)
    system.world.trouble = 0.3
    system.run(10)
    system.world.trouble = 0.0
    system.settle()
    assert judged(system).unsent


def test_the_simulation_sees_slots_that_are_late(monkeypatch):
    monkeypatch.setattr(leases, "TTL", 20.0)
    system = system_of(1, 40, 8, 300, 6, chores=CHORES - {"fire_overdue"})
    system.time_to_settle()
    system.random_beat().kill()
    system.run(15)
    assert judged(system).recorded > BOUND


def test_an_idle_beat_costs_the_same_however_many_buckets_there_are_but_for_the_keys_that_redis_looks_at():
    few, many, shared = (costs.measure(beats, buckets, 0) for beats, buckets in [(2, 16), (2, 128), (8, 128)])
    assert many.redis_round_trips == pytest.approx(few.redis_round_trips, rel=0.05)
    assert many.database_round_trips == pytest.approx(few.database_round_trips, rel=0.05)
    assert many.redis_keys == pytest.approx(8 * few.redis_keys, rel=0.1)
    assert shared.redis_keys == pytest.approx(many.redis_keys, rel=0.1)
    assert shared.redis_round_trips == pytest.approx(4 * many.redis_round_trips, rel=0.05)


def test_the_command_says_what_became_of_a_run_through_trouble(capsys, monkeypatch):
    given = "--beats 4 --buckets 16 --tasks 50 --every 5 --seconds 5"
    monkeypatch.setattr("sys.argv", ["simulator", *given.split()])
    assert main() == 0
    assert "lost=0" in capsys.readouterr().out
