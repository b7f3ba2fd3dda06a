"""Who is told of incidents, when, and that it is once: the runs that are made for it. Workers are played."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import select, update

from app import attempts, db, incidents, nodes, notifications, settings
from app.incidents import Sign
from app.messages import EMAIL, WEBHOOK, Ticket
from app.models import Incident, Run, Task
from app.states import NodeKind, Reason, RunState, Trouble
from app.system import register

MAIL = {"PUNCTUAL_SMTP_URL": "smtp://mail", "PUNCTUAL_MAIL_FROM": "punctual@example.com"}
USUAL = MAIL | {"PUNCTUAL_NOTIFY_EMAIL": "ops@example.com", "PUNCTUAL_NOTIFY_WEBHOOK": "http://10.0.0.1/T0KEN"}
SOON = timedelta(seconds=5)


@pytest.fixture(autouse=True)
def configure(database, monkeypatch):
    """Gives this process other settings."""

    def call(**given):
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        settings.load.cache_clear()

    call(**USUAL)
    yield call
    monkeypatch.undo()
    settings.load.cache_clear()


@pytest.fixture(autouse=True)
def _worker(database):
    offer(EMAIL, WEBHOOK)


def offer(*targets):
    details = {"queues": ["default"], "processes": 2, "running": 0, "versions": {}, "system": list(targets)}
    with db.statement() as session:
        nodes.announce(session, NodeKind.WORKER, "celery@a", timedelta(seconds=1), details)


def report(*those, kind=Trouble.FAILED):
    with db.transaction() as session:
        now = db.now(session)
        incidents.report(session, kind, [Sign(task_id=task.id, run_id=uuid4(), slot=now) for task in those])


def end(**wanted):
    """Closes incidents as the chore does."""
    with db.transaction() as session:
        now = db.now(session)
        closed = {
            "closed_at": now,
            "changed_at": now,
            "ending": "well",
            "untold": Incident.told.is_distinct_from("nothing"),
        }
        session.execute(update(Incident).filter_by(**wanted).values(closed))


def tell(later=SOON):
    """What is told when so much time has passed: by channel and person the notices."""
    with db.transaction() as session:
        made = notifications.tell(session, db.now(session) + later)
    return {(message.target, message.kwargs.get("to")): message.kwargs["notice"] for message in made}


def told(said):
    """The same in few words."""
    return {who: (notice["type"].partition(".")[2], notice["tasks"]) for who, notice in said.items()}


BY_MAIL, BY_WEBHOOK = (EMAIL, "ops@example.com"), (WEBHOOK, None)


def test_an_incident_is_told_once_on_each_channel_and_once_when_it_is_over(create):
    task = create()
    report(task)
    assert tell(timedelta(0)) == {}  # it waits for company
    assert told(tell()) == {BY_MAIL: ("opened", 1), BY_WEBHOOK: ("opened", 1)}
    report(task)
    assert tell(timedelta(hours=1)) == {}
    end()
    over = tell(timedelta(minutes=1))
    assert told(over) == {BY_MAIL: ("closed", 1), BY_WEBHOOK: ("closed", 1)}
    assert tell(timedelta(hours=1)) == {}
    with db.transaction() as session:
        kept = [run.kwargs["notice"] for run in session.scalars(select(Run))]
    [first] = {notice["id"] for notice in kept if notice["type"] == "incident.opened"}
    assert over[BY_MAIL]["answers"] == [first]


def test_beats_that_tell_at_once_tell_once(create):
    report(create())
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda _: tell(), range(4)))
    assert sum(map(len, said)) == 2


def test_many_at_once_are_one_notice_and_what_follows_waits(create):
    many = [create() for _ in range(30)]
    report(*many)
    report(*many[:10], kind=Trouble.MISSED)
    [notice, _] = tell().values()
    assert (notice["tasks"], notice["total"], notice["kinds"]) == (30, 40, {"failed": 30, "missed": 10})
    assert len(notice["incidents"]) == 20
    report(create())
    assert tell(timedelta(seconds=9)) == {}
    assert told(tell(timedelta(seconds=16)))[BY_MAIL] == ("opened", 1)


def test_an_incident_that_was_over_at_once_is_told_in_two_steps(create):
    report(create())
    end()
    assert told(tell())[BY_MAIL] == ("opened", 1)
    assert told(tell(timedelta(minutes=1)))[BY_MAIL] == ("closed", 1)


def test_a_task_says_itself_who_is_told_and_of_what(create):
    own = {"on": ["failed"], "webhook": "https://example.com/hooks/0THER", "email": ["me@example.com"]}
    mine = create(notify=own)
    fewer = create(notify={"on": ["late"], "webhook": None, "email": []})
    silent = create(notify={"on": []})
    report(mine, fewer, silent)
    report(mine, fewer, kind=Trouble.LATE)
    said = tell()
    assert told(said) == {
        BY_MAIL: ("opened", 1),
        (EMAIL, "me@example.com"): ("opened", 1),
        BY_WEBHOOK: ("opened", 1),  # of two notices by webhook the last one is here
    }
    assert said[BY_MAIL]["kinds"] == {"late": 1}
    assert said[EMAIL, "me@example.com"]["kinds"] == {"failed": 1}
    with db.transaction() as session:
        kept = list(session.scalars(select(Run).where(Run.target.in_([EMAIL, WEBHOOK]))))
        assert len(kept) == 4
        assert "0THER" not in str([run.kwargs for run in kept])
        assert "T0KEN" not in str([run.kwargs for run in kept])
        key = said[EMAIL, "me@example.com"]["audience"]
        assert notifications.recipient(session, key, [fewer.id, mine.id]) == own["webhook"]
        session.execute(update(Task).where(Task.id == mine.id).values(notify=own | {"webhook": "https://else"}))
        assert notifications.recipient(session, key, [mine.id]) is None
    end()
    said = tell(timedelta(minutes=1))
    assert told(said)[BY_MAIL] == ("closed", 1)  # nobody hears the end of what he was not told
    assert tell(timedelta(hours=1)) == {}


def test_where_nobody_is_to_be_told_incidents_are_kept_and_nothing_is_made(create, configure):
    configure(**dict.fromkeys(USUAL, ""))
    report(create())
    assert tell() == {}
    configure(**USUAL)
    assert tell(timedelta(hours=1)) == {}  # nor is it told of later
    with db.transaction() as session:
        assert session.scalars(select(Incident.told)).all() == ["nothing"]
        assert session.scalars(select(Task).where(Task.target.like("punctual.%"))).all() == []


def test_a_notice_waits_for_a_worker_that_knows_how_to_give_it(create):
    offer()
    report(create())
    assert tell() == {}
    offer(EMAIL, WEBHOOK)
    assert len(tell()) == 2


def test_a_notice_is_a_run_that_is_tried_for_hours_and_a_notice_that_fails_makes_none(create, caplog):
    report(create())
    tell()
    with db.transaction() as session:
        tasks_made = session.scalars(select(Task).where(Task.target.in_([EMAIL, WEBHOOK]))).all()
        assert {(task.name, task.state, task.next_run_at) for task in tasks_made} == {
            ("punctual.email.default", "completed", None),
            ("punctual.webhook.default", "completed", None),
        }
        run = session.scalars(select(Run).where(Run.target == EMAIL)).one()
        session.execute(update(Run).values(state="running", attempt=59))
    ticket = Ticket(task=run.task_id, run=run.id, slot=run.scheduled_for, attempt=59)
    error = {"type": "NotTaken", "message": "away", "traceback": None}
    with db.transaction() as session:
        assert attempts.fail(session, ticket, Reason.ERROR, error, 0.5) == RunState.RETRYING
        again = session.scalars(select(Run).where(Run.id == run.id)).one()
        assert timedelta(minutes=5) < again.retry_at - db.now(session) < timedelta(minutes=15)
        session.execute(update(Run).values(state="running", attempt=60))
        last = Ticket(task=run.task_id, run=run.id, slot=run.scheduled_for, attempt=60)
        assert attempts.fail(session, last, Reason.ERROR, error, 0.5) == RunState.FAILED
    assert "punctual.email.default failed for good" in caplog.text
    assert tell(timedelta(hours=1)) == {}


def test_a_confined_key_sees_no_notice_as_it_names_tasks_of_others(client, app, create):
    report(create(queue="default"))
    tell()
    made = client.post("/api/v1/keys", json={"name": "a", "role": "viewer", "queues": ["default"]}).json
    confined = app.test_client()
    confined.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {made['key']}"
    [task] = client.get(f"/api/v1/tasks?target={EMAIL}").json["items"]
    for who, number in ((client, 1), (confined, 0)):
        for address in (f"/api/v1/runs?task_id={task['id']}", f"/api/v1/tasks?target={EMAIL}"):
            assert len(who.get(address).json["items"]) == number


@pytest.mark.parametrize(
    ("notify", "problem"),
    [
        ({"on": ["often"]}, {"on": {"0": ["Must be one of: failed, late, missed, paused."]}}),
        ({"on": ["late", "late"]}, {"on": ["May name each one once."]}),
        ({"webhook": "ftp://example.com"}, {"webhook": [None]}),
        ({"webhook": "https://user:pw@example.com/"}, {"webhook": [None]}),
        ({"webhook": "https://[::1/"}, {"webhook": [None]}),
        ({"webhook": "https://example.com:99999/"}, {"webhook": [None]}),
        ({"email": ["me@example.com\nBcc: you@example.com"]}, {"email": {"0": [None]}}),
        ({"sms": "1"}, {"sms": ["Unknown field."]}),
        ("me@example.com", None),
    ],
)
def test_whom_a_task_names_is_checked_field_by_field(client, notify, problem):
    body = {"target": "debug.echo", "schedule": {"type": "interval", "every": 60}, "notify": notify}
    answer = client.post("/api/v1/tasks", json=body)
    assert answer.status_code == 422, answer.text
    found = answer.json["errors"]["notify"]
    assert found if problem is None else shape(found) == shape(problem)


def shape(found):
    return {key: shape(inner) for key, inner in found.items()} if isinstance(found, dict) else len(found)


def test_a_mail_that_could_not_be_sent_is_refused_where_it_is_asked_for(client, configure):
    configure(**dict.fromkeys(USUAL, ""))
    body = {"target": "debug.echo", "schedule": {"type": "interval", "every": 60}, "notify": {"email": ["a@b.c"]}}
    found = client.post("/api/v1/tasks", json=body).json["errors"]
    assert found == {"notify": {"email": ["This Punctual sends no mails: PUNCTUAL_MAIL_FROM is not set."]}}


def test_whom_a_task_names_is_filled_up_replaced_as_a_whole_and_exported(client, register):
    task = register(name="mine", notify={"email": ["me@example.com"]})
    every = ["failed", "late", "missed", "paused"]
    assert task["notify"] == {"on": every, "webhook": None, "email": ["me@example.com"]}
    change = {"notify": {"on": ["failed"], "webhook": "https://example.com/h"}}
    changed = client.patch(f"/api/v1/tasks/{task['id']}", json=change).json
    assert changed["notify"] == {"on": ["failed"], "webhook": "https://example.com/h", "email": []}
    assert json.loads(client.get("/api/v1/tasks/export").text)["notify"] == changed["notify"]
    noted = client.get("/api/v1/audit?action=change").json["items"][0]
    assert noted["before"] == {"notify": task["notify"]}
    assert client.patch(f"/api/v1/tasks/{task['id']}", json={"notify": None}).json["notify"] is None


def test_a_system_task_is_registered_once(create):
    with db.transaction() as session:
        now = db.now(session)
        given = {"target": EMAIL, "schedule": {"type": "now"}, "has_slots": False}
        assert register(session, now, "punctual.email.x", **given) == register(
            session, now, "punctual.email.x", **given
        )
