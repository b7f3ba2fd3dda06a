"""A task that fails, and is well again, as people hear of it: by a real mail server and a real receiver of webhooks."""

import base64
import json
import re

import httpx
import pytest
import receivers
from standardwebhooks import Webhook
from stores import BROKER, poll

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
TOKEN = "T0KEN-that-nobody-may-read"
PAGES = "https://punctual.example.com"


@pytest.fixture(scope="module")
def box():
    with receivers.serving() as made:
        yield made


@pytest.fixture(scope="module")
def sink():
    with receivers.sink() as made:
        yield made


@pytest.fixture(scope="module")
def stack(make_stack, box, sink):
    """A stack that tells whom its settings name; the receiver is where no webhook of a client may lead."""
    made = make_stack(BROKER)
    made.env |= {
        "PUNCTUAL_HTTP_ALLOW_PRIVATE": "off",
        "PUNCTUAL_WEBHOOK_SECRET": SECRET,
        "PUNCTUAL_NOTIFY_WEBHOOK": f"{sink.url}/{TOKEN}",
        "PUNCTUAL_NOTIFY_EMAIL": "ops@example.com",
        "PUNCTUAL_SMTP_URL": f"smtp://127.0.0.1:{box.port}",
        "PUNCTUAL_MAIL_FROM": "punctual@example.com",
        "PUNCTUAL_PAGE_URL": PAGES,
    }
    made.start_all()
    yield made
    made.stop_all()


def run(stack, task):
    """A run by hand, when it has ended."""
    made = stack.api.post(f"/tasks/{task['id']}/run")
    assert made.status_code == httpx.codes.ACCEPTED, made.text
    ended = stack.api.get(f"/runs/{made.json()['id']}", params={"wait": 30}, timeout=40).json()
    assert ended["finished_at"], ended
    return ended


def notices(stack, target):
    """The runs that told, newest first."""
    [task] = stack.api.get("/tasks", params={"target": target}).json()["items"]
    return stack.api.get("/runs", params={"task_id": task["id"]}).json()["items"]


def test_a_failure_is_told_once_by_mail_and_webhook_and_once_when_it_is_well(stack, task_of, box, sink):
    box.refusals = ["451 4.7.1 Greylisted, come again"]
    hourly = {"type": "interval", "every": 3600}
    task = task_of(name="nightly-report", target="debug.fail", schedule=hourly)
    failed = run(stack, task)
    assert failed["state"] == "failed"
    run(stack, task)
    poll(lambda: box.mails, within=30, every=0.2)
    [incident] = stack.api.get("/incidents", params={"open": 1}).json()["items"]
    assert (incident["task_name"], incident["kind"], incident["count"]) == ("nightly-report", "failed", 2)
    assert stack.api.patch(f"/tasks/{task['id']}", json={"kwargs": {"times": 0}}).is_success
    assert run(stack, task)["state"] == "succeeded"
    poll(lambda: len(box.mails) == len(sink.posts) == 2, within=40, every=0.2)

    [(to, opened), (_, closed)] = box.mails
    assert to == ["ops@example.com"]
    subjects = ["[Punctual] nightly-report failed", "[Punctual] nightly-report is well again"]
    assert [opened["Subject"], closed["Subject"]] == subjects
    assert "RuntimeError: attempt 1 fails, as asked" in opened.get_content()
    assert f"{PAGES}/runs/{failed['id']}" in opened.get_content()
    assert closed["References"] == opened["Message-ID"]

    bodies = [Webhook(SECRET).verify(body, dict(headers)) for _, headers, body in sink.posts]
    assert [body["type"] for body in bodies] == ["incident.opened", "incident.closed"]
    assert {incident["id"] for body in bodies for incident in body["data"]["incidents"]} == {incident["id"]}
    assert [path for path, _, _ in sink.posts] == [f"/{TOKEN}"] * 2

    told, first = notices(stack, "punctual.email")
    tried = stack.api.get(f"/runs/{first['id']}").json()["attempts"]
    assert [attempt["outcome"] for attempt in tried] == ["failed", "succeeded"]
    assert "451 4.7.1 Greylisted" in tried[0]["error"]["message"]
    posted = notices(stack, "punctual.webhook")
    assert {each["state"] for each in [told, first, *posted]} == {"succeeded"}
    assert {headers["webhook-id"] for _, headers, _ in sink.posts} == {each["id"] for each in posted}
    assert TOKEN not in json.dumps([stack.api.get(f"/runs/{each['id']}").json() for each in posted])
    for name, number in stack.nodes:
        written = stack.tail(name, number, lines=100_000)
        assert written
        assert TOKEN not in written, name
        assert not re.search(r"permission denied|Traceback", written), written


def test_a_client_steers_no_notification_and_sends_none(stack):
    [task] = stack.api.get("/tasks", params={"target": "punctual.email"}).json()["items"]
    address = f"/tasks/{task['id']}"
    calls = [
        stack.api.post(f"{address}/run", json={"kwargs": {"to": "everybody@example.com"}}),
        stack.api.patch(address, json={"kwargs": {}}),
        stack.api.delete(address),
    ]
    assert {answer.status_code for answer in calls} == {httpx.codes.FORBIDDEN}
    mine = {"target": "punctual.email", "schedule": {"type": "now"}, "kwargs": {"to": "everybody@example.com"}}
    assert stack.api.post("/tasks", json=mine).status_code == httpx.codes.UNPROCESSABLE_ENTITY
