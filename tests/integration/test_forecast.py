"""The forecast on a real database: what was learnt of runs, what the API and the pages tell, and how long it takes."""

import time
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from firing import fire
from sqlalchemy import func, insert, select, text, true, update

from app import bell, canary, db, durations, forecast
from app.forecast import hours, outlook
from app.messages import CANARY
from app.models import AuditEntry, Duration, Node, Run, Task
from app.states import RunState, Trigger
from beat import chores
from workers import heartbeat

TASKS = "/api/v1/tasks"
MINUTELY = {"type": "cron", "expression": "* * * * *"}
NOON = {"type": "cron", "expression": "0 12 * * *"}


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(forecast, "RECENT", 0.0)
    monkeypatch.setattr(forecast._Last, "until", 0.0)


def a_worker(processes, *queues, name="w", **details):
    """A worker that says so for a day."""
    with db.transaction() as session:
        now = db.now(session)
        told = {"queues": list(queues or ("default", "punctual")), "processes": processes} | details
        session.execute(
            insert(Node).values(name=name, kind="worker", started_at=now, seen_at=now + timedelta(days=1), details=told)
        )


def has_taken(task, seconds, runs=8, target="debug.echo"):
    """What is known of a task's runs."""
    with db.transaction() as session:
        now = db.now(session)
        known = {"target": target, "seconds": seconds, "runs": runs, "newest": now, "made_at": now}
        session.execute(insert(Duration).values(task_id=UUID(task["id"]), **known))


def has_run(task, *seconds, attempt=1, state=RunState.SUCCEEDED):
    """Runs of a task that have ended, the oldest first."""
    with db.transaction() as session:
        now = db.now(session)
        for number, took in enumerate(seconds):
            began = now - timedelta(hours=1) + timedelta(minutes=number)
            session.execute(
                insert(Run).values(
                    id=uuid4(),
                    task_id=UUID(task["id"]),
                    scheduled_for=began,
                    task_name=task["name"],
                    target=task["target"],
                    queue=task["queue"],
                    trigger=Trigger.SCHEDULE,
                    missed=0,
                    state=state,
                    attempt=attempt,
                    fired_at=began,
                    started_at=began,
                    attempt_started_at=began,
                    finished_at=None if took is None else began + timedelta(seconds=took),
                )
            )
        session.execute(text("UPDATE tasks SET last_run_at = :at WHERE id = :id"), {"at": began, "id": task["id"]})


def learn():
    """A turn of the chore."""
    with db.transaction() as session:
        return durations.learn(session, db.now(session), durations.BEGINNING)


def known():
    with db.transaction() as session:
        return {row.task_id: row for row in session.scalars(select(Duration))}


def ahead(client, **query):
    answer = client.get("/api/v1/forecast", query_string=query)
    assert answer.status_code == 200, answer.json
    return answer.json


def test_how_long_a_tasks_runs_take_is_learnt_from_the_last_of_them_that_have_ended(register):
    task, other = register(), register()
    has_run(task, *[100.0] * 20, *[10.0] * 8)
    assert learn() == (1, durations.BEGINNING)
    found = known()
    assert set(found) == {UUID(task["id"])}
    assert found[UUID(task["id"])].seconds == pytest.approx(10)
    assert found[UUID(task["id"])].runs == durations.KEPT
    has_run(other, 1.0, 4.0)
    learn()
    assert 2.5 < known()[UUID(other["id"])].seconds < 4  # the latest weighs most


def test_all_attempts_of_a_run_are_its_work_and_what_has_not_ended_teaches_nothing(register):
    tried, going = register(), register()
    has_run(tried, 10.0, 10.0, attempt=3, state=RunState.FAILED)
    has_run(going, None, state=RunState.RUNNING)
    learn()
    assert {str(key): row.seconds for key, row in known().items()} == {tried["id"]: pytest.approx(30)}


def test_a_figure_is_made_again_only_where_there_is_something_new(register, client, monkeypatch):
    task = register()
    has_run(task, 1.0)
    learn()
    before = known()[UUID(task["id"])].made_at
    assert learn() == (0, durations.BEGINNING)
    assert known()[UUID(task["id"])].made_at == before
    monkeypatch.setattr(durations, "REST", timedelta(0))
    with db.transaction() as session:
        session.execute(text("UPDATE tasks SET last_run_at = now()"))
    learn()
    assert known()[UUID(task["id"])].made_at > before
    client.delete(f"{TASKS}/{task['id']}")
    learn()
    assert known() == {}


def test_each_turn_goes_on_where_the_last_one_ended(register, monkeypatch):
    monkeypatch.setattr(durations, "WALKED", 2)
    made = [register() for _ in range(5)]
    for task in made:
        has_run(task, 1.0)
    beat = chores.Chores(publisher=None, announce=lambda: False)
    for count in (2, 4, 5):
        beat.learn_durations()
        assert len(known()) == count
    assert beat.learnt == durations.BEGINNING


def test_the_forecast_names_the_minutes_that_would_be_late_and_what_would_do(client, register):
    a_worker(2, "default")
    for number in range(60):
        has_taken(register(name=f"noon-{number}", schedule=NOON), 2.0)
    register(schedule=MINUTELY)
    found = ahead(client)
    [late] = found["late"]
    assert (late["queue"], late["since"][11:16], late["until"][11:16]) == ("default", "12:00", "12:01")
    assert late["longest"] == pytest.approx(60, abs=1)
    assert late["over"] == pytest.approx(late["longest"] - 10)
    assert 45 < late["runs"] <= 61
    cause = late["causes"][0]
    assert cause["schedule"] == "Every day at 12:00"
    assert (cause["tasks"], cause["runs"], cause["example"][:5]) == (60, 60, "noon-")
    assert late["mends"]["processes"] == 13  # four rounds of 2 s, and the last run behind them
    assert late["mends"]["jitter"] == 60
    noon = found["by_minute"]["late"].index(max(found["by_minute"]["late"]))
    assert found["by_minute"]["due"][noon] == 61
    assert found["by_minute"]["work"][noon] == pytest.approx(120, abs=3)
    assert found["by_minute"]["capacity"] == 120
    assert found["runs"] == 1440 + 60


AT_NOON = "2026-01-01T12:00:40Z"
DAILY = {
    "cron": NOON,
    "rule": {"type": "rrule", "rule": "FREQ=DAILY", "starts": AT_NOON},
    "named": {"type": "rrule", "rule": "FREQ=DAILY;BYHOUR=12;BYMINUTE=0", "starts": AT_NOON},
    "interval": {"type": "interval", "every": 86_400, "anchor": AT_NOON},
}


@pytest.mark.parametrize("schedule", DAILY.values(), ids=DAILY)
@pytest.mark.parametrize("ago", [-70, -1, 0, 1, 20, 60])
def test_what_is_due_each_day_is_in_the_forecast_at_every_instant(register, schedule, ago):
    """Also in the minute of its slot: just before that, and when the next one is a day away."""
    slot = datetime.fromisoformat(register(schedule=schedule)["next_run_at"])
    now = slot + timedelta(seconds=ago)
    with db.transaction() as session:
        if ago > 0:  # it has been fired
            session.execute(update(Task).values(next_run_at=slot + timedelta(days=1)))
        found = forecast.look(forecast.read(session, now))
    [queue] = found.queues.values()
    [minute] = [minute for minute, due in enumerate(queue.due) if due]
    assert queue.due[minute] == 1
    assert len(queue.due) == found.minutes == forecast.DAY
    first, last = found.at(minute), found.at(minute + 1)
    assert any(first <= slot + timedelta(days=day) < last for day in (0, 1))


WEEKLY = {
    "cron": {"type": "cron", "expression": "30 12 * * WED"},
    "rule": {"type": "rrule", "rule": "FREQ=WEEKLY", "starts": "2026-01-07T12:30:00Z"},
    "interval": {"type": "interval", "every": 604_800, "anchor": "2026-01-07T12:30:00Z"},
}


@pytest.mark.parametrize("schedule", WEEKLY.values(), ids=WEEKLY)
@pytest.mark.parametrize(("minutes", "seen"), [(-31, [1]), (-30, [0, 168]), (-1, [0, 168]), (1, [168]), (29, [168])])
def test_what_is_due_each_week_is_in_the_week_at_every_instant(register, schedule, minutes, seen):
    """Also in the hour of its slot: where it is to come, and from then on where it comes again."""
    slot = datetime.fromisoformat(register(schedule=schedule)["next_run_at"])
    with db.transaction() as session:
        if minutes > 0:  # it has been fired
            session.execute(update(Task).values(next_run_at=slot + timedelta(days=7)))
        due = hours.read(session, slot + timedelta(minutes=minutes), 7, true())
    found = hours.look(due, 7)
    assert [hour for hour, load in enumerate(found.loads) if load] == seen


def test_of_the_hour_that_has_begun_a_week_counts_what_is_to_come(register):
    register(schedule=MINUTELY)
    now = datetime.fromisoformat(register(schedule=NOON)["next_run_at"]) - timedelta(minutes=20, seconds=1)
    with db.transaction() as session:
        found = hours.look(hours.read(session, now, 7, true()), 7)
    assert found.loads[:3] == [20, 61, 60]


def test_what_is_due_once_in_the_minute_that_has_begun_is_no_more_of_the_day(register):
    register(schedule={"type": "once", "at": "2090-01-01T12:00:40Z"})
    for clock, counts in (("11:58:59", 1), ("11:59:30", 1), ("12:00:00", 1), ("12:00:30", 0)):
        with db.transaction() as session:
            found = forecast.look(forecast.read(session, datetime.fromisoformat(f"2090-01-01T{clock}Z")))
        assert [queue.due.count(1) for queue in found.queues.values()] == [1] * counts


def test_a_task_that_is_to_run_now_or_soon_is_said_to_run(client):
    a_worker(1, "default")
    for schedule in ({"type": "now"}, {"type": "once", "at": "2026-01-01T00:00:00Z"}):
        answer = client.post(f"{TASKS}?dry_run=1", json={"target": "debug.echo", "schedule": schedule})
        assert answer.json["forecast"]["runs"] == 1


def test_with_what_it_says_would_do_nobody_would_be_late(client, register):
    a_worker(2, "default")
    hour = (datetime.now(UTC) + timedelta(hours=12)).hour  # far from the ends of the day, past which nothing is moved
    then = {"type": "cron", "expression": f"0 {hour} * * *"}
    for number in range(14):
        has_taken(register(name=f"first-{number}", schedule=then), 1.0)
    for number in range(10):
        has_taken(register(name=f"also-{number}", schedule=then | {"expression": f"0 {hour} * 1-12 *"}), 1.0)
    [late] = ahead(client)["late"]
    assert late["causes"][0]["tasks"] == 14
    mends = late["mends"]
    assert mends["minutes"] == 1
    first = client.get(f"{TASKS}?q=first&limit=100").json["items"]
    for body in (
        {"jitter": mends["jitter"]},
        {"jitter": 0, "schedule": then | {"expression": f"{mends['minutes']} {hour} * * *"}},
    ):
        for task in first:
            client.patch(f"{TASKS}/{task['id']}", json=body)
        assert ahead(client)["late"] == []
    for task in first:
        client.patch(f"{TASKS}/{task['id']}", json={"schedule": then})
    assert len(ahead(client)["late"]) == 1
    told = "jsonb_set(details, '{processes}', to_jsonb(CAST(:n AS int)))"
    for number, late in ((mends["processes"], 0), (mends["processes"] - 1, 1)):
        with db.transaction() as session:
            session.execute(text(f"UPDATE nodes SET details = {told}"), {"n": number})
        assert len(ahead(client)["late"]) == late


def test_what_nobody_knows_counts_as_nothing_and_is_said(client, register):
    a_worker(1)
    register(schedule=MINUTELY)
    assert ahead(client)["unknown"] == 1.0
    like_it = register(schedule={"type": "once", "at": "2099-01-01T00:00:00Z"})
    has_taken(like_it, 30.0)  # one like it of the same target
    found = ahead(client)
    assert found["unknown"] == 0
    assert found["queues"][0]["work"] == pytest.approx(1440 * 30, rel=0.01)


def test_an_autoscaling_worker_counts_with_its_upper_bound_and_one_that_is_gone_not_at_all(client, register):
    register(schedule=MINUTELY)
    assert ahead(client)["queues"][0]["longest"] is None  # nobody is there
    assert ahead(client)["queues"][0]["late_minutes"] == 1440
    a_worker(2, "default", most=8)
    a_worker(3, "other", name="v")
    found = ahead(client)["queues"][0]
    assert (found["processes"], found["late_minutes"]) == (8, 0)
    with db.transaction() as session:
        session.execute(text("UPDATE nodes SET seen_at = now() - interval '6 s'"))
    assert ahead(client)["queues"][0]["processes"] == 0


def test_paused_tasks_bring_nothing_and_another_apps_only_their_runs(client, register, monkeypatch):
    from app import settings  # noqa: PLC0415 - only after the environment stands

    theirs = settings.load().model_copy(update={"PUNCTUAL_EXTERNAL_TARGETS": (("billing.*", "billing"),)})
    monkeypatch.setattr(settings, "load", lambda: theirs)
    paused = register(schedule=MINUTELY)
    client.post(f"{TASKS}/{paused['id']}/pause")
    register(target="billing.charge", schedule=MINUTELY)
    [queue] = ahead(client)["queues"]
    assert queue["name"] == "billing"
    assert queue["external"]
    assert (queue["runs"], queue["work"], queue["late_minutes"]) == (1440, 0, 0)


def test_a_queue_that_is_asked_for_is_told_of_alone(client, register):
    a_worker(1, "default")
    register(schedule=MINUTELY)
    register(schedule=MINUTELY, queue="reports")
    found = ahead(client, queue="default", minutes=15)
    assert [queue["name"] for queue in found["queues"]] == ["default"]
    assert (found["minutes"], len(found["by_minute"]["due"]), found["runs"]) == (15, 15, 15)
    assert found["late"] == []
    for wrong in ({"minutes": 0}, {"minutes": 1441}, {"minutes": "x"}):
        assert client.get("/api/v1/forecast", query_string=wrong).status_code == 422


def test_a_confined_key_sees_its_own_demand_alone(app, client, register):
    a_worker(1)
    register(labels={"team": "billing"}, schedule=MINUTELY)
    register(labels={"team": "sales"}, schedule=NOON, name="secret")
    made = client.post("/api/v1/keys", json={"name": "k", "role": "editor", "labels": {"team": "billing"}}).json
    theirs = app.test_client()
    theirs.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {made['key']}"
    found = ahead(theirs)
    assert (found["confined"], found["runs"]) == (True, 1440)
    body = {"target": "debug.echo", "schedule": NOON, "labels": {"team": "billing"}}
    answer = theirs.post(f"{TASKS}?dry_run=1", json=body)
    assert "secret" not in answer.text
    assert theirs.post(f"{TASKS}?dry_run=1", json=body | {"labels": {}}).status_code == 403


def test_a_dry_run_says_what_a_task_would_do_and_does_nothing(client, register, monkeypatch):
    a_worker(2, "default")
    rung = []
    monkeypatch.setattr(bell.Ringer, "ring", lambda _, hint: rung.append(hint))
    for number in range(10):
        has_taken(register(name=f"noon-{number}", schedule=NOON), 1.8)
    rung.clear()
    before = everything()
    answer = client.post(f"{TASKS}?dry_run=1", json={"name": "new", "target": "debug.echo", "schedule": NOON})
    assert answer.status_code == 200
    assert answer.json["task"]["name"] == "new"
    told = answer.json["forecast"]
    assert told["runs"] == 1
    assert told["before"]["late_minutes"] == told["after"]["late_minutes"] == 0
    assert told["after"]["longest"] > told["before"]["longest"]
    assert told["after"]["share"] > told["before"]["share"]
    assert everything() == before
    assert rung == []
    assert client.post(TASKS, json={"name": "new", "target": "debug.echo", "schedule": NOON}).status_code == 201
    assert rung


def test_a_dry_run_names_the_minutes_that_a_change_makes_late(client, register):
    a_worker(2, "default")
    for number in range(11):
        has_taken(register(name=f"noon-{number}", schedule=NOON), 1.8)
    evening = register(name="evening", schedule=NOON | {"expression": "0 18 * * *"})
    has_taken(evening, 90.0)
    before = everything()
    told = client.patch(f"{TASKS}/{evening['id']}?dry_run=1", json={"schedule": NOON}).json["forecast"]
    assert told["before"]["late_minutes"] == 0
    assert [minute[11:16] for minute in told["added"]] == ["12:00"]
    assert told["work"] == pytest.approx(90, abs=0.1)
    assert everything() == before
    # and a task that is only moved to where it was changes nothing
    same = client.patch(f"{TASKS}/{evening['id']}?dry_run=1", json={"description": "x"}).json["forecast"]
    assert same["before"] == same["after"]


def everything():
    """What a dry run must not touch."""
    with db.transaction() as session:
        counts = [session.scalar(select(func.count()).select_from(table)) for table in (Task, Run, AuditEntry)]
        return counts, session.execute(select(Task.id, Task.version, Task.schedule, Task.next_run_at)).all()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"target": "debug.echo"}, 422),
        ({"target": "nobody.knows", "schedule": NOON}, 422),
        ({"target": "debug.echo", "schedule": {"type": "cron", "expression": "61 * * * *"}}, 422),
        ({"target": "debug.echo", "schedule": NOON, "name": "taken"}, 409),
    ],
)
def test_a_dry_run_is_refused_as_the_real_one_is(client, register, body, status):
    register(name="taken")
    dry, real = (client.post(address, json=body) for address in (f"{TASKS}?dry_run=1", TASKS))
    assert (dry.status_code, dry.json["errors"]) == (status, real.json["errors"])
    assert real.status_code == status


def test_a_change_that_is_only_tried_is_refused_as_the_real_one_is(client, register):
    task = register()
    address = f"{TASKS}/{task['id']}?dry_run=1"
    assert client.patch(address, json={"priority": 3}, headers={"If-Match": '"9"'}).status_code == 412
    assert client.patch(address, json={"schedule": {}}).status_code == 422
    assert client.patch(f"{TASKS}/{uuid4()}?dry_run=1", json={"priority": 3}).status_code == 404


def test_the_command_line_shows_the_forecast_and_tries_a_task(punctual, ask, client, register):
    a_worker(1, "default")
    for number in range(20):
        has_taken(register(name=f"noon-{number}", schedule=NOON), 1.0)
    shown = punctual("forecast").stdout
    assert "LATE FROM" in shown
    assert "Every day at 12:00" in shown
    assert "processes" in shown
    assert ask("forecast", "--minutes", "1")["minutes"] == 1
    words = ("tasks", "create", "--target", "debug.echo", "--cron", "0 12 * * *", "--name", "tried", "--dry-run")
    assert "before.late_minutes" in punctual(*words).stdout
    assert ask("tasks", "change", "noon-1", "--set", "priority=1", "--dry-run")["forecast"]["added"] == []
    assert client.get(f"{TASKS}?q=tried").json["items"] == []
    assert client.get(f"{TASKS}?q=noon-1").json["items"][-1]["priority"] == 5


def test_what_comes_soon_tells_how_many_processes_it_takes(client, register):
    for number in range(40):
        has_taken(register(name=f"m-{number}", schedule=MINUTELY), 3.0)
    with db.transaction() as session:
        [found] = forecast.coming(session, db.now(session))
    assert (found.queue, found.runs) == ("default", 600)
    assert found.work == pytest.approx(1800, rel=0.01)
    assert found.processes == 10  # four rounds begin at 0, 3, 6 and 9 s


def test_a_worker_tells_how_many_processes_it_may_have():
    class Pool:
        num_processes = 2

    class Scaler:
        max_concurrency = 8

    class Controller:
        autoscaler = Scaler()

    class Consumer:
        pool, controller = Pool(), Controller()

    assert heartbeat._details(Consumer())["most"] == 8
    Consumer.controller.autoscaler = None
    assert heartbeat._details(Consumer())["most"] == 2


def test_runs_that_were_really_fired_and_recorded_teach_how_long_they_take(register, postbox):
    from app import runs  # noqa: PLC0415 - only after the environment stands

    task = register(schedule={"type": "now"})
    fire(postbox.publish, [UUID(task["id"])])
    [message] = postbox.sent
    assert runs.claim(message.ticket, "w@h")
    time.sleep(0.05)
    assert runs.succeed(message.ticket, "null")
    learn()
    assert 0.04 < known()[UUID(task["id"])].seconds < 2


OWN = {
    "id": "gen_random_uuid()",
    "name": "name || '-' || n",
    "next_run_at": "CASE WHEN schedule->>'type' = 'interval' THEN"
    " now() + random() * (schedule->>'every')::float * interval '1 s' ELSE next_run_at END",
}
LEARNT = "SELECT id, target, 0.05, 8, now(), now() FROM tasks ON CONFLICT DO NOTHING"


def slowness():
    """How many times as long as usual this machine takes for a million squares, where that is more."""
    took = []
    for _ in range(5):
        began = time.process_time()
        sum(number * number for number in range(1_000_000))
        took.append(time.process_time() - began)
    return max(1.0, min(took) / 0.06)


def test_the_forecast_over_100_000_tasks_answers_in_under_two_seconds(client, monkeypatch):
    from bench import mixed  # noqa: PLC0415 - only after the environment stands

    monkeypatch.setattr(outlook, "PATIENCE", 20.0)
    mixed.fill(1_000)
    names = [column.name for column in Task.__table__.columns]
    values = ", ".join(OWN.get(name, name) for name in names)
    into, source = ", ".join(names), "tasks, generate_series(1, 9) n WHERE name !~ '-.*-'"
    copy = f"INSERT INTO tasks ({into}) SELECT {values} FROM {source}"
    for _ in range(11):  # a transaction may not take long
        with db.transaction() as session:
            session.execute(text(copy.replace("|| n", f"|| n || '-' || {_}")))
    with db.transaction() as session:
        session.execute(text(f"INSERT INTO durations {LEARNT}"))
    with db.transaction() as session:  # as autovacuum has done where so many tasks stand
        session.execute(text("ANALYZE tasks"))
        session.execute(text("ANALYZE durations"))
    took, spent, found = [], [], None
    while len(took) < 3 or (min(took) > 2 and len(took) < 6):  # others may use the machine too
        began, used = time.monotonic(), time.process_time()
        found = ahead(client)
        took.append(time.monotonic() - began)
        spent.append(time.process_time() - used)
    print(
        f"forecast of 100,000 tasks, {found['runs']:,.0f} runs: {min(took):.2f} to {max(took):.2f} s,"
        f" {min(spent):.2f} s of a web process"
    )
    assert found["missing"] == 0
    assert found["runs"] > 1_000_000
    # PostgreSQL's part is half a second. Of a machine that others keep busy only the time that was really had can tell.
    assert min(took) < 2 or min(spent) < 1.5 * slowness()


def test_a_new_installation_whose_canaries_alone_sing_is_late_in_nothing(client, database):
    a_worker(2, "default", "punctual", system=[CANARY])
    with db.transaction() as session:
        canary.keep(session, db.now(session))
    found = ahead(client)
    assert found["late"] == []
    assert {queue["name"]: queue["processes"] for queue in found["queues"]} == {"default": 2, "punctual": 2}
    assert min(queue["runs"] for queue in found["queues"]) > 5_000
