"""The command line against the real API, served on this machine."""

import calendar
import json
import os
import re
import subprocess
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from stores import ROOT

from app import db, incidents
from app.incidents import Sign
from app.states import Trouble

KEY = "punctual-test-key"
DEAD = "http://127.0.0.1:1"


def test_a_task_from_its_registration_to_its_end(punctual, ask):
    made = ask(
        *("tasks", "create", "--name", "report", "--target", "debug.echo", "--cron", "0 9 * * MON-FRI"),
        *("--timezone", "Europe/Paris", "--args", "[1]", "--kwargs", '{"a": null}', "--label", "team:billing"),
        *("--label", "tier:1", "--priority", "7", "--timeout", "2m", "--set", 'retry={"max_attempts": 3}'),
    )
    assert made["schedule"] == {"type": "cron", "expression": "0 9 * * MON-FRI", "timezone": "Europe/Paris"}
    assert (made["args"], made["kwargs"]) == ([1], {"a": None})
    assert made["labels"] == {"team": "billing", "tier": "1"}
    assert (made["priority"], made["timeout"], made["retry"]["max_attempts"]) == (7, 120, 3)

    assert ask("tasks", "show", "report") == ask("tasks", "show", made["id"])
    assert ask("tasks", "show", made["id"])["name"] == "report"
    changed = ask("tasks", "change", "report", "--set", "priority=2", "--set", 'name="Report of the day"')
    assert (changed["priority"], changed["version"]) == (2, 2)
    stale = punctual("tasks", "change", made["id"], "--set", "priority=3", "--if-version", "1", code=1)
    assert stale.stderr.startswith("punctual: It was changed since you read it")
    assert ask("tasks", "pause", "Report of the day", "--note", "the printer is away")["note"] == "the printer is away"
    assert ask("tasks", "resume", made["id"], "--from", "last")["state"] == "active"
    run = ask("tasks", "run", made["id"], "--kwargs", '{"b": 2}')
    assert run["trigger"] == "manual"
    today = datetime.now(UTC).date()
    saturday = today - timedelta(days=(today.weekday() - calendar.SATURDAY) % 7 + 7)  # the task has no slot on it
    span = ("--since", f"{saturday}T00:00:00Z", "--until", f"{saturday}T23:59:59Z")
    assert ask("tasks", "backfill", made["id"], *span) == {"runs": 0}
    assert ask("tasks", "delete", made["id"])["state"] == "deleted"
    assert "There is no task 'report'." in punctual("tasks", "show", "report", code=1).stderr


@pytest.mark.parametrize(
    ("words", "schedule"),
    [
        (["--now"], {"type": "now"}),
        (["--every", "5m"], {"type": "interval", "every": 300}),
        (["--every", "1.5"], {"type": "interval", "every": 1.5}),
        (["--at", "2090-12-24T18:00:00+01:00"], {"type": "once", "at": "2090-12-24T17:00:00Z"}),
        (["--at", "3d"], {"type": "once"}),
        (
            ["--rrule", "FREQ=DAILY", "--starts", "2026-01-01T09:00:00Z", "--timezone", "Asia/Tokyo"],
            {"type": "rrule", "rule": "FREQ=DAILY", "timezone": "Asia/Tokyo"},
        ),
    ],
)
def test_each_kind_of_schedule_has_its_option(ask, words, schedule):
    made = ask("tasks", "create", "--target", "debug.echo", *words)["schedule"]
    assert {name: made[name] for name in schedule} == schedule


def test_a_file_or_standard_input_holds_a_task_and_options_go_before_it(ask, tmp_path):
    path = tmp_path / "task.json"
    path.write_text(json.dumps({"name": "a", "target": "debug.echo", "schedule": {"type": "interval", "every": 60}}))
    assert ask("tasks", "create", "--file", str(path), "--name", "b")["name"] == "b"
    assert ask("tasks", "create", "--file", "-", "--every", "90", stdin=path.read_text())["schedule"]["every"] == 90
    path.write_text('{"priority": 1}')
    changed = ask("tasks", "change", "a", "--file", str(path), "--set", "labels={}")
    assert (changed["name"], changed["priority"]) == ("a", 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cron", "61 * * * *"], "schedule.expression: "),
        (["--cron", "* * * * *", "--timezone", "Paris"], "schedule.timezone: "),
        (["--at", "tomorrow"], "schedule.at: "),
        (["--every", "0.5"], "schedule.every: "),
        (["--now", "--set", 'retry={"max_attempts": 0}'], "retry.max_attempts: "),
        (["--now", "--set", "nonsense=1"], "nonsense: Unknown field."),
        ([], "schedule: "),
    ],
)
def test_what_the_server_refuses_is_one_line_that_names_the_field(punctual, words, said):
    result = punctual("tasks", "create", "--target", "debug.echo", *words, code=1)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("punctual: Some fields are not valid. ")
    assert said in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["tasks", "create", "--cron", "* * * * *", "--now"],
        ["tasks", "create", "--every", "5m", "--timezone", "Europe/Paris"],
        ["tasks", "create", "--every", "soon"],
        ["tasks", "create", "--args", "{}"],
        ["tasks", "create", "--kwargs", "[1"],
        ["tasks", "create", "--set", "priority"],
        ["tasks", "create", "--set", "name=report"],
        ["tasks", "create", "--set", "args=[NaN]"],
        ["tasks", "create", "--set", r'name="\ud800"'],
        ["tasks", "create", "--label", "team"],
        ["tasks", "change", "report"],
        ["tasks", "pause"],
        ["tasks", "pause", "report", "--label", "team:billing"],
        ["tasks", "list", "--label", "team"],
        ["tasks", "list", "--limit", "0"],
        ["preview", '{"type": "now"}', "--timezone", "UTC"],
        ["--url", "nonsense", "stats"],
        ["--url", "http://user:password@127.0.0.1", "stats"],
        ["import", "x", "--system"],
    ],
)
def test_a_wrong_call_is_clicks_to_explain(punctual, words):
    result = punctual(*words, code=2)
    assert "Usage: " in result.stderr
    assert "password" not in result.stderr


def test_nobody_at_the_address_is_one_line_and_another_code(punctual):
    result = punctual("tasks", "list", code=2, PUNCTUAL_URL=DEAD)
    assert result.stderr == f"punctual: {DEAD} cannot be reached: Connection refused\n"


def test_the_address_of_the_api_means_the_same_as_the_servers(ask, url):
    assert ask("tasks", "list", PUNCTUAL_URL=f"{url}/api/v1/") == []
    assert ask("--url", url, "tasks", "list", PUNCTUAL_URL=DEAD) == []


def test_a_wrong_key_is_refused_and_not_shown(punctual):
    for key in (None, "another-secret", "schlüssel-secret"):
        result = punctual("tasks", "list", code=1, PUNCTUAL_KEY=key)
        assert result.stderr.startswith("punctual: A valid API key is required")
        assert "secret" not in result.output
    for key in ("two\nlines-secret", "\x07secret"):
        result = punctual("tasks", "list", code=1, PUNCTUAL_KEY=key)
        assert result.stderr == "punctual: PUNCTUAL_KEY: a key is one line of plain characters\n"


def test_the_key_may_stand_in_a_file(punctual, ask, tmp_path):
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    assert ask("tasks", "list", PUNCTUAL_KEY=None, PUNCTUAL_KEY_FILE=str(path)) == []
    assert "given twice" in punctual("tasks", "list", code=1, PUNCTUAL_KEY_FILE=str(path)).stderr
    missing = punctual("tasks", "list", code=1, PUNCTUAL_KEY=None, PUNCTUAL_KEY_FILE=str(tmp_path / "none"))
    assert missing.stderr == "punctual: PUNCTUAL_KEY_FILE: cannot be read: No such file or directory\n"


def test_no_option_takes_a_key(punctual):
    assert "--key" not in punctual("--help").stdout


@pytest.fixture
def many(client):
    """250 tasks; every tenth has a label."""
    items = [
        {
            "name": f"task {number}",
            "target": "debug.echo",
            "labels": {"tenth": "yes"} if number % 10 == 0 else {},
            "schedule": {"type": "interval", "every": 3600},
        }
        for number in range(250)
    ]
    assert client.post("/api/v1/tasks/bulk", json={"items": items}).status_code == 201


def test_a_list_is_as_long_as_was_asked_for(many, ask):
    assert len(ask("tasks", "list")) == 50
    assert len(ask("tasks", "list", "--limit", "210")) == 210
    everything = ask("tasks", "list", "--all")
    assert len({task["id"] for task in everything}) == 250
    assert len(ask("tasks", "list", "--all", "--label", "tenth:yes")) == 25
    assert ask("tasks", "list", "--q", "task 249", "--state", "active")[0]["name"] == "task 249"
    assert ask("tasks", "list", "--state", "paused") == []


def test_a_name_is_found_among_those_that_hold_it(many, ask):
    assert ask("tasks", "show", "task 1")["name"] == "task 1"


def test_an_id_goes_before_a_name_and_an_unknown_one_may_be_a_name(ask, register):
    name = str(uuid4())
    named, other = register(name=name), register()
    assert ask("tasks", "show", name)["id"] == named["id"]
    ask("tasks", "change", named["id"], "--set", f'name="{other["id"]}"')
    assert ask("tasks", "show", other["id"])["id"] == other["id"]


def test_a_table_is_for_people(punctual, register):
    register(name="b\x1b[31m\nc", schedule={"type": "cron", "expression": "0 9 * * *", "timezone": "Asia/Tokyo"})
    register(name="日本", schedule={"type": "interval", "every": 90})
    heading, first, second = punctual("tasks", "list").stdout.splitlines()
    assert heading.split() == ["ID", "NAME", "STATE", "TARGET", "SCHEDULE", "NEXT", "RUN"]
    assert "日本" in first
    assert "every 90 s" in first
    assert r"b\x1b[31m c" in second
    assert "0 9 * * * Asia/Tokyo" in second


def test_runs_are_listed_shown_cancelled_and_not_retried_while_they_wait(punctual, ask, run):
    [listed] = ask("runs", "list", "--task", run["task_id"], "--since", "1h")
    assert listed["id"] == run["id"]
    assert ask("runs", "list", "--task", run["task_name"], "--state", "failed") == []
    assert ask("runs", "show", run["id"])["attempts"] == []
    assert ask("runs", "show", run["id"], "--wait", "0.1")["state"] == "pending"
    assert "RUN" not in punctual("runs", "show", run["id"]).stdout
    assert punctual("runs", "retry", run["id"], code=1).stderr.startswith("punctual: ")
    assert ask("runs", "cancel", run["id"])["state"] == "cancelled"
    assert ask("runs", "show", run["id"], "--wait", "60")["state"] == "cancelled"
    assert punctual("runs", "show", "a/../b", code=1).stderr == "punctual: There is nothing under this address.\n"


def test_the_runs_of_a_deleted_task_are_found_by_its_id(ask, run):
    ask("tasks", "delete", run["task_id"])
    assert [each["id"] for each in ask("runs", "list", "--task", run["task_id"])] == [run["id"]]


def test_a_preview_has_words_slots_and_warnings(punctual, ask):
    told = punctual("preview", "30 2 * * *", "--timezone", "Europe/Paris", "--count", "3")
    assert told.stdout.splitlines()[0] == "Every day at 02:30, Europe/Paris time"
    assert len(told.stdout.splitlines()) == 4
    assert "warning: " in told.stderr
    assert len(ask("preview", '{"type": "interval", "every": 5}')["slots"]) == 5


def test_the_cluster_is_shown_in_tables(punctual, ask, redis_client):
    assert "QUEUE" in punctual("cluster").stdout
    assert ask("cluster")["workers"] == []


def test_what_is_not_well_is_listed(punctual, ask, task):
    with db.transaction() as session:
        incidents.report(session, Trouble.LATE, [Sign(task_id=task["id"], slot=db.now(session))])
    assert re.search(rf"{task['name']} +late ", punctual("incidents").stdout)
    assert [each["kind"] for each in ask("incidents", "--task", task["name"])] == ["late"]
    assert ask("incidents", "--over") == []


def test_a_store_that_is_away_is_waited_for_and_then_told(punctual, no_database, naps):
    result = punctual("tasks", "list", code=1)
    assert result.stderr.splitlines()[-1] == "punctual: A store is away; nothing was changed. Try again shortly."
    assert naps == [2.0, 2.0, 2.0]


def test_the_script_finds_files_from_where_it_is_called(url, tmp_path):
    (tmp_path / "task.json").write_text('{"target": "debug.echo", "schedule": {"type": "now"}}')
    (tmp_path / "click.py").write_text("raise RuntimeError('this is not click')")
    env = {name: value for name, value in os.environ.items() if name != "PUNCTUAL_KEY_FILE"}
    result = subprocess.run(
        [ROOT / "script" / "punctual", "tasks", "create", "--file", "task.json", "--json"],
        cwd=tmp_path,
        env=env | {"PUNCTUAL_URL": url, "PUNCTUAL_KEY": KEY},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["target"] == "debug.echo"
