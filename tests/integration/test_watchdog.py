"""What ends a beat that hangs, and what does not: looked at step by step, then in real processes."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from stores import IN_CI, ROOT

from app import pulse
from beat import node
from beat.leases import Leases
from beat.node import Node
from beat.watchdog import EVERY, HANGS, Watchdog
from drill import links

HUNG = """
import time
from beat import chores, mirror
def hang(*_):
    # in one piece, as another thread writes too
    print("hanging since %r\\n" % time.monotonic(), end="", flush=True)
    time.sleep(60)
{sabotage}
from beat.main import celery_app
celery_app.start(["beat"])
"""

SABOTAGE = {
    "tick": "mirror.Mirror.turn = hang",
    "chores": "chores.Chores.fire_overdue = hang",
    "chores' end": "chores.Chores.turn = lambda *_: exit()",
}


@pytest.fixture
def watchdog(redis_client, tmp_path):
    ends = []
    made = Watchdog(Node(Leases(redis_client, 4), tmp_path / "beat.json"), ends.append)
    made.ends = ends
    made.watch(threading.current_thread())
    return made


def looks(watchdog, seconds):
    """What the watchdog sees within some seconds."""
    for _ in range(round(seconds / EVERY)):
        watchdog.look(EVERY)
    return watchdog.ends


def test_a_thread_that_gives_no_sign_ends_the_process_and_its_stack_is_logged(watchdog, caplog):
    pulse.mark("a long step")
    assert looks(watchdog, pulse.STILL) == []
    assert looks(watchdog, 2 * EVERY)[0] == HANGS
    assert "'a long step'" in caplog.text
    assert "test_a_thread_that_gives_no_sign" in caplog.text


def test_a_thread_that_gives_signs_may_take_as_long_as_it_likes(watchdog):
    for _ in range(5):
        pulse.mark("the same step")
        assert looks(watchdog, pulse.STILL) == []


def test_a_step_that_says_so_may_take_longer(watchdog):
    pulse.mark("a wait", within=8)
    assert looks(watchdog, 8) == []
    assert looks(watchdog, 2 * EVERY)[0] == HANGS


def test_a_thread_counts_from_its_first_sign_on(redis_client):
    waiting = threading.Event()
    thread = threading.Thread(target=waiting.wait)
    thread.start()
    pulse._signs.pop(thread.ident, None)  # of one that had this number before
    watchdog = Watchdog(Node(Leases(redis_client, 4), None), lambda _: pytest.fail("nothing hangs"))
    watchdog.watch(thread)
    for _ in range(100):
        watchdog.look(EVERY)
    waiting.set()
    thread.join()


def test_the_health_file_says_role_buckets_and_the_age_of_the_tick(watchdog, redis_client):
    file = watchdog.node.health_file
    watchdog.node.write_health()
    assert json.loads(file.read_text()).items() >= {"name": node.NAME, "role": "standby", "buckets": []}.items()
    watchdog.node.leases.renew()
    watchdog.node.ticked_at -= 30
    watchdog.node.write_health()
    told = json.loads(file.read_text())
    assert (told["role"], told["buckets"]) == ("leader", [0, 1, 2, 3])
    assert 30 <= told["last_tick_age"] < 40
    assert list(file.parent.iterdir()) == [file]


def test_a_health_file_that_cannot_be_written_is_said_once(redis_client, tmp_path, caplog):
    told = Node(Leases(redis_client, 4), tmp_path / "missing" / "beat.json")
    told.write_health()
    told.write_health()
    assert caplog.text.count("health file cannot be written") == 1


@pytest.fixture
def start(database, tmp_path):
    """Starts a beat as a process; its output lies in a file."""
    started = []

    def call(*argv, **env):
        output = tmp_path / f"{len(started)}.log"
        with output.open("wb") as log:
            process = subprocess.Popen(argv, cwd=ROOT, env=os.environ | env, stdout=log, stderr=log)
        started.append(process)
        process.log = output.read_text
        return process

    yield call
    for process in started:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        print(process.log())  # seen where the test failed


@pytest.mark.parametrize("where", SABOTAGE)
def test_a_beat_that_hangs_ends_within_5_s_and_says_where(start, eventually, where):
    process = start(sys.executable, "-c", HUNG.format(sabotage=SABOTAGE[where]))
    if where != "chores' end":
        said = eventually(lambda: re.search(r"hanging since (\S+)\n", process.log()), within=30)
        assert process.wait(20) == HANGS
        # to a quarter of a second it is looked at above; what is stopped for a while is given that time
        assert 3.5 < time.monotonic() - float(said[1]) <= (15 if IN_CI else 5.5)
        assert "in hang" in process.log()
    assert process.wait(40) == HANGS
    assert process.log().count("hangs in") == 1


@pytest.fixture
def beat(start, database, tmp_path):
    """A beat that reaches its stores over links."""
    made = {
        "DATABASE_URL": links.database(database),
        "REDIS_URL": links.server(os.environ["REDIS_URL"]),
        "BROKER_URL": links.server(os.environ["BROKER_URL"]),
    }
    health = tmp_path / "beat.json"
    env = {name: url for name, (_, url) in made.items()} | {"PUNCTUAL_HEALTH_PATH": str(health)}
    process = start("celery", "-A", "beat.main:celery_app", "beat", **env)
    process.health = lambda: json.loads(health.read_text()) if health.exists() else {}
    process.links = [link for link, _ in made.values()]
    yield process
    for link in process.links:
        link.close()


def leads(beat):
    told = beat.health()
    return told.get("role") == "leader" and told["last_tick_age"] < 2


def test_a_beat_that_is_stopped_for_15_s_goes_on_where_it_was(beat, eventually):
    eventually(lambda: leads(beat), within=30)
    beat.send_signal(signal.SIGSTOP)
    time.sleep(15)
    beat.send_signal(signal.SIGCONT)
    eventually(lambda: beat.health()["last_tick_age"] < 1 and leads(beat))
    time.sleep(2)  # the watchdog has looked several times since
    assert beat.poll() is None
    eventually(lambda: leads(beat))


@pytest.mark.parametrize("fault", ["cut", "silent"])
def test_no_beat_ends_because_its_stores_are_away(beat, eventually, fault):
    eventually(lambda: leads(beat), within=30)
    database, cache, broker = (getattr(link, fault)() for link in beat.links)
    with database, cache, broker:
        time.sleep(20)
        assert beat.poll() is None
        assert beat.health()["role"] == "standby"
    eventually(lambda: leads(beat), within=20)
    assert "hangs in" not in beat.log()
