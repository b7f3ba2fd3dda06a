"""Summaries: the same figures as the runs themselves give, however these came about and whatever happens to them."""

import math
import random
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from firing import fire
from sqlalchemy import func, insert, select, text, update

from app import attempts, db, policies, runs, settings, summaries, tasks
from app.models import Run, Summary
from app.states import OPEN, Reason, RunState, Span, Trigger
from beat import chores

pytestmark = pytest.mark.usefixtures("database")

NOW = datetime(2026, 11, 24, 12, 30, 20, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
ERROR = {"type": "RuntimeError", "message": "no", "traceback": None}


def a_run(slot, state=RunState.SUCCEEDED, late=None, **more):
    """The row of a run, started so late after its slot or not at all."""
    ended = state not in OPEN
    row = {
        "id": uuid4(),
        "task_id": uuid4(),
        "scheduled_for": slot,
        "task_name": "",
        "target": "debug.echo",
        "queue": "default",
        "trigger": Trigger.SCHEDULE,
        "missed": 0,
        "state": state,
        "attempt": 1,
        "fired_at": slot,
        "started_at": None if late is None else slot + late,
        "finished_at": slot + (late or timedelta(0)) if ended else None,
    }
    return row | more


def some_runs(count, since, until, seed=1):
    """Runs as they come: mostly quick ones that succeed, a few of every other kind."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        slot = since + draw.random() * (until - since)
        state = draw.choices(list(RunState), [1, 1, 2, 1, 80, 6, 4, 5])[0]
        started = state in {RunState.SUCCEEDED, RunState.FAILED, RunState.RUNNING, RunState.RETRYING}
        late = timedelta(seconds=draw.lognormvariate(-4, 2)) if started else None
        rows.append(a_run(slot, state, late))
    return rows


def add(rows):
    with db.transaction() as session:
        session.execute(insert(Run), rows)


def open_minutes(rows):
    """As the migration does for the runs that it finds, and for the minute in which it does so."""
    with db.transaction() as session:
        summaries.reopen(session, [NOW, *(row["scheduled_for"] for row in rows)])


def summarise(now=NOW, **how):
    """Until there is no more to do."""
    more = True
    while more:
        with db.transaction() as session:
            _, more = summaries.summarise(session, now, **how)


def have(rows):
    """Has these runs, and the summaries of them."""
    add(rows)
    open_minutes(rows)
    summarise()


def ask(question, *args, **how):
    with db.transaction() as session:
        return question(session, *args, **how)


def promise(within=HOUR, now=NOW):
    return ask(summaries.promise, now, within)


def minutes(now=NOW, **how):
    return ask(summaries.minutes, now, **how)


def summary(start, span=Span.MINUTE):
    with db.transaction() as session:
        return session.get(Summary, (span, start))


def minute_of(slot):
    return slot.replace(second=0, microsecond=0)


def plainly(rows, now):
    """The counts of a minute, computed from its runs one by one."""
    late = [row["started_at"] - row["scheduled_for"] for row in rows if row["started_at"]]
    states = Counter(row["state"] for row in rows)
    unstarted = [row for row in rows if not row["started_at"] and row["state"] in OPEN]
    return {
        "succeeded": states[RunState.SUCCEEDED],
        "failed": states[RunState.FAILED],
        "cancelled": states[RunState.CANCELLED],
        "skipped": states[RunState.SKIPPED],
        "waiting": sum(states[state] for state in OPEN),
        "started": len(late),
        "in_time": sum(each <= policies.GRACE for each in late),
        "late": sum(row["scheduled_for"] < now - policies.GRACE for row in unstarted),
        "worst": max(late, default=None),
    }


def ranked(values, share):
    return sorted(values)[math.ceil(share * len(values)) - 1]


def test_each_minute_has_the_figures_that_its_runs_give():
    rows = some_runs(2000, NOW - timedelta(minutes=20), NOW)
    have(rows)
    for start in sorted({minute_of(row["scheduled_for"]) for row in rows}):
        mine = [row for row in rows if minute_of(row["scheduled_for"]) == start]
        made, expected = summary(start), plainly(mine, NOW)
        assert {name: getattr(made, name) for name in expected} == expected
        assert sum(made.histogram.values()) == made.started
        assert made.open == (made.waiting > 0 or start + summaries.SETTLED > NOW)


def test_percentiles_are_at_most_a_tenth_above_those_of_a_sorted_list():
    rows = some_runs(3000, NOW - timedelta(minutes=50), NOW)
    have(rows)
    late = [row["started_at"] - row["scheduled_for"] for row in rows if row["started_at"]]
    seen = promise()
    for share, told in ((0.5, seen.p50), (0.99, seen.p99)):
        assert ranked(late, share) <= told <= max(ranked(late, share) * 1.1, timedelta(milliseconds=1.1))
    assert seen.worst == max(late)


def test_the_promise_counts_what_started_and_what_should_have():
    slot = NOW - timedelta(minutes=5)
    have(
        [
            a_run(slot, late=timedelta(milliseconds=20)),
            a_run(slot, late=policies.GRACE),
            a_run(slot, late=policies.GRACE + timedelta(milliseconds=1)),
            a_run(slot, RunState.QUEUED),
            a_run(slot, RunState.SKIPPED),
            a_run(slot, RunState.CANCELLED),
            a_run(NOW - timedelta(seconds=9), RunState.QUEUED),
        ]
    )
    seen = promise()
    assert (seen.runs, seen.in_time, seen.share) == (4, 2, 0.5)
    assert seen.p99 == seen.worst == policies.GRACE + timedelta(milliseconds=1)  # and not the end of its bucket


def test_without_runs_there_is_no_share():
    summarise()
    seen = promise()
    assert (seen.runs, seen.in_time, seen.share, seen.p50, seen.p99, seen.worst) == (0, 0, None, None, None, None)


def test_a_run_of_another_app_is_not_late_as_its_start_is_not_known(monkeypatch):
    slot = NOW - timedelta(minutes=5)
    known = settings.load().model_copy(update={"PUNCTUAL_EXTERNAL_TARGETS": (("billing.*", "theirs"),)})
    monkeypatch.setattr(settings, "load", lambda: known)
    have([a_run(slot, RunState.QUEUED, queue="theirs"), a_run(slot, RunState.QUEUED)])
    made = summary(minute_of(slot))
    assert (made.waiting, made.late) == (2, 1)


def test_the_last_hour_has_sixty_minutes_whether_or_not_anything_ran():
    slot = NOW - timedelta(minutes=7)
    have([a_run(slot, RunState.FAILED, timedelta(milliseconds=5))])
    shown = minutes()
    assert [each.start for each in shown] == [minute_of(NOW) - n * MINUTE for n in reversed(range(60))]
    assert [each.start for each in shown if each.failed] == [minute_of(slot)]
    assert {each.worst for each in shown} == {None, timedelta(milliseconds=5)}
    assert len(minutes(count=5)) == 5


def test_hours_have_the_figures_of_their_minutes():
    hours = [NOW - timedelta(hours=n) for n in (0, 1, 5, 22, 24, 30, 77, 101, 166)]
    rows = [row for n, hour in enumerate(hours) for row in some_runs(300, hour - HOUR, hour, seed=n)]
    have(rows)
    late = [row["started_at"] - row["scheduled_for"] for row in rows if row["started_at"]]
    week, day = promise(timedelta(days=7, hours=1)), promise(timedelta(days=1))
    assert week.runs == len(late) + plainly(rows, NOW)["late"]
    assert week.in_time == plainly(rows, NOW)["in_time"]
    assert week.worst == max(late)
    assert ranked(late, 0.99) <= week.p99 <= ranked(late, 0.99) * 1.1
    lately = [row for row in rows if row["scheduled_for"] >= datetime(2026, 11, 23, 13, tzinfo=UTC)]
    assert day.runs == plainly(lately, NOW)["started"] + plainly(lately, NOW)["late"]


def test_an_hour_is_made_only_once_all_of_its_minutes_are(monkeypatch):
    monkeypatch.setattr(summaries, "WORK", math.inf)
    rows = [a_run(NOW - timedelta(hours=3) + n * MINUTE, late=timedelta(0)) for n in range(20)]
    add(rows)
    open_minutes(rows)
    hour = minute_of(NOW - timedelta(hours=3)).replace(minute=0)
    with db.transaction() as session:
        assert summaries.summarise(session, NOW, limit=40) == (40, True)
    assert summary(hour, Span.HOUR) is None
    summarise(limit=40)
    assert summary(hour, Span.HOUR).succeeded == 20


def test_a_run_that_ends_later_keeps_its_minute_open():
    slot = NOW - timedelta(minutes=30)
    have([a_run(slot, RunState.RUNNING, timedelta(0))])
    made = summary(minute_of(slot))
    assert (made.open, made.waiting, made.succeeded) == (True, 1, 0)
    with db.transaction() as session:
        session.execute(update(Run).values(state=RunState.SUCCEEDED, finished_at=NOW))
    summarise(NOW + timedelta(seconds=5))
    assert summary(minute_of(slot)).open  # it rests in the meantime
    summarise(NOW + timedelta(minutes=2))
    made = summary(minute_of(slot))
    assert (made.open, made.waiting, made.succeeded) == (False, 0, 1)
    assert summary(minute_of(slot).replace(minute=0), Span.HOUR).succeeded == 1


def test_a_minute_stays_open_until_no_run_can_be_added_to_it_in_silence():
    start = minute_of(NOW)
    summarise()
    summarise(start + summaries.SETTLED - timedelta(seconds=1))
    assert summary(start).open
    add([a_run(start, late=timedelta(0))])
    summarise(start + summaries.SETTLED + timedelta(seconds=9))
    made = summary(start)
    assert (made.open, made.succeeded) == (False, 1)


def test_minutes_during_which_no_beat_was_there_are_made_afterwards():
    summarise(NOW - timedelta(hours=5))
    rows = some_runs(200, NOW - timedelta(hours=5), NOW)
    add(rows)
    summarise()
    assert promise(timedelta(hours=6)).runs == sum(plainly(rows, NOW)[name] for name in ("started", "late"))


@pytest.fixture
def task(fields):
    """A task that was due each minute of the last hour and has not been fired since."""
    with db.transaction() as session:
        now = db.now(session)
        schedule = {"type": "cron", "expression": "* * * * *", "timezone": "UTC"}
        made = tasks.create(session, now, fields(catchup={"policy": "all", "window": None}, schedule=schedule))
        made.next_run_at = now - timedelta(minutes=50)
    return made


def settle():
    """Closes what there is, as if nothing had happened for long."""
    with db.transaction() as session:
        now = db.now(session)
        summaries.reopen(session, [now - n * MINUTE for n in range(60)])
    summarise(now)
    with db.transaction() as session:
        session.execute(update(Summary).where(Summary.start < now - summaries.SETTLED).values(open=False))
    return now


def test_slots_that_are_caught_up_open_their_minutes_again(task, postbox):
    settle()
    fire(postbox.publish, [task.id])
    with db.transaction() as session:
        now = db.now(session)
        slots = set(session.scalars(select(Run.scheduled_for)))
        opened = set(session.scalars(select(Summary.start).where(Summary.open)))
    assert len(slots) > 45
    assert {minute_of(slot) for slot in slots if slot < now - summaries.RECENT} <= opened
    summarise(now + summaries.MINUTE)
    assert sum(each.waiting for each in minutes(now)) == len(slots)


def test_a_firing_in_time_asks_for_nothing_more(task, statements):
    with db.transaction() as session:
        now = db.now(session)
        for late, expected in ((timedelta(0), 1), (summaries.RECENT * 2, 2)):
            new = runs.NewRun(id=uuid4(), task=task, slot=now - late, trigger=Trigger.SCHEDULE)
            with statements() as seen:
                assert runs.record(session, now, [new]) == {new.id}
            assert len(seen) == expected


def test_a_failed_run_that_is_run_again_opens_its_minute(task, postbox):
    fire(postbox.publish, [task.id])
    ticket = postbox.sent[0].ticket
    runs.claim(ticket, "one@host")
    with db.transaction() as session:
        assert attempts.fail(session, ticket, Reason.ERROR, ERROR, 0.5) == RunState.FAILED
    now = settle()
    assert sum(each.failed for each in minutes(now)) == 1
    ask(attempts.run_again, now, ticket.run)
    assert summary(minute_of(ticket.slot)).open
    summarise(now)
    assert sum(each.failed for each in minutes(now)) == 0


def test_two_at_the_same_time_do_it_once():
    with db.transaction() as first:
        summaries.summarise(first, NOW)
        with db.transaction() as second:
            assert summaries.summarise(second, NOW) == (0, False)
            assert summaries.forget(second, NOW) == 0
            assert second.scalars(select(func.count()).select_from(Summary)).one() == 0


def test_what_is_opened_while_it_is_made_is_made_again():
    slot = NOW - timedelta(minutes=30)
    ask(summaries.reopen, [NOW, slot])

    def catch_up():
        with db.transaction() as session:
            session.execute(insert(Run), [a_run(slot, late=timedelta(0))])
            summaries.reopen(session, [slot])

    late = threading.Thread(target=catch_up)
    with db.transaction() as session:
        summaries.summarise(session, NOW)
        late.start()
        late.join(0.3)
        assert late.is_alive()  # it waits for the one who makes the minute
    late.join()
    assert summary(minute_of(slot)).open
    summarise()
    assert summary(minute_of(slot)).succeeded == 1


def test_what_is_being_opened_is_passed_over():
    slot = NOW - timedelta(minutes=30)
    ask(summaries.reopen, [NOW, slot])
    with db.transaction() as other:
        other.execute(insert(Run), [a_run(slot, late=timedelta(0))])
        summaries.reopen(other, [slot])
        summarise()
        assert summary(minute_of(slot)).made_at is None
    summarise()
    assert summary(minute_of(slot)).succeeded == 1


def test_old_minutes_are_forgotten_by_the_hour_and_hours_after_months():
    hours = [NOW - timedelta(hours=n) for n in (0, 20, 47, 48, 49, 77, 101)]
    rows = [row for n, hour in enumerate(hours) for row in some_runs(50, hour - HOUR, hour, seed=n)]
    rows = [*rows, a_run(NOW - timedelta(days=91), late=timedelta(0))]
    rows = [row for row in rows if row["state"] not in OPEN]
    have(rows)
    week = promise(timedelta(days=7))
    while ask(summaries.forget, NOW, limit=1000):
        pass
    with db.transaction() as session:
        oldest = session.execute(select(Summary.span, func.min(Summary.start)).group_by(Summary.span)).all()
    assert dict(map(tuple, oldest)) == {
        Span.MINUTE: datetime(2026, 11, 22, 12, tzinfo=UTC),
        Span.HOUR: min(row["scheduled_for"] for row in rows[:-1]).replace(minute=0, second=0, microsecond=0),
    }
    assert promise(timedelta(days=7)) == week


def test_an_hour_with_an_open_minute_is_kept():
    have([a_run(NOW - timedelta(days=3), RunState.RUNNING, timedelta(0))])
    assert ask(summaries.forget, NOW) == 0


def test_a_run_is_added_to_an_hour_whose_minutes_are_forgotten():
    hour = NOW.replace(minute=0, second=0) - timedelta(days=5)
    rows = [a_run(hour + n * MINUTE, late=timedelta(seconds=n)) for n in range(50)]
    have(rows)
    assert ask(summaries.forget, NOW) == 60
    late = a_run(hour + 55 * MINUTE, RunState.SKIPPED)
    have([late])
    made = summary(hour, Span.HOUR)
    assert (made.succeeded, made.skipped, made.in_time) == (50, 1, 11)


def test_the_chores_make_and_forget_them():
    with db.transaction() as session:
        now = db.now(session)
        summaries.reopen(session, [now])  # as beats have it that are there, should the hour end meanwhile
    add([a_run(now, late=timedelta(milliseconds=3))])
    while chores.summarise().more:
        pass
    assert promise(now=now).runs == 1
    assert not chores.forget_summaries().more


def test_the_lists_of_what_did_not_succeed_have_an_index():
    add(some_runs(2000, NOW - timedelta(days=1), NOW))
    with db.transaction() as session:
        session.execute(text("ANALYZE runs"))
        plan = "\n".join(
            session.scalars(
                text("EXPLAIN SELECT * FROM runs WHERE state = 'failed' ORDER BY scheduled_for DESC, id DESC LIMIT 50")
            )
        )
    assert "state_scheduled_for_id" in plan
