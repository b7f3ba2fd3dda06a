"""What a beat tells of itself while it lives: to Celery's remote control, in PostgreSQL, and in its health file."""

import json
import os
import subprocess

import pytest
from sqlalchemy import select
from stores import ROOT

from app import db
from app.broker import celery_app
from app.models import Node


@pytest.fixture
def beats(database, redis_client, tmp_path):
    """Two beats that share one bucket: one leads it, the other stands by."""
    started = {}
    for number in range(2):
        path = tmp_path / f"beat{number}.json"
        env = os.environ | {"PUNCTUAL_BUCKETS": "1", "PUNCTUAL_HEALTH_PATH": str(path)}
        with (tmp_path / f"{number}.log").open("wb") as log:
            command = ["celery", "-A", "beat.main:celery_app", "beat"]
            started[path] = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    yield started
    for process in started.values():
        process.kill()
        process.wait()


def nodes():
    with db.transaction() as session:
        return {node.name: node.details for node in session.scalars(select(Node))}


def told(paths):
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def test_each_beat_answers_and_is_seen_leader_or_not_until_it_stops(beats, eventually):
    def roles():
        return sorted(details["role"] for details in nodes().values()) == ["leader", "standby"]

    eventually(roles, within=40)
    names = nodes().keys()
    eventually(lambda: sorted(file["role"] for file in told(beats)) == ["leader", "standby"], within=20)
    assert {file["name"] for file in told(beats)} == names
    answers = eventually(
        lambda: (got := celery_app.control.inspect(timeout=3).ping()) and names <= got.keys() and got, within=30
    )
    assert all(answers[name] == {"ok": "pong"} for name in names)
    leader = next(path for path in beats if json.loads(path.read_text())["role"] == "leader")
    [other] = beats.keys() - {leader}
    gone = json.loads(leader.read_text())["name"]
    beats[leader].terminate()
    assert beats[leader].wait(20) == 0
    assert not leader.exists()
    assert gone not in nodes()
    eventually(lambda: json.loads(other.read_text())["role"] == "leader", within=20)
