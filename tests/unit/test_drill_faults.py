"""The drill's own parts: what it breaks, how it judges, and how it shares the work out."""

import json
import random
from datetime import UTC, datetime, timedelta

import pytest

from drill import __main__ as drill
from drill import campaign, checker, faults, meter, report
from drill.campaign import Result
from drill.checker import Offence
from drill.faults import Bound
from drill.history import Answer, Call, Deed
from drill.ledger import Row
from drill.oracle import Demand, Slot
from drill.witness import Start

AT = datetime(2030, 1, 1, tzinfo=UTC)


def found(bound, *, slots=(), rows=(), starts=(), committed=(), **fields):
    """A result whose verdict the checker gave on these records."""
    verdict = checker.check(slots, rows, starts, faults=committed, until=AT + timedelta(minutes=5))
    return Result(fault="x", bound=bound, verdict=verdict, committed=list(committed), **fields)


def broken(result):
    return campaign.breaches(result, result.verdict)


def late(seconds, *, due=0.0):
    """The records of one slot that started late, and of its heal `due` seconds before or after it was due."""
    at = AT + timedelta(seconds=due)
    started = at + timedelta(seconds=seconds)
    return {
        "slots": [Slot(task="t", at=at, due=at, demand=Demand.MUST, kind="once")],
        "rows": [Row(run="r", task="t", slot=at, started_at=started, attempt_started_at=started)],
        "starts": [Start(at=started, run="r", task="t")],
    }


def fault(begin, healed):
    return checker.Fault(name="f", begin=AT + timedelta(seconds=begin), healed=AT + timedelta(seconds=healed))


def test_nothing_that_went_wrong_breaks_no_bound():
    result = found(Bound(worst=8, after=10, restarts=False), **late(1), committed=[fault(-1, 0.5)], answers={"200": 9})
    assert broken(result) == []


def test_the_worst_lateness_is_bound():
    assert broken(found(Bound(worst=8), **late(8.5), committed=[fault(-1, 1)])) == ["worst lateness 8.5 s"]


def test_the_last_start_after_the_heal_is_bound():
    assert broken(found(Bound(after=10), **late(25), committed=[fault(-1, 12)])) == ["last start 13.0 s after the heal"]


def test_what_fell_due_after_the_heal_has_no_excuse():
    assert broken(found(Bound(after=10), **late(11, due=5), committed=[fault(-1, 1)])) == [
        "1 late that fell due after the heal"
    ]


def test_a_lost_slot_breaks_every_bound():
    lost = late(1) | {"rows": [], "starts": []}
    assert broken(found(Bound(), **lost)) == ["1 lost"]


def test_a_second_execution_is_borne_only_where_the_bound_says_so():
    records = late(1)
    records["starts"] = records["starts"] * 2
    assert broken(found(Bound(), **records)) == ["1 executed twice"]
    assert broken(found(Bound(executed_twice=True), **records)) == []


def test_a_process_that_ended_breaks_a_bound_without_restarts():
    assert broken(found(Bound(restarts=False), **late(1), restarts=2)) == ["2 processes ended"]
    assert broken(found(Bound(), **late(1), restarts=2)) == []


def test_the_api_may_answer_200_and_503_only():
    result = found(Bound(), **late(1), answers={"200": 3, "503": 1, "500": 1, "ReadTimeout": 1})
    assert broken(result) == ["the API answered {'500': 1, 'ReadTimeout': 1}"]


def test_the_lateness_of_99_in_a_hundred_is_bound():
    assert broken(found(Bound(p99=1), **late(1.5), committed=[fault(-1, 1)])) == ["p99 of lateness 1.50 s"]
    assert broken(found(Bound(p99=1), **late(0.9), committed=[fault(-1, 1)])) == []


def call(answer):
    return Call(task="t", deed=Deed.PAUSE, asked_at=AT, answered_at=AT, answer=answer)


def test_what_must_go_unnoticed_leaves_no_request_without_its_answer():
    answers, calls = {"200": 3, "503": 1}, [call(answer) for answer in Answer]
    assert broken(found(Bound(), **late(0.1), answers=answers, calls=calls)) == []
    assert broken(found(Bound(unnoticed=True), **late(0.1), answers=answers, calls=calls)) == [
        "the API answered {'503': 1}",
        "2 requests were not done",
    ]
    assert broken(found(Bound(unnoticed=True), **late(0.1), answers={"200": 3}, calls=calls[:1])) == []


def test_a_table_shows_what_is_broken():
    result = found(Bound(worst=8), **late(9), committed=[fault(-1, 1)])
    result.broken += broken(result)
    header, _, row = report.table([result], markdown=True).splitlines()
    assert header.startswith("| fault | hits | slots |")
    assert row == ("| x | 1 | 1 | 1 | 0 | 0 | 0 | 0 | 0 | 9.0 s | 8.0 s | late ≤ 8 s | BROKEN: worst lateness 9.0 s |")
    upgrade = found(Bound(p99=1), **late(0.25), committed=[fault(-1, 1)])
    assert "| 0.2 s, p99 0.25 s | 0.0 s | p99 ≤ 1 s | kept |" in report.table([upgrade], markdown=True)


def test_the_details_name_each_slot_that_was_not_on_time(tmp_path):
    report.write([found(Bound(), **late(11), committed=[fault(-1, 1)])], tmp_path / "found.json")
    (written,) = json.loads((tmp_path / "found.json").read_text())
    assert [(slot["task"], slot["outcome"], slot["lateness"]) for slot in written["offending"]] == [("t", "late", 11.0)]
    assert Offence.LOST not in written["offences"]


def test_pairs_break_different_things_and_are_drawn_again_by_the_same_seed():
    by_name = {variant.name: variant for fault in faults.SINGLE for variant in fault.variants}
    drawn = faults.pairs(7).variants
    assert [variant.name for variant in drawn] == [variant.name for variant in faults.pairs(7).variants]
    assert [variant.name for variant in drawn] != [variant.name for variant in faults.pairs(8).variants]
    assert len(drawn) == faults.PAIRS
    for pair in drawn:
        first, second = (by_name[name] for name in pair.name.split(" + "))
        assert not first.touches & second.touches


@pytest.mark.parametrize("plan", [campaign.FULL, campaign.SHORT])
def test_the_parts_of_a_campaign_are_the_whole_of_it(plan):
    rows = faults.all_faults(1, own_rabbitmq=True)
    parts = [drill.part_of(rows, plan, (number, 3)) for number in (1, 2, 3)]
    assert sorted(row.name for part in parts for row in part) == sorted(row.name for row in rows)
    times = [sum(map(plan.seconds, part)) for part in parts]
    assert max(times) < 2 * min(times)


def test_a_rabbitmq_of_the_machine_is_never_stopped():
    names = {fault.name for fault in faults.all_faults(1, own_rabbitmq=False)}
    assert "RabbitMQ gone" not in names
    assert not any("RabbitMQ gone" in pair.name for pair in faults.pairs(1, own_rabbitmq=False).variants)


def test_the_full_campaign_hits_as_often_as_was_promised():
    rows = {fault.name: fault for fault in faults.SINGLE}
    drawn = random.Random(1)
    assert len(campaign.FULL.variants(rows["leader killed"], drawn)) == 20
    assert len(campaign.FULL.variants(rows["leader paused"], drawn)) == 15
    assert len(campaign.FULL.variants(rows["beat fails at fired"], drawn)) == 10
    assert {fault.replicated for fault in faults.SINGLE} == {False, True}
    assert campaign.FULL.quiet == 60


def test_a_soak_draws_a_fault_for_each_minute_the_same_from_the_same_seed():
    made = faults.soak(30, seed=7)
    assert len(made.variants) == 30
    assert [each.name for each in made.variants] == [each.name for each in faults.soak(30, seed=7).variants]
    assert {each.name for each in made.variants} != {each.name for each in faults.soak(30, seed=8).variants}
    assert made.bound.flat
    without = faults.soak(200, seed=7, own_rabbitmq=False)
    assert "RabbitMQ gone" not in {each.name for each in without.variants}


@pytest.mark.parametrize(("last", "grown"), [(100.0, False), (114.0, False), (116.0, True)])
def test_what_grows_is_told_by_the_last_quarter_against_the_second(last, grown):
    readings = [
        meter.Reading(memory=memory, files=50.0, connections=10.0)
        for memory in (*[30.0] * 10, *[100.0] * 10, *[500.0] * 10, *[last] * 10)
    ]
    measured = meter.growth(readings)
    assert measured == {"memory": (100.0, last), "files": (50.0, 50.0), "connections": (10.0, 10.0)}
    result = Result(fault="soak", bound=Bound(flat=True), growth=measured)
    nothing = checker.check([], [], [], until=AT)
    assert campaign.breaches(result, nothing) == (["memory grew from 100 to 116"] if grown else [])
    assert meter.growth(readings[: meter.FEWEST - 1]) == {}
