"""Flower beside the stack: behind its password, changing nothing, showing runs by their own names without secrets."""

import re

import httpx
import pytest
from stores import ON_ONE_BROKER, poll

from deploy.processes import free_port

pytestmark = ON_ONE_BROKER
LOGIN = ("watcher", "a password for tests")
SECRET = "s3cr3t-that-nobody-may-read"


@pytest.fixture
def flower(stack):
    port = free_port()
    stack.start("flower", FLOWER_PORT=str(port), FLOWER_BASIC_AUTH=":".join(LOGIN))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=LOGIN, timeout=10) as client:
        poll(lambda: answers(client), within=30, every=0.2)
        yield client
    stack.stop("flower")


def answers(client):
    try:
        return client.get("/api/workers", params={"refresh": 1}).json()
    except (httpx.TransportError, ValueError):
        return None


def test_flower_without_a_password_does_not_start(stack):
    stack.start("flower", number=2, FLOWER_PORT=str(free_port()), FLOWER_BASIC_AUTH="")
    node = stack.nodes["flower", 2]
    assert node.container.wait(30) == 1
    assert "FLOWER_BASIC_AUTH: is required by flower" in stack.tail("flower", 2)


def test_flower_shows_workers_and_runs_by_their_names_without_secrets_and_changes_nothing(stack, flower, task_of):
    with httpx.Client(base_url=flower.base_url) as stranger:
        for address in ("/api/workers", "/api/tasks", "/workers", "/tasks"):
            assert stranger.get(address).status_code == httpx.codes.UNAUTHORIZED
    [worker] = flower.get("/api/workers").json()
    secrets = {"password": SECRET, "url": f"https://u:{SECRET}@example.com/?token={SECRET}", "plain": "to be seen"}
    # Flower asks the workers only every few seconds to tell of their runs
    poll(lambda: "Events of group {task} enabled" in stack.tail("worker", lines=1000), within=30, every=0.2)
    [run] = stack.ended(task_of(kwargs=secrets, schedule={"type": "now"}))
    assert run["result"]["kwargs"]["password"] == SECRET  # the record itself has it
    told = poll(lambda: seen(flower, run), every=0.1)
    assert (told.json()["name"], told.json()["uuid"]) == ("debug.echo", run["id"])
    assert SECRET not in told.text
    assert "to be seen" in told.json()["kwargs"]
    for action in (f"worker/shutdown/{worker}", f"worker/pool/grow/{worker}", "task/async-apply/debug.echo"):
        answer = flower.post(f"/api/{action}", json={"args": []})
        assert answer.status_code == httpx.codes.FORBIDDEN, answer.text
    calling = {
        "url": f"http://u:{SECRET}@127.0.0.1:1/?token={SECRET}",
        "headers": {"Authorization": f"Bearer {SECRET}"},
    }
    [failed] = stack.ended(task_of(target="http.request", kwargs=calling, schedule={"type": "now"}))
    assert failed["state"] == "failed"
    sleeping = task_of(target="debug.sleep", kwargs={"seconds": 15}, schedule={"type": "now"}, labels={"token": SECRET})
    poll(lambda: [run for run in stack.runs(sleeping) if run["state"] == "running"])
    active = stack.control("active")
    assert [each["name"] for each in active] == ["debug.sleep"]
    assert re.fullmatch(r"\{'seconds': 15(\.0)?\}", active[0]["kwargs"])
    assert stack.ended(sleeping, within=40)
    for name, number in stack.nodes:
        written = stack.tail(name, number, lines=100_000)
        assert written or name == "flower"
        assert SECRET not in written, name


def seen(flower, run):
    """What Flower knows of a run once it has seen its end."""
    told = flower.get(f"/api/task/info/{run['id']}")
    return told if told.status_code == httpx.codes.OK and told.json()["state"] == "SUCCESS" else None
