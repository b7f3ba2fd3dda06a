"""The beat, ticked by hand: mirror, ring, rebuild, and whatever is away."""

import re
from datetime import timedelta

import pytest
import redis
from sqlalchemy import select, text, update
from stores import ROOT

from app import db, errors, outbox, settings, tasks
from app.models import Run, Task
from beat import entries, mirror, scheduler
from beat.chores import Chores, Done
from beat.main import celery_app
from beat.scheduler import PunctualScheduler

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def start(redis_client, postbox, monkeypatch):
    """Starts a beat without its chores' thread, which sends to a postbox, and goes on as if a hint had come."""
    started = []

    def call():
        made = PunctualScheduler(celery_app, lazy=True)
        made.publisher = postbox
        monkeypatch.setattr(made, "_listen", lambda *_: True)
        started.append(made)
        return made

    yield call
    for made in started:
        made.leases.release()
        made.hints.close()
        made.entries.client.close()


@pytest.fixture
def beat(start):
    return start()


def create(fields, **changed):
    with db.transaction() as session:
        return tasks.create(session, db.now(session), fields(**changed))


def once(fields, seconds):
    with db.transaction() as session:
        at = db.now(session) + timedelta(seconds=seconds)
    return create(fields, schedule={"type": "once", "at": at.isoformat()})


def cards(client):
    return sum(client.zcard(entries.schedule_key(bucket)) for bucket in range(settings.load().PUNCTUAL_BUCKETS))


def test_a_new_task_has_its_entry_after_a_tick(beat, fields, redis_client):
    task = once(fields, 3600)
    beat.tick()
    score = redis_client.zscore(entries.schedule_key(task.bucket), entries.prefix(task.bucket) + str(task.id))
    assert score == task.next_run_at.timestamp()
    with db.transaction() as session:
        assert session.get_one(Task, task.id).mirrored_version == task.version


def test_between_two_slots_a_beat_mirrors_only_now_and_then_or_when_a_hint_comes(
    beat, fields, redis_client, monkeypatch
):
    monkeypatch.setattr(scheduler, "KEEP_EVERY", 3600)
    monkeypatch.setattr(beat, "_listen", lambda *_: False)
    beat.tick()
    once(fields, 3600)
    beat.tick()
    assert cards(redis_client) == 0
    monkeypatch.setattr(beat, "_listen", lambda *_: True)
    beat.tick()
    beat.tick()
    assert cards(redis_client) == 1


def test_what_was_sent_is_marked_a_while_later(beat, fields, postbox, redis_client, monkeypatch):
    def states():
        with db.transaction() as session:
            return set(session.scalars(select(Run.state)))

    monkeypatch.setattr(scheduler, "MARK_EVERY", 0)
    monkeypatch.setattr(scheduler, "MARK_AFTER", 3600)
    create(fields, schedule={"type": "now"})
    beat.tick()
    beat.tick()
    assert states() == {"pending"}
    monkeypatch.setattr(scheduler, "MARK_AFTER", 0)
    beat.tick()
    assert states() == {"queued"}
    assert not beat.sent


def test_a_due_task_is_fired_and_its_entry_goes(beat, fields, postbox, redis_client):
    task = create(fields, schedule={"type": "now"})
    beat.tick()
    assert [message.ticket.task for message in postbox.sent] == [task.id]
    assert cards(redis_client) == 0


@pytest.mark.parametrize(
    ("batch", "fired", "took", "then"),
    [
        (1000, 1000, 0.1, 2000),  # the more, the less each costs
        (4000, 4000, 0.1, 4000),
        (1000, 20, 0.01, 1000),  # of a few nothing is learnt
        (1000, 1000, 0.4, 1000),
        (4000, 3900, 0.6, 2000),
        (1000, 900, 0.6, 1000),  # what takes so long is the same for fewer
        (1000, 900, 2.1, 500),
        (250, 200, 5.0, 250),
        (250, 250, 0.6, 500),  # after a firing that failed
    ],
)
def test_as_many_are_fired_together_as_time_allows(batch, fired, took, then):
    assert scheduler.fitting(batch, fired, took) == then


def test_few_are_fired_together_after_a_firing_that_failed(beat, fields, redis_client, monkeypatch):
    def fail(*_):
        raise errors.Unavailable

    create(fields, schedule={"type": "now"})
    monkeypatch.setattr(scheduler, "MAX_TICK", 0.01)
    with monkeypatch.context() as patched:
        patched.setattr(scheduler.dispatch, "fire", fail)
        beat.tick()
    assert beat.batch == scheduler.FEWEST
    beat.tick()
    beat.tick()
    assert cards(redis_client) == 0
    assert beat.batch == scheduler.BATCH


def test_a_recurring_tasks_entry_moves_on_to_its_next_slot(beat, fields, postbox, redis_client):
    task = create(fields, schedule={"type": "interval", "every": 3600})
    with db.transaction() as session:
        session.execute(update(Task).values(next_run_at=db.now(session)))
    beat.tick()
    assert len(postbox.sent) == 1
    with db.transaction() as session:
        next_run_at = session.get_one(Task, task.id).next_run_at
    key = entries.prefix(task.bucket) + str(task.id)
    assert redis_client.zscore(entries.schedule_key(task.bucket), key) == next_run_at.timestamp()


@pytest.mark.parametrize("change", ["pause", "delete"])
def test_a_task_that_is_paused_or_deleted_loses_its_entry(beat, fields, redis_client, change):
    task = once(fields, 3600)
    beat.tick()
    assert cards(redis_client) == 1
    with db.transaction() as session:
        if change == "pause":
            tasks.pause(session, db.now(session), task.id, None)
        else:
            tasks.delete(session, db.now(session), task.id)
    beat.tick()
    assert cards(redis_client) == 0


def test_an_emptied_redis_is_filled_again_at_the_next_ticks(beat, fields, redis_client):
    for _ in range(5):
        once(fields, 3600)
    beat.tick()
    redis_client.flushdb()
    beat.tick()
    beat.tick()
    assert cards(redis_client) == 5
    assert beat.entries.incomplete(range(settings.load().PUNCTUAL_BUCKETS)) == set()


def test_a_rebuild_goes_in_batches_the_soonest_first_and_rings_between_them(
    beat, fields, postbox, redis_client, monkeypatch
):
    monkeypatch.setattr(mirror, "REBUILD_BATCH", 2)
    far = [once(fields, 3600 + n) for n in range(4)]
    with db.transaction() as session:
        session.execute(update(Task).values(mirrored_version=Task.version))
    beat.tick()
    assert cards(redis_client) == 2
    soon = create(fields, schedule={"type": "now"})
    beat.tick()
    assert [message.ticket.task for message in postbox.sent] == [soon.id]
    for _ in range(2):
        beat.tick()
    assert cards(redis_client) == len(far)


def test_a_member_that_is_no_task_is_set_aside_and_its_neighbours_ring(beat, fields, postbox, redis_client):
    beat.tick()
    redis_client.zadd(entries.schedule_key(0), {"garbage": 1})
    task = create(fields, schedule={"type": "now"})
    beat.tick()
    assert [message.ticket.task for message in postbox.sent] == [task.id]
    assert redis_client.zcard(entries.schedule_key(0)) == 0


def test_an_entry_of_a_task_that_is_gone_is_taken_out(beat, fields, redis_client):
    task = once(fields, 3600)
    beat.tick()
    with db.transaction() as session:
        session.delete(session.get_one(Task, task.id))
    redis_client.zadd(entries.schedule_key(task.bucket), {entries.prefix(task.bucket) + str(task.id): 1})
    beat.tick()
    assert cards(redis_client) == 0


def test_an_entry_that_rings_too_early_fires_nothing(beat, fields, postbox, redis_client):
    task = once(fields, 3600)
    beat.tick()
    key = entries.prefix(task.bucket) + str(task.id)
    redis_client.zadd(entries.schedule_key(task.bucket), {key: 1})
    beat.tick()
    assert postbox.sent == []
    assert redis_client.zscore(entries.schedule_key(task.bucket), key) == task.next_run_at.timestamp()


def test_without_redis_a_tick_raises_nothing_and_gives_up_its_leases(beat, monkeypatch):
    beat.tick()
    assert beat.leases.held()
    away = redis.Redis(port=1, retry=None)
    monkeypatch.setattr(beat.leases, "client", away)
    beat.tick()
    assert beat.leases.held() == set()
    away.close()


def test_a_beat_that_alone_does_not_reach_postgresql_leaves_its_buckets_to_another(start, eventually, monkeypatch):
    cut_off, other = start(), start()
    cut_off.tick()
    assert len(cut_off.leases.held()) == cut_off.leases.buckets
    ping, is_cut = db.ping, False

    def unreachable():
        if is_cut:
            raise errors.Unavailable
        ping()

    monkeypatch.setattr(db, "ping", unreachable)
    monkeypatch.setattr(cut_off.mirror, "turn", unreachable)

    def tick():
        nonlocal is_cut
        is_cut = True
        cut_off.tick()
        is_cut = False
        other.tick()
        return len(other.leases.held()) == other.leases.buckets

    assert eventually(tick)
    assert cut_off.leases.held() == set()
    cut_off.tick()
    other.tick()
    cut_off.tick()
    assert cut_off.leases.held()


def test_a_beat_that_alone_does_not_reach_the_broker_leaves_what_is_pending_to_another(beat, fields, postbox):
    create(fields, schedule={"type": "now"})
    postbox.takes = postbox.answers = False
    beat.tick()
    with db.transaction() as session:
        session.execute(update(Run).values(fired_at=Run.fired_at - outbox.SENDING))
    assert Chores(postbox, Done).publish_pending() == Done()
    with db.transaction() as session:
        assert len(outbox.take_pending(session)) == 1  # as another beat does


def test_a_tick_that_fails_for_any_other_cause_is_followed_by_the_next(beat, fields, postbox, monkeypatch):
    create(fields, schedule={"type": "now"})
    monkeypatch.setattr(postbox, "publish", lambda _: 1 / 0)
    beat.tick()
    monkeypatch.undo()
    monkeypatch.setattr(beat, "_listen", lambda *_: None)
    beat.tick()
    with db.transaction() as session:
        assert session.scalars(select(Run.state)).all() == ["pending"]  # the chore publish_pending has it


def test_a_bell_that_breaks_while_a_beat_listens_raises_nothing(redis_client, monkeypatch):
    beat = PunctualScheduler(celery_app, lazy=True)

    def broken(**_):
        raise redis.ConnectionError("Connection closed by server.")

    monkeypatch.setattr(beat.hints, "get_message", broken)
    beat.tick()
    assert beat.leases.held() == set()
    beat.hints.close()
    beat.entries.client.close()


def test_buckets_grow_as_the_page_says(start, fields, postbox, redis_client, configure):
    configure(PUNCTUAL_BUCKETS="4")
    made = [create(fields, schedule={"type": "interval", "every": 3600}) for _ in range(40)]
    before = start()
    before.tick()
    assert cards(redis_client) == len(made)
    before.leases.release()
    configure(PUNCTUAL_BUCKETS="16")
    after = start()
    after.tick()
    spread_tasks(16)
    redis_client.flushdb()
    for _ in range(2):
        after.tick()
    lie_in = {task.id: [b for b in range(16) if lies_in(redis_client, b, task.id)] for task in made}
    assert lie_in == {task.id: [task.id.int % 16] for task in made}
    with db.transaction() as session:
        session.execute(update(Task).values(next_run_at=db.now(session), mirrored_version=0))
    for _ in range(2):
        after.tick()
    assert sorted(message.ticket.task for message in postbox.sent) == sorted(task.id for task in made)


def spread_tasks(number):
    """Does what the page shows."""
    page = (ROOT / "docs/scaling.md").read_text()
    [lines] = re.findall(r"<!-- buckets -->\n```bash\n(.+?)```", page, re.DOTALL)
    [[bucket, statement]] = re.findall(r'bucket="(.+?)".+?"(UPDATE .+?)"', lines, re.DOTALL)
    with db.transaction() as session:
        for first in range(256):
            shown = (
                statement.replace("$bucket", bucket).replace("$number", str(number)).replace("${first}", f"{first:02x}")
            )
            session.execute(text(shown))


def lies_in(client, bucket, task_id):
    return client.zscore(entries.schedule_key(bucket), entries.prefix(bucket) + str(task_id)) is not None
