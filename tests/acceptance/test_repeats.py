"""A web process is killed in the middle of a post, and the same post comes again: one task, whenever the kill came."""

import os
import random
import signal
import threading
import time
import uuid
from datetime import UTC, datetime

import httpx
import pytest
from stack import parse
from stores import poll

KILLS = int(os.environ.get("KILLS", "6"))
"""How often; by hand 200."""

LATEST = 0.02
"""Seconds after the post began in which the kill comes: as long as a post takes."""


def web_processes(stack):
    return stack.nodes["web", 1].container.process.children()


@pytest.mark.timeout(KILLS * 10 + 60)
@pytest.mark.parametrize("stack", ["redis"], indirect=True)
def test_a_post_that_its_process_did_not_survive_makes_one_task(stack):
    draw = random.Random(7)
    cut = survived = 0
    for number in range(KILLS):
        label = {"kill": f"{number}"}
        body = {"target": "debug.echo", "schedule": {"type": "interval", "every": 3600}, "labels": label}
        headers = {"Idempotency-Key": str(uuid.uuid4())}

        def post(body=body, headers=headers):
            try:
                return stack.api.post("/tasks", json=body, headers=headers)
            except httpx.TransportError:
                return None

        poll(lambda: post_works(stack))
        first = []
        sender = threading.Thread(target=lambda first=first, post=post: first.append(post()))
        sender.start()
        time.sleep(draw.uniform(0, LATEST))  # the moment of the kill, not a wait for anything
        killed_at = datetime.now(UTC)
        for process in web_processes(stack):
            process.send_signal(signal.SIGKILL)
        sender.join()
        cut += first[0] is None
        answer = poll(lambda post=post: is_answered(post()), within=20, every=0.1)
        found = stack.api.get("/tasks", params={"label": f"kill:{number}"}).json()["items"]
        assert [task["id"] for task in found] == [answer.json()["id"]]
        if first[0] is not None:
            assert first[0].content == answer.content
        survived += first[0] is None and parse(answer.json()["created_at"]) < killed_at
    print(f"{KILLS} kills, {cut} of them before the answer came, {survived} of these after the task was there")
    assert cut


def post_works(stack):
    try:
        return stack.api.get("/targets").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def is_answered(answer):
    return answer if answer is not None and answer.status_code == httpx.codes.CREATED else None
