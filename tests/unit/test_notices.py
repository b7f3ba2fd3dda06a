"""What is told of incidents, to whom, when, and in which words."""

import json
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.policy import default
from types import SimpleNamespace
from uuid import UUID

import pytest

from app import notices
from app.notices import Said
from app.settings import Settings
from app.states import Told
from workers import letters
from workers.targets import mail

NOW = datetime(2026, 11, 28, 3, 0, tzinfo=UTC)
GIVEN = {"DATABASE_URL": "postgresql+psycopg://d", "REDIS_URL": "redis://r", "BROKER_URL": "redis://b"}
PAGES = "https://punctual.example.com"
SECRET = "https://hooks.example.com/T0KEN"


def settings(**given):
    return Settings.read(GIVEN | given)


def row(n=1, kind="failed", **changed):
    given = {
        "id": UUID(int=n),
        "task_id": UUID(int=n),
        "task_name": f"task-{n}",
        "kind": kind,
        "run_id": UUID(int=100 + n),
        "scheduled_for": NOW - timedelta(minutes=1),
        "note": None,
        "count": 1,
        "reopened": 0,
        "opened_at": NOW + timedelta(milliseconds=n),
        "closed_at": None,
        "told_by": None,
    }
    return SimpleNamespace(**given | changed)


def compose(*rows, told=Told.OPENED, errors=None):
    notice = notices.compose("default", told, "7e57", NOW, rows, errors or {})
    return json.loads(json.dumps(notice))  # as it comes out of a run


@pytest.mark.parametrize(
    ("told", "is_open", "wanted", "step"),
    [
        (None, True, True, "opened"),
        (None, False, True, "opened"),  # over before anybody heard of it: its end is the next step
        (None, True, False, "nothing"),
        ("opened", True, True, None),
        ("opened", False, True, "closed"),
        ("opened", False, False, "closed"),  # whoever was told hears the end
        ("closed", False, True, None),
        ("closed", True, True, "opened"),
        ("nothing", True, True, None),
        ("nothing", False, True, None),
    ],
)
def test_each_step_of_an_incident_is_told_once(told, is_open, wanted, step):
    assert notices.step(told, is_open=is_open, wanted=wanted) == step


def test_a_task_that_flaps_for_hours_is_told_of_four_times():
    """As `incidents` has it: from the second time on it is over only when it stayed well."""
    told, said = None, []
    for is_open in [True, False, *[True] * 100, False]:
        step = notices.step(told, is_open=is_open, wanted=True)
        told, said = step or told, [*said, step] if step else said
    assert said == ["opened", "closed", "opened", "closed"]


def test_what_opens_within_seconds_goes_together_and_an_hour_has_a_dozen_notices_at_most():
    assert not notices.is_due(NOW, NOW - timedelta(seconds=4), Said())
    assert notices.is_due(NOW, NOW - timedelta(seconds=5), Said())
    given = []
    for second in range(3600):  # something opens each second, for an hour
        now = NOW + timedelta(seconds=second)
        lately = [at for at in given if at > now - notices.REMEMBERED]
        if notices.is_due(now, max([NOW, *given]), Said(count=len(lately), last_at=max(lately, default=None))):
            given.append(now)
    assert 10 <= len(given) <= 12


def test_whom_a_task_names_is_told_else_whom_the_settings_name():
    config = settings(
        PUNCTUAL_NOTIFY_WEBHOOK=SECRET,
        PUNCTUAL_NOTIFY_EMAIL="ops@example.com",
        PUNCTUAL_NOTIFY_ON="failed,paused",
        PUNCTUAL_SMTP_URL="smtp://mail",
        PUNCTUAL_MAIL_FROM="punctual@example.com",
    )
    usual = notices.audience(None, config)
    assert (usual.key, usual.webhook, usual.email) == ("default", True, ("ops@example.com",))
    fewer = {"on": ["late"], "webhook": None, "email": []}
    assert notices.audience(fewer, config) == usual
    own = {"on": ["late"], "webhook": SECRET, "email": []}
    found = notices.audience(own, config)
    assert (found.webhook, found.email) == (True, ())
    assert found.key == notices.fingerprint(own) != notices.fingerprint(own | {"webhook": SECRET + "2"})
    assert "T0KEN" not in found.key
    assert [notices.is_wanted(None, kind, config) for kind in ("failed", "late")] == [True, False]
    assert [notices.is_wanted(fewer, kind, config) for kind in ("failed", "late")] == [False, True]
    assert not notices.audience(None, settings()).is_anybody


def test_a_thousand_incidents_are_one_notice_that_names_twenty():
    rows = [row(n, kind) for n in range(1204) for kind in (("late", "missed") if n < 800 else ("late",))]
    notice = compose(*rows)
    assert (notice["tasks"], notice["total"], notice["kinds"]) == (1204, 2004, {"late": 1204, "missed": 800})
    assert len(notice["incidents"]) == 20
    assert len(json.dumps(notice)) < 16_000
    assert letters.subject(notice) == "[Punctual] 1,204 tasks: 1,204 late, 800 missed"
    text = letters.text(notice, PAGES)
    assert "task-0: " in text
    assert "And 1,984 more." in text
    assert letters.subject(compose(*rows, told=Told.CLOSED)) == "[Punctual] 1,204 tasks are well again"


@pytest.mark.parametrize(
    ("incident", "told", "subject"),
    [
        (row(), Told.OPENED, "task-1 failed"),
        (row(reopened=2), Told.OPENED, "task-1 failed again"),
        (row(kind="late"), Told.OPENED, "task-1 is late"),
        (row(kind="missed"), Told.OPENED, "task-1 missed a slot"),
        (row(kind="missed", count=1204), Told.OPENED, "task-1 missed 1,204 slots"),
        (row(kind="paused"), Told.OPENED, "task-1 is paused"),
        (row(closed_at=NOW), Told.CLOSED, "task-1 is well again"),
    ],
)
def test_a_subject_says_what_is_the_matter(incident, told, subject):
    assert letters.subject(compose(incident, told=told)) == f"[Punctual] {subject}"


def sent(notice, to="ops@example.com"):
    return message_from_bytes(mail.compose(notice, "punctual@example.com", to, PAGES).as_bytes(), policy=default)


def test_a_mail_says_why_and_where_to_look_without_secrets():
    error = {"type": "UnexpectedStatus", "message": "POST https://u:pw@example.com/?token=s3cret answered 500"}
    mail = sent(compose(row(), errors={UUID(int=101): error}))
    text = mail.get_content()
    assert "UnexpectedStatus: POST https://***@example.com/?token=*** answered 500" in text
    assert f"{PAGES}/runs/{UUID(int=101)}" in text
    assert f"{PAGES}/tasks/{UUID(int=1)}" in text
    assert (mail["To"], mail["From"]) == ("ops@example.com", "Punctual <punctual@example.com>")
    assert (mail["Message-ID"], mail["Auto-Submitted"]) == ("<7e57@example.com>", "auto-generated")


def test_the_mail_that_says_that_it_is_over_belongs_to_the_one_that_said_that_it_began():
    mail = sent(compose(row(closed_at=NOW, told_by=UUID(int=9)), told=Told.CLOSED))
    assert mail["References"] == mail["In-Reply-To"] == f"<{UUID(int=9)}@example.com>"


@pytest.mark.parametrize(
    "name",
    [
        "x\r\nBcc: everybody@example.com",
        "x\n\nbody",
        "x\rTo: a@b",
        "x\u2028Bcc: a@b",
        "x\u202egnihtyna",
        "é" * 200,
        "\x1b]0;x\x07",
    ],
)
def test_the_name_of_a_task_breaks_no_header(name):
    mail = sent(compose(row(task_name=name)))
    assert set(mail.keys()) <= {
        "From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "X-Auto-Response-Suppress", "Content-Type",
        "Content-Transfer-Encoding", "MIME-Version",
    }  # fmt: skip
    assert mail["Subject"].isprintable()
    assert len(mail["Subject"]) < 160
    assert all(line.isprintable() for line in mail.get_content().splitlines())


def test_the_body_of_a_webhook_is_as_it_is_documented():
    body = letters.body(compose(row()), "")
    assert body == {
        "type": "incident.opened",
        "timestamp": "2026-11-28T03:00:00.000Z",
        "data": {
            "id": "7e57",
            "tasks": 1,
            "total": 1,
            "kinds": {"failed": 1},
            "incidents": [
                {
                    "id": str(UUID(int=1)),
                    "kind": "failed",
                    "task_id": str(UUID(int=1)),
                    "task_name": "task-1",
                    "run_id": str(UUID(int=101)),
                    "scheduled_for": "2026-11-28T02:59:00.000Z",
                    "opened_at": "2026-11-28T03:00:00.001Z",
                    "closed_at": None,
                    "count": 1,
                    "reopened": 0,
                    "why": None,
                    "task_url": None,
                    "run_url": None,
                }
            ],
        },
    }
