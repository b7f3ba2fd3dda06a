"""The command line against answers that are written down: waits, refusals, and what a test cannot have at will."""

import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from scripted import Script, serving

from cli.__main__ import main

KEY = "a-key-for-these-tests"
BUSY = {"code": "limited", "status": 429, "message": "Too many requests.", "errors": {}}
AWAY = {"code": "unavailable", "status": 503, "message": "A store is away.", "errors": {}}
EMPTY = {"items": [], "next": None}


@pytest.fixture
def punctual():
    """Calls the command line on a script of answers; gives the result, with what the server was asked."""

    def call(answers, *words, code=0, stdin=None, base="/api/v1"):
        script = Script(answers)
        with serving(script, base) as url:
            env = {"PUNCTUAL_URL": url, "PUNCTUAL_KEY": KEY, "PUNCTUAL_KEY_FILE": None}
            result = CliRunner().invoke(main, words, input=stdin, env=env)
        assert result.exit_code == code, result.output
        assert KEY not in result.output
        result.script = script
        return result

    return call


def test_a_busy_server_is_asked_again_after_the_time_that_it_names(punctual, naps):
    busy = (429, BUSY, {"Retry-After": "7"})
    result = punctual({"GET /tasks": [busy, (503, AWAY, {}), EMPTY]}, "tasks", "list", "--json")
    assert result.stdout == "[]\n"
    assert naps == [7.0, 2.0]
    assert "asks to wait, again in 7 s" in result.stderr


def test_a_post_is_repeated_under_one_key_and_each_post_has_its_own(punctual, naps):
    answers = {"POST /runs/1/cancel": [(503, AWAY, {"Retry-After": "1"}), {"id": "1"}]}
    sent = punctual(answers, "runs", "cancel", "1").script.requests
    keys = [request["headers"]["Idempotency-Key"] for request in sent]
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert punctual(answers, "runs", "cancel", "1").script.requests[0]["headers"]["Idempotency-Key"] not in keys


def test_a_server_that_stays_busy_or_asks_for_too_long_is_an_error(punctual, naps):
    result = punctual({"GET /tasks": (429, BUSY, {"Retry-After": "1"})}, "tasks", "list", code=1)
    assert result.stderr.splitlines()[-1] == "punctual: Too many requests."
    assert naps == [1.0, 1.0, 1.0]
    assert (
        len(punctual({"GET /tasks": (429, BUSY, {"Retry-After": "900"})}, "tasks", "list", code=1).script.requests) == 1
    )


def test_a_change_is_not_repeated_where_it_may_have_been_done(punctual, naps):
    found = {"items": [{"id": "1", "name": "a"}], "next": None}
    answers = {"GET /tasks": found, "PATCH /tasks/1": (503, AWAY, {"Retry-After": "1"})}
    punctual(answers, "tasks", "change", "a", "--set", "priority=1", code=1)
    assert naps == []
    busy = answers | {"PATCH /tasks/1": [(429, BUSY, {"Retry-After": "1"}), {"id": "1"}]}  # then it was not done
    sent = punctual(busy, "tasks", "change", "a", "--set", "priority=1", "--if-version", "3").script.of("/tasks/1")
    assert naps == [1.0]
    assert [request["headers"]["If-Match"] for request in sent] == ['"3"', '"3"']


def test_a_server_that_wants_to_be_told_a_version_is_told_that_any_will_do(punctual):
    answers = {"GET /tasks": {"items": [{"id": "1", "name": "a"}], "next": None}, "DELETE /tasks/1": (204, "", {})}
    answers |= {f"POST /tasks/1/{action}": {"id": "1"} for action in ("pause", "resume")}
    answers |= {f"POST /runs/1/{action}": {"id": "1"} for action in ("cancel", "retry")}
    for words in (["tasks", "delete", "a"], ["tasks", "pause", "a"], ["tasks", "resume", "a"]):
        assert punctual(answers, *words).script.requests[-1]["headers"]["If-Match"] == "*"
    for action in ("cancel", "retry"):
        assert punctual(answers, "runs", action, "1").script.requests[-1]["headers"]["If-Match"] == "*"


@pytest.mark.parametrize("answer", [(200, "<html>", {}), (404, "<html>", {}), (200, {"hello": 1}, {}), (302, "", {})])
def test_what_is_not_the_api_is_said_to_be_none(punctual, answer):
    result = punctual({"GET /tasks": answer}, "tasks", "list", code=1)
    assert "no answer of Punctual's API" in result.stderr
    assert result.stderr.count("\n") == 1


def test_what_a_server_says_does_not_drive_the_terminal(punctual):
    said = {"code": "x", "status": 409, "message": "\x1b]0;bad\x07\nline", "errors": {}}
    result = punctual({"POST /runs/1/retry": (409, said, {})}, "runs", "retry", "1", code=1)
    assert result.stderr == "punctual: \\x1b]0;bad\\x07 line\n"


def test_a_new_key_is_alone_on_standard_output(punctual):
    made = {"id": "1", "name": "ci", "role": "editor", "queues": ["a", "b"], "labels": {"team": "x"}, "key": "punc_abc"}
    words = ["keys", "create", "--name", "ci", "--role", "editor", "--queue", "a", "--queue", "b", "--label", "team:x"]
    result = punctual({"POST /keys": (201, made, {})}, *words, "--max-tasks", "5", "--expires", "2027-01-01T00:00:00Z")
    assert result.stdout == "punc_abc\n"
    assert "punc_abc" not in result.stderr
    assert result.script.requests[0]["body"] == {
        "name": "ci",
        "role": "editor",
        "queues": ["a", "b"],
        "labels": {"team": "x"},
        "max_tasks": 5,
        "expires_at": "2027-01-01T00:00:00Z",
    }
    assert "Idempotency-Key" not in result.script.requests[0]["headers"]  # a secret is not kept
    shown = punctual({"POST /keys": (201, made, {})}, *words, "--json")
    assert json.loads(shown.stdout) == made


def test_keys_are_listed_and_revoked(punctual):
    key = {"id": "1", "name": "ci", "role": "viewer", "queues": None, "labels": {"a": "b"}}
    result = punctual({"GET /keys": [{"items": [key], "next": "x"}, {"items": [key], "next": None}]}, "keys", "list")
    assert len(result.stdout.splitlines()) == 3
    assert [request["query"] for request in result.script.requests] == [{}, {"after": "x"}]
    assert punctual({"DELETE /keys/1": (204, "", {})}, "keys", "revoke", "1").exit_code == 0
    assert "There is nothing here." in punctual({}, "keys", "revoke", "../x", code=1).stderr


def chain(count):
    """A whole audit log, newest first."""
    entries, previous = [], "0" * 64
    for position in range(1, count + 1):
        entry = {
            "id": position, "at": "2026-11-21T08:00:00.000Z", "actor": "k", "actor_name": "Zoë", "via": "rest",
            "address": None, "action": "task.change", "subject": "task", "subject_id": "t", "subject_name": "a",
            "before": {"jitter": 1.5}, "after": {"é": [1, None]}, "position": position, "previous": previous,
        }  # fmt: skip
        text = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        previous = hashlib.sha256(text.encode()).hexdigest()
        entries.insert(0, entry | {"hash": previous})
    return entries


def paged(entries):
    """Answers that give the entries in two pages."""
    half = len(entries) // 2
    return [{"items": entries[:half], "next": "x"}, {"items": entries[half:], "next": None}]


def test_a_whole_chain_is_good(punctual):
    entries = chain(7)
    young = entries[0] | {"id": 8, "position": None, "previous": None, "hash": None}
    swapped = [young, entries[1], entries[0], *entries[2:]]  # the ids may be in another order
    result = punctual({"GET /audit": paged(swapped)}, "audit", "verify")
    assert result.stdout == f"7 entries are good, 1 are not sealed yet; head {entries[0]['hash']}\n"
    told = json.loads(punctual({"GET /audit": EMPTY}, "audit", "verify", "--json").stdout)
    assert told == {"good": 0, "head": "0" * 64, "unsealed": 0, "broken": None}


@pytest.mark.parametrize(
    ("spoil", "position", "reason"),
    [
        (lambda entries: entries[4].update(actor_name="Eve"), 3, "its content is not what was sealed"),
        (lambda entries: entries.pop(4), 3, "the entry is missing"),
        (lambda entries: entries.pop(6), 1, "the entry is missing"),
        (lambda entries: entries.append(entries[4]), 3, "two entries have this position"),
        (lambda entries: entries[4].update(previous="f" * 64), 3, "it does not name the hash of the entry before it"),
        (lambda entries: entries[5].update(hash="f" * 64), 2, "its content is not what was sealed"),
    ],
)
def test_the_first_broken_place_is_named(punctual, spoil, position, reason):
    entries = chain(7)
    spoil(entries)
    result = punctual({"GET /audit": paged(entries)}, "audit", "verify", code=1)
    assert result.stderr == f"punctual: The chain is broken at position {position}: {reason}.\n"
    assert result.stdout.startswith(f"{position if reason.startswith('two') else position - 1} entries are good")


def test_a_gap_that_a_seal_closes_meanwhile_is_none(punctual, naps):
    entries = chain(5)
    early = [entries[0], entries[1] | {"position": None, "previous": None, "hash": None}, *entries[2:]]
    result = punctual({"GET /audit": [*paged(early), *paged(entries)]}, "audit", "verify")
    assert result.stdout.startswith("5 entries are good")
    assert naps == [2.0]


def test_the_audit_log_is_listed_by_what_is_asked_for(punctual):
    words = ["audit", "list", "--subject", "task", "--subject-id", "t", "--actor", "k", "--limit", "2"]
    result = punctual({"GET /audit": {"items": chain(2), "next": "x"}}, *words)
    assert len(result.stdout.splitlines()) == 3
    wanted = {"subject": "task", "subject_id": "t", "actor": "k", "limit": "2"}
    assert [request["query"] for request in result.script.requests] == [wanted]


def test_all_that_match_are_done_part_by_part_once_that_is_confirmed(punctual):
    answers = {
        "GET /tasks": {"items": [{"id": "1"}, {"id": "2"}], "next": None},
        "POST /tasks/bulk/pause": [{"tasks": 1000, "more": True}, {"tasks": 7, "more": False}],
    }
    words = ["tasks", "pause", "--label", "team:billing", "--note", "holidays"]
    result = punctual(answers, *words, stdin="y\n")
    assert "pause every task with label=team:billing (2 now)?" in result.stderr
    assert result.stdout == "paused: 1007\n"
    sent = result.script.of("/tasks/bulk/pause")
    assert [request["body"] for request in sent] == 2 * [{"label": "team:billing", "note": "holidays"}]
    assert len({request["headers"]["Idempotency-Key"] for request in sent}) == 2
    refused = punctual(answers, *words, stdin="n\n", code=1)
    assert refused.script.of("/tasks/bulk/pause") == []
    assert punctual(answers, *words, stdin="", code=1).script.of("/tasks/bulk/pause") == []


def test_with_yes_nothing_is_asked_and_what_was_done_before_an_error_is_said(punctual):
    answers = {"POST /tasks/bulk/delete": [{"tasks": 5, "more": True}, (500, {"message": "Wrong."}, {})]}
    result = punctual(answers, "tasks", "delete", "--state", "paused", "--yes", code=1)
    assert result.stderr == "deleted before the error: 5\npunctual: Wrong.\n"
    done = {"POST /tasks/bulk/resume": {"tasks": 3, "more": False}}
    result = punctual(done, "tasks", "resume", "--q", "x", "--from", "last", "--yes", "--json")
    assert json.loads(result.stdout) == {"tasks": 3}
    assert result.script.requests[0]["body"] == {"q": "x", "from": "last"}


def test_a_run_is_waited_for_by_the_server(punctual):
    waiting, done = {"id": "1", "state": "running"}, {"id": "1", "state": "succeeded"}
    result = punctual({"GET /runs/1": [waiting, done]}, "runs", "show", "1", "--wait", "90", "--json")
    assert json.loads(result.stdout) == done
    assert [request["query"] for request in result.script.requests] == [{"wait": "30"}, {"wait": "30"}]


def test_the_figures_are_shown_whatever_they_are(punctual):
    found = {"runs": {"succeeded": 5}, "lateness": {"p99_ms": 12.5}, "in_time": None, "stages": []}
    result = punctual({"GET /stats": found}, "stats", "--since", "2026-01-01T00:00:00Z")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines == [["runs.succeeded", "5"], ["lateness.p99_ms", "12.5"], ["in_time", "-"], ["stages", "-"]]
    assert result.script.requests[0]["query"] == {"since": "2026-01-01T00:00:00Z"}


def test_an_export_is_what_the_server_says_line_by_line(punctual):
    text = '{"name": "a"}\n{"name": "ü"}\n'
    result = punctual({"GET /tasks/export": (200, text, {})}, "export", "--label", "team:billing")
    assert result.stdout == text
    assert result.script.requests[0]["query"] == {"label": "team:billing"}
    assert "Wrong." in punctual({"GET /tasks/export": (403, {"message": "Wrong."}, {})}, "export", code=1).stderr


def taken(request):
    """The answer of a server that has none of the tasks yet."""
    return {"added": [item["name"] for item in request["body"]["items"]], "changed": [], "left": []}


def written(path, tasks):
    path.write_text("".join(json.dumps(task) + "\n" for task in tasks))
    return str(path)


@pytest.fixture
def tasks(tmp_path):
    """Writes a file of so many definitions."""

    def write(count, **fields):
        return written(tmp_path / "tasks.jsonl", [{"name": f"t{number}", **fields} for number in range(count)])

    return write


def test_an_import_tells_what_it_adds_changes_and_leaves(punctual, tasks):
    changed = {"name": "t1", "fields": {"priority": {"before": 5, "after": 7}, "args": {"before": [], "after": [1]}}}
    answers = {"POST /tasks/import": {"added": ["t0"], "changed": [changed], "left": ["t2"]}}
    result = punctual(answers, "import", tasks(3), "--dry-run")
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["WHAT", "TASK", "FIELD", "BEFORE", "AFTER"],
        ["add", "t0", "-", "-", "-"],
        ["change", "t1", "priority", "5", "7"],
        ["change", "t1", "args", "-", "1"],
        ["leave", "t2", "-", "-", "-"],
    ]
    assert result.stderr == "1 would be added, 1 would be changed, 1 would be left\n"
    assert result.script.requests[0]["query"] == {"dry_run": "1"}
    told = punctual(answers, "import", tasks(3), "--json")
    assert json.loads(told.stdout) == {"added": ["t0"], "changed": [changed], "left": ["t2"]}
    assert told.stderr == ""
    assert told.script.requests[0]["query"] == {}


def test_many_are_sent_in_parts_that_are_all_tried_first(punctual, tasks):
    result = punctual({"POST /tasks/import": taken}, "import", tasks(2500), "--json")
    assert json.loads(result.stdout)["added"] == [f"t{number}" for number in range(2500)]
    sent = [(len(request["body"]["items"]), request["query"]) for request in result.script.requests]
    assert sent == [(size, query) for query in ({"dry_run": "1"}, {}) for size in (1000, 1000, 500)]


def test_a_part_is_no_larger_than_the_server_takes(punctual, tasks):
    result = punctual({"POST /tasks/import": taken}, "import", tasks(700, args=[30_000 * "x"]), "--dry-run")
    sizes = [int(request["headers"]["Content-Length"]) for request in result.script.requests]
    assert len(sizes) == 4
    assert max(sizes) < 8 * 1024 * 1024


def test_what_the_server_refuses_is_told_by_the_lines_of_the_file(punctual, tmp_path):
    (tmp_path / "f").write_text('{"name": "a"}\n\n{"name": "b"}\n')
    errors = {"items": {"1": {"schedule": {"at": ["This is no time."]}, "target": ["Required."]}}}
    said = {"code": "invalid", "status": 422, "message": "Some fields are not valid.", "errors": errors}
    result = punctual({"POST /tasks/import": (422, said, {})}, "import", str(tmp_path / "f"), code=1)
    assert result.stderr.splitlines() == [
        f"{tmp_path}/f:3: schedule.at: This is no time.",
        f"{tmp_path}/f:3: target: Required.",
        "punctual: Some tasks are not valid: nothing was imported.",
    ]


def test_what_was_imported_before_an_error_is_said(punctual, tasks):
    refusal = (409, {"code": "conflict", "status": 409, "message": "It does not fit.", "errors": {}}, {})
    answers = {"POST /tasks/import": [taken, taken, taken, refusal]}
    result = punctual(answers, "import", tasks(1001), code=1)
    assert result.stderr == "punctual: It does not fit: 1000 tasks before these were imported.\n"


def test_what_cannot_be_converted_stops_the_import_unless_it_may_be_skipped(punctual, tmp_path):
    path = tmp_path / "crontab"
    path.write_text("@reboot x\n# Backup\n0 1 * * * backup\n")
    words = ["import", str(path), "--from", "crontab", "--timezone", "UTC"]
    stopped = punctual({}, *words, code=1)
    assert f"not converted: {path}:1: @reboot" in stopped.stderr
    assert "nothing was sent" in stopped.stderr
    assert stopped.script.requests == []
    more = ["--skip-unconvertible", "--prefix", "web1: ", "--label", "from:cron", "--queue", "web1"]
    [sent] = punctual({"POST /tasks/import": taken}, *words, *more).script.requests
    [task] = sent["body"]["items"]
    assert (task["name"], task["labels"], task["queue"]) == ("web1: Backup", {"from": "cron"}, "web1")
    assert task["kwargs"]["argv"] == ["/bin/sh", "-c", "backup"]


def test_a_crontab_is_in_this_machines_zone_where_none_is_named(punctual, monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Paris")
    result = punctual({"POST /tasks/import": taken}, "import", "-", "--from", "crontab", stdin="0 1 * * * x\n")
    assert "its times are taken for Europe/Paris's" in result.stderr
    assert result.script.requests[0]["body"]["items"][0]["schedule"]["timezone"] == "Europe/Paris"


APP = """
from celery import Celery
from celery.schedules import crontab, solar
print("made")
app = Celery("shop", set_as_current=False)
app.conf.timezone = "Europe/Paris"
app.conf.beat_schedule = {
    "charge": {"task": "billing.charge", "schedule": crontab(hour=7, minute=30), "args": (1,)},
    %s
}

@app.on_after_finalize.connect
def more(sender, **_):
    sender.add_periodic_task(90.0, sender.signature("billing.check"), name="check")
"""
SUN = '"dusk": {"task": "lamps.on", "schedule": solar("sunset", 48.8, 2.3)},'


@pytest.mark.parametrize("attribute", ["", ":app", ":app.conf.beat_schedule"])
def test_the_schedule_of_a_celery_app_is_imported_from_its_file(punctual, tmp_path, attribute):
    (tmp_path / "celery.py").write_text(APP % "")
    words = ["import", f"{tmp_path}/celery.py{attribute}", "--from", "celery", "--json"]
    result = punctual({"POST /tasks/import": taken}, *words)
    charge, *check = result.script.requests[0]["body"]["items"]
    zone = "UTC" if "beat_schedule" in attribute else "Europe/Paris"
    assert charge["schedule"] == {"type": "cron", "expression": "30 7 * * *", "timezone": zone}
    assert [(task["target"], task["schedule"]["every"]) for task in check][: not attribute.endswith("e")] == (
        [("billing.check", 90)] if not attribute.endswith("e") else []
    )
    assert json.loads(result.stdout)["changed"] == []  # what the file prints is not ours


def test_a_solar_schedule_does_not_keep_the_others_from_being_read(punctual, tmp_path):
    (tmp_path / "shop.py").write_text(APP % SUN)
    words = ["import", f"{tmp_path}/shop.py", "--from", "celery"]
    assert "not converted: dusk: a solar schedule" in punctual({}, *words, code=1).stderr


@pytest.mark.parametrize(
    ("source", "text", "said"),
    [
        ("none.py", None, "there is no such file"),
        ("no.such.module", None, "it cannot be imported: ModuleNotFoundError"),
        ("bad.py", "1 / 0", "it cannot be imported: ZeroDivisionError: division by zero"),
        ("ends.py", "raise SystemExit(3)", "it cannot be imported: SystemExit: 3"),
        ("empty.py", "", "no Celery app and no beat_schedule is found"),
        ("one.py:two", "three = 3", "there is no two"),
        ("one.py:three", "three = 3", "this is neither a Celery app nor the dict"),
    ],
)
def test_a_file_that_gives_no_schedule_says_why_in_one_line(punctual, tmp_path, monkeypatch, source, text, said):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(source.partition(":")[0]).write_text(text)
    result = punctual({}, "import", source, "--from", "celery", code=1)
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_dict_is_in_the_zone_that_stands_beside_it(punctual, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = (
        "from celery.schedules import crontab\nTIME_ZONE = 'Asia/Tokyo'\n"
        "CELERY_BEAT_SCHEDULE = {'a': {'task': 'x', 'schedule': crontab()}}\n"
    )
    (tmp_path / "settings_of_a_shop.py").write_text(text)
    result = punctual({"POST /tasks/import": taken}, "import", "settings_of_a_shop", "--from", "celery")
    assert result.script.requests[0]["body"]["items"][0]["schedule"]["timezone"] == "Asia/Tokyo"


def test_a_fixture_of_django_is_imported(punctual, tmp_path):
    rows = [
        {"model": "django_celery_beat.intervalschedule", "pk": 1, "fields": {"every": 2, "period": "hours"}},
        {"model": "django_celery_beat.periodictask", "pk": 1, "fields": {"name": "a", "task": "x", "interval": 1}},
    ]
    (tmp_path / "dump.json").write_text(json.dumps(rows))
    words = ["import", f"{tmp_path}/dump.json", "--from", "django-celery-beat"]
    result = punctual({"POST /tasks/import": taken}, *words)
    assert result.script.requests[0]["body"]["items"][0]["schedule"]["every"] == 7200
    (tmp_path / "dump.json").write_text("{}")
    assert "this is no fixture" in punctual({}, *words, code=1).stderr
