"""What Prometheus reads off each process of a stack while runs go through."""

import re

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from stores import ON_ONE_BROKER, ROOT, poll

from app import exporter

pytestmark = ON_ONE_BROKER


def read(port):
    """What a process shows: by the sample's name, its labels and value; None where nobody listens."""
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10)
    except httpx.TransportError:
        return None
    assert answer.status_code == httpx.codes.OK
    assert answer.headers["Content-Type"] == exporter.CONTENT_TYPE
    found = {}
    for family in text_string_to_metric_families(answer.text):
        found.setdefault(family.name, [])  # one without a sample right now is shown all the same
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def total(shown, name, **labels):
    """The sum of the samples that have these labels."""
    return sum(value for has, value in shown.get(name, ()) if labels.items() <= has.items())


def processes(stack):
    """What each beat and worker shows, by its kind."""
    found = {"beat": [], "worker": []}
    for port in range(stack.metrics_port, stack.metrics_port + exporter.PORTS):
        shown = read(port)
        if shown is not None:
            [(labels, _)] = shown["punctual_process_info"]
            found[labels["kind"]].append(shown)
    return found


@pytest.fixture
def shown(stack):
    """What all show, once both beats and the worker do."""

    def all_there():
        found = processes(stack)
        return found if len(found["beat"]) == 2 and found["worker"] else None

    return poll(all_there, within=20)


def test_each_process_counts_what_it_does(stack, shown, task_of):
    before = shown["worker"][0]
    stack.ended(task_of(schedule={"type": "now"}))
    failing = {"target": "debug.fail", "kwargs": {"times": 1}, "retry": {"max_attempts": 2, "backoff": 0}}
    stack.ended(task_of(schedule={"type": "now"}, **failing))
    [worker] = processes(stack)["worker"]

    def grown(name, **labels):
        return total(worker, name, **labels) - total(before, name, **labels)

    assert grown("punctual_runs_total", state="succeeded") >= 2
    assert grown("punctual_runs_total", state="retrying", reason="error") == 1
    assert grown("punctual_attempt_duration_seconds_count", target="debug.fail") == 2
    assert grown("punctual_run_lateness_seconds_bucket", queue="default", le="10.0") >= 2
    assert total(worker, "punctual_worker_processes") >= 2
    beats = processes(stack)["beat"]
    assert sum(total(beat, "punctual_beat_buckets") for beat in beats) == 16
    assert sum(total(beat, "punctual_messages_total", answer="confirmed") for beat in beats) >= 3
    assert sum(total(beat, "punctual_runs_fired_total", trigger="schedule") for beat in beats) >= 2
    for beat in beats:
        assert total(beat, "punctual_tick_seconds_count") > 0
        assert total(beat, "punctual_chore_seconds_count", chore="announce") >= 1
        assert total(beat, "punctual_chore_failures_total") == 0
    for each in (*beats, worker, read(stack.port)):
        assert total(each, "process_resident_memory_bytes") > 20e6
        assert total(each, "process_open_fds") > 5
        assert total(each, "process_cpu_seconds_total") > 0.1


def test_the_processes_of_one_web_count_together(stack, shown):
    def served():
        return total(read(stack.port), "punctual_http_request_seconds_count", endpoint="health.process", status="200")

    before = served()
    for _ in range(30):  # each on a connection of its own: both processes answer some
        httpx.get(f"http://127.0.0.1:{stack.port}/healthz")
    assert [served() - before for _ in range(10)] == [30] * 10


def test_a_child_that_is_killed_leaves_what_it_has_counted(stack, shown, task_of):
    stack.ended(task_of(schedule={"type": "now"}))
    before = processes(stack)["worker"][0]
    victims = poll(stack.nodes["worker", 1].container.process.children, within=20)
    for victim in victims:
        victim.kill()
    poll(lambda: not any(victim.is_running() for victim in victims), within=20)
    stack.ended(task_of(schedule={"type": "now"}))
    after = processes(stack)["worker"][0]
    assert total(after, "punctual_runs_total") > total(before, "punctual_runs_total")


def test_any_web_tells_how_the_whole_stands(stack, shown):
    web = read(stack.port)
    assert total(web, "punctual_up") == 1
    assert [total(web, "punctual_nodes", kind=kind) for kind in ("beat", "worker")] == [2, 1]
    assert [value for _, value in web["punctual_bucket_holders"]] == [1] * 16
    assert total(web, "punctual_queue_processes", queue="default") >= 2
    assert total(web, "punctual_database_connections") >= 3
    assert total(web, "punctual_tasks_overdue") == 0
    assert {labels["window"] for labels, _ in web["punctual_promise_broken_ratio"]} == {"5m", "30m", "1h", "6h", "3d"}


def test_a_canary_sings_on_each_queue(stack):
    deep = poll(lambda: is_deeply_ready(stack), within=60, every=0.5)
    assert deep["canaries"].keys() == {"default", "punctual"}

    def sung():
        shown = read(stack.port)
        return shown if len(shown["punctual_canary_seconds"]) == 2 else None

    web = poll(sung, within=60, every=0.5)
    for queue in ("default", "punctual"):
        assert total(web, "punctual_canary_age_seconds", queue=queue) < 45
        assert 0 < total(web, "punctual_canary_seconds", queue=queue) < 10


def is_deeply_ready(stack):
    answer = httpx.get(f"http://127.0.0.1:{stack.port}/readyz", params={"deep": 1}, timeout=10)
    return answer.json() if answer.status_code == httpx.codes.OK else None


def test_what_alerts_and_dashboards_ask_for_is_what_the_processes_show(stack, shown):
    everybody = [*shown["beat"], *shown["worker"], read(stack.port)]
    there = {name for each in everybody for name in each} | {"up"}  # which is Prometheus's own
    asked = {}
    for file in ("rules.yml", "grafana/punctual.json"):
        text = (ROOT / "deploy/monitoring" / file).read_text()
        asked[file] = set(re.findall(r"\b(?:punctual|process)_[a-z_]+\b(?=[{\[ )*]|$|\\?\")", text, re.MULTILINE))
        assert asked[file] - there == set(), file
    in_both = asked["rules.yml"] & asked["grafana/punctual.json"]
    assert {"punctual_promise_broken_ratio", "punctual_runs_total"} <= in_both
