"""The main job on the real stack: register, ring, run, record, read."""

import itertools
import time
from datetime import timedelta

import httpx
from stack import at, parse
from stores import poll

KEPT = {"id", "task_id", "task_name", "target", "trigger", "scheduled_for", "state", "attempt", "worker", "result"}


def slots(runs):
    return [parse(run["scheduled_for"]) for run in runs]


def test_a_one_time_task_runs_at_its_time_and_its_run_can_be_read(stack, task_of):
    due = at(2)
    task = task_of(name="once", kwargs={"n": 1}, schedule={"type": "once", "at": due})
    [run] = stack.ended(task)
    read = stack.api.get(f"/runs/{run['id']}").json()
    assert read.keys() >= KEPT
    assert (read["state"], read["result"]) == ("succeeded", {"args": [], "kwargs": {"n": 1}})
    assert abs((parse(read["scheduled_for"]) - parse(due)).total_seconds()) < 0.001
    assert 0 <= read["lateness_ms"] < 10_000
    assert [attempt["outcome"] for attempt in read["attempts"]] == ["succeeded"]
    order = ["scheduled_for", "fired_at", "started_at", "finished_at"]
    stamps = [parse(read[name]) for name in order]
    assert stamps == sorted(stamps)
    assert stack.api.get(f"/tasks/{task['id']}").json()["state"] == "completed"


def test_a_task_for_now_runs_now(stack, task_of):
    [run] = stack.ended(task_of(schedule={"type": "now"}))
    assert run["state"] == "succeeded"


def test_a_one_time_task_in_the_past_runs_at_once(stack, task_of):
    [run] = stack.ended(task_of(schedule={"type": "once", "at": at(-3600)}))
    assert run["state"] == "succeeded"


def test_an_interval_runs_on_each_of_its_slots(stack, task_of):
    task = task_of(schedule={"type": "interval", "every": 1}, max_runs=4)
    found = slots(stack.ended(task, 4))
    assert [(b - a).total_seconds() for a, b in itertools.pairwise(found)] == [1.0] * 3


def test_a_cron_task_runs_on_the_minute(stack, task_of):
    task = task_of(schedule={"type": "cron", "expression": "* * * * *", "timezone": "Europe/Paris"}, max_runs=1)
    [run] = stack.ended(task, within=75)
    slot = parse(run["scheduled_for"])
    assert (slot.second, slot.microsecond) == (0, 0)
    assert run["lateness_ms"] < 10_000


def test_a_rule_runs_on_its_occurrences(stack, task_of):
    task = task_of(schedule={"type": "rrule", "rule": "FREQ=SECONDLY;INTERVAL=2;COUNT=3", "starts": at(6)})
    found = slots(stack.ended(task, 3, within=30))
    assert [(b - a).total_seconds() for a, b in itertools.pairwise(found)] == [2.0] * 2


def test_a_run_on_demand_has_its_own_arguments(stack, task_of):
    task = task_of(kwargs={"n": 1}, schedule={"type": "interval", "every": 3600})
    answer = stack.api.post(f"/tasks/{task['id']}/run", json={"kwargs": {"n": 2}})
    assert answer.status_code == httpx.codes.ACCEPTED
    [run] = stack.ended(task)
    assert (run["trigger"], run["result"]["kwargs"]) == ("manual", {"n": 2})


def test_a_failing_run_is_tried_again_as_its_policy_says(stack, task_of):
    retry = {"max_attempts": 3, "backoff": 0.2, "jitter": False}
    task = task_of(target="debug.fail", kwargs={"times": 2}, schedule={"type": "now"}, retry=retry)
    [run] = stack.ended(task)
    read = stack.api.get(f"/runs/{run['id']}").json()
    assert (read["state"], read["attempt"]) == ("succeeded", 3)
    assert [attempt["outcome"] for attempt in read["attempts"]] == ["failed", "failed", "succeeded"]
    assert read["attempts"][0]["error"]["type"] == "RuntimeError"
    assert "Traceback" in read["attempts"][0]["error"]["traceback"]


def test_a_run_that_outlives_its_timeout_fails_with_that_reason(stack, task_of):
    task = task_of(target="debug.sleep", kwargs={"seconds": 60}, schedule={"type": "now"}, timeout=1)
    [run] = stack.ended(task)
    assert (run["state"], run["reason"]) == ("failed", "timeout")


def test_an_http_request_is_made_and_its_answer_kept(stack, task_of):
    url = f"http://127.0.0.1:{stack.port}/healthz"
    [run] = stack.ended(task_of(target="http.request", kwargs={"url": url}, schedule={"type": "now"}))
    assert (run["state"], run["result"]["status"]) == ("succeeded", 200)


def test_a_waiting_run_that_was_cancelled_never_starts(stack, task_of):
    retry = {"max_attempts": 2, "backoff": 3, "jitter": False}
    task = task_of(target="debug.fail", schedule={"type": "now"}, retry=retry)
    run = poll(lambda: next((r for r in stack.runs(task) if r["state"] == "retrying"), None))
    assert stack.api.post(f"/runs/{run['id']}/cancel").status_code == httpx.codes.OK
    time.sleep(4)  # past the retry's time: nothing is to happen, so there is nothing to poll for
    [run] = stack.runs(task)
    assert (run["state"], run["reason"], run["attempt"]) == ("cancelled", "by_user", 1)


def test_a_task_changed_before_its_slot_acts_as_changed(stack, task_of):
    task = task_of(kwargs={"n": 1}, schedule={"type": "once", "at": at(8)})
    answer = stack.api.patch(f"/tasks/{task['id']}", json={"kwargs": {"n": 2}})
    assert answer.status_code == httpx.codes.OK
    [run] = stack.ended(task, within=30)
    assert run["result"]["kwargs"] == {"n": 2}


def test_a_task_moved_before_its_slot_runs_at_the_new_one_only(stack, task_of):
    task = task_of(schedule={"type": "once", "at": at(8)})
    later = at(12)
    stack.api.patch(f"/tasks/{task['id']}", json={"schedule": {"type": "once", "at": later}})
    [run] = stack.ended(task, within=30)
    assert abs((parse(run["scheduled_for"]) - parse(later)).total_seconds()) < 0.001


def test_a_task_paused_or_deleted_before_its_slot_does_not_run(stack, task_of):
    paused, deleted, witness = (task_of(schedule={"type": "once", "at": at(10)}) for _ in range(3))
    assert stack.api.post(f"/tasks/{paused['id']}/pause", json={"note": "hold on"}).status_code == httpx.codes.OK
    assert stack.api.delete(f"/tasks/{deleted['id']}").status_code == httpx.codes.NO_CONTENT
    stack.ended(witness, within=30)
    assert stack.runs(paused) == []
    assert stack.api.get("/runs", params={"task_id": deleted["id"]}).json()["items"] == []


def test_a_resumed_task_goes_on_from_now_or_from_its_last_slot(stack, task_of):
    every = {"schedule": {"type": "interval", "every": 1}, "overlap": "allow", "catchup": {"policy": "all"}}
    tasks = {since: task_of(**every) for since in ("now", "last")}
    for since, task in tasks.items():
        stack.api.post(f"/tasks/{task['id']}/pause", json={"note": since})
    time.sleep(3.5)  # the pause itself
    resumed = parse(at(0))
    for since, task in tasks.items():
        assert stack.api.post(f"/tasks/{task['id']}/resume", json={"from": since}).status_code == httpx.codes.OK
    for task in tasks.values():
        poll(lambda task=task: slots(stack.runs(task))[-1:] > [resumed], within=10)
    [gone] = [run for run in stack.runs(tasks["now"]) if run["state"] == "skipped"]
    assert gone["reason"] == "paused"
    assert gone["missed"] >= 2
    assert parse(gone["scheduled_for"]) > resumed - timedelta(seconds=1)  # or after it, where the server was slow
    before = [run for run in stack.runs(tasks["last"]) if parse(run["scheduled_for"]) < resumed]
    assert sum(run["state"] != "skipped" for run in before) >= 3
