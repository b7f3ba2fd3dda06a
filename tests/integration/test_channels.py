"""The targets that tell of incidents, against a real mail server and a real receiver on this machine."""

import base64
import json
import ssl
import subprocess

import pytest
import receivers
from sqlalchemy import update
from standardwebhooks import Webhook

from app import db, notices, tasks
from app.models import Task
from workers.targets import mail, webhook
from workers.targets.mail import email
from workers.verdicts import GiveUp

pytestmark = pytest.mark.usefixtures("database")

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
RUN = "7a6e0a52-6c4f-4d9e-8f0a-0a3a0c8b2f11"
NOTICE = {
    "id": "7e57",
    "audience": notices.DEFAULT,
    "type": "incident.opened",
    "at": "2026-11-28T03:00:00.000Z",
    "tasks": 1,
    "total": 1,
    "kinds": {"failed": 1},
    "incidents": [
        {
            "id": "1",
            "kind": "failed",
            "task_id": "00000000-0000-0000-0000-000000000001",
            "task_name": "nightly-report",
            "run_id": "2",
            "scheduled_for": "2026-11-28T02:59:00.000Z",
            "opened_at": "2026-11-28T03:00:00.001Z",
            "closed_at": None,
            "count": 1,
            "reopened": 0,
            "why": None,
        }
    ],
}
TO = "ops@example.com"


@pytest.fixture
def use(configure):
    """Has mails go to this server."""

    def call(url):
        configure(PUNCTUAL_SMTP_URL=url, PUNCTUAL_MAIL_FROM="punctual@example.com")

    return call


@pytest.fixture
def box(use):
    with receivers.serving() as made:
        use(f"smtp://127.0.0.1:{made.port}")
        yield made


@pytest.fixture
def sink(configure):
    with receivers.sink() as made:
        configure(PUNCTUAL_NOTIFY_WEBHOOK=f"{made.url}/T0KEN", PUNCTUAL_WEBHOOK_SECRET=SECRET)
        yield made


@pytest.fixture
def tls(tmp_path, monkeypatch):
    """A certificate of this machine's own making, which is trusted."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate, *names], capture_output=True, check=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def post(notice=NOTICE):
    """Calls the target as a run does."""
    webhook.webhook.push_request(id=RUN)
    try:
        return webhook.webhook.run(notice)
    finally:
        webhook.webhook.pop_request()


def test_a_mail_arrives_and_says_by_which_id(box):
    assert email.run(NOTICE, TO) == {"sent": True, "message_id": "<7e57@example.com>"}
    [(to, mail_)] = box.mails
    assert to == [TO]
    assert mail_["Subject"] == "[Punctual] nightly-report failed"
    assert "a run failed for good" in mail_.get_content()


@pytest.mark.parametrize(("answer", "raised"), [("451 4.7.1 later", mail.NotTaken), ("550 5.1.1 nobody", GiveUp)])
def test_a_refusal_for_now_is_tried_again_and_one_for_good_is_not(box, answer, raised):
    box.refusals = [answer]
    with pytest.raises(raised, match=answer):
        email.run(NOTICE, TO)
    email.run(NOTICE, TO)
    assert len(box.mails) == 1


def test_a_server_that_is_away_is_tried_again(use):
    use("smtp://127.0.0.1:1")
    with pytest.raises(mail.NotTaken, match=r"127\.0\.0\.1 port 1: ConnectionRefusedError"):
        email.run(NOTICE, TO)


@pytest.mark.parametrize("scheme", ["smtps", "smtp+starttls"])
def test_a_password_goes_over_a_link_whose_certificate_is_trusted(use, tls, scheme, monkeypatch):
    with receivers.serving(tls, at_once=scheme == "smtps") as box:
        use(f"{scheme}://user:s3cret@localhost:{box.port}")
        email.run(NOTICE, TO)
        assert (box.logins, len(box.mails)) == ([(b"user", b"s3cret")], 1)
        use(f"{scheme}://user:wr0ng@localhost:{box.port}")
        with pytest.raises(mail.NotTaken, match="535") as refused:
            email.run(NOTICE, TO)
        assert "wr0ng" not in str(refused.value)
        monkeypatch.delenv("SSL_CERT_FILE")
        told = len(box.logins)
        with pytest.raises(mail.NotTaken, match="CERTIFICATE_VERIFY_FAILED"):
            email.run(NOTICE, TO)
        assert len(box.logins) == told  # nobody was told the password


def test_a_webhook_is_signed_and_its_address_of_the_settings_may_be_a_private_one(sink):
    assert post() == {"sent": True, "status": 204}
    [(path, headers, body)] = sink.posts
    assert (path, headers["webhook-id"], headers["idempotency-key"]) == ("/T0KEN", RUN, RUN)
    assert Webhook(SECRET).verify(body, dict(headers))["type"] == "incident.opened"


@pytest.mark.parametrize(("status", "raised"), [(500, webhook.NotTaken), (404, webhook.NotTaken), (410, GiveUp)])
def test_a_receiver_that_fails_is_tried_again_and_one_that_is_gone_is_not(sink, status, raised):
    sink.statuses = [status]
    with pytest.raises(raised, match=str(status)) as refused:
        post()
    assert "T0KEN" not in str(refused.value)


def test_a_receiver_that_is_away_is_tried_again_and_its_address_is_not_told(configure):
    configure(PUNCTUAL_NOTIFY_WEBHOOK="http://127.0.0.1:1/T0KEN")
    with pytest.raises(webhook.NotTaken, match="port 1") as refused:
        post()
    assert "T0KEN" not in str(refused.value)


def test_a_tasks_own_webhook_is_found_by_the_task_and_reaches_no_private_address(sink, fields, configure):
    own = {"on": ["failed"], "webhook": f"{sink.url}/0THER", "email": []}
    with db.transaction() as session:
        task = tasks.create(session, db.now(session), fields(notify=own))
    notice = json.loads(json.dumps(NOTICE)) | {"audience": notices.fingerprint(own)}
    notice["incidents"][0]["task_id"] = str(task.id)
    with pytest.raises(GiveUp, match="not a public address"):
        post(notice)
    configure(PUNCTUAL_HTTP_ALLOW_PRIVATE="on")
    assert post(notice)["sent"]
    assert [path for path, _, _ in sink.posts] == ["/0THER"]
    with db.transaction() as session:
        session.execute(update(Task).values(notify=None))
    assert post(notice) == {"sent": False, "why": "None of its tasks names this webhook any more."}


@pytest.mark.parametrize("target", [email, webhook.webhook])
def test_a_message_that_is_no_runs_sends_nothing_to_anybody(box, sink, target):
    result = target.apply(args=[NOTICE, TO][: 2 if target is email else 1])
    with pytest.raises(GiveUp, match="nobody else calls it"):
        result.get()
    assert (box.mails, sink.posts) == ([], [])
