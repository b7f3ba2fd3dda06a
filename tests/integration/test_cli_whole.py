"""The command line against the real API: files, other schedulers, keys, the audit log, many tasks at once."""

import json

import pytest
from sqlalchemy import text

from app import audit, db, settings

CRONTAB = """\
SHELL=/bin/bash
PATH=/usr/bin:/bin
HOME=/srv
# Rotate the logs
*/15 3 * * MON-FRI rotate --all
@hourly check
0 0 13 * 5 unlucky
"""
BEAT = """
from celery.schedules import crontab
beat_schedule = {
    "each quarter": {"task": "debug.echo", "schedule": 900, "args": (1, 2)},
    "first mondays": {"task": "debug.echo", "schedule": crontab("0", "9", day_of_month="1-7", day_of_week="mon")},
    "unlucky": {"task": "debug.echo", "schedule": crontab("0", "9", day_of_month="13", day_of_week="fri")},
}
"""
DUMP = [
    {"model": "django_celery_beat.intervalschedule", "pk": 1, "fields": {"every": 2, "period": "hours"}},
    {"model": "django_celery_beat.clockedschedule", "pk": 1, "fields": {"clocked_time": "2090-01-01T00:00:00Z"}},
    {
        "model": "django_celery_beat.periodictask",
        "pk": 1,
        "fields": {"name": "often", "task": "debug.echo", "interval": 1, "start_time": "2027-01-01T00:00:00Z"},
    },
    {
        "model": "django_celery_beat.periodictask",
        "pk": 2,
        "fields": {"name": "once", "task": "debug.echo", "clocked": 1},
    },
]


@pytest.fixture
def shell(database):
    """The target that a crontab needs."""
    with db.engines().usual.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO targets (name, queue, signature, documentation, last_seen_at)"
                " VALUES ('shell.run', 'default', '(argv, env=None, cwd=None)', 'Runs a program.', now())"
            )
        )


def test_what_is_exported_and_imported_again_changes_nothing(punctual, ask, register, tmp_path):
    register(name="a", labels={"team": "x"})
    register(name="b", labels={"team": "x"}, schedule={"type": "rrule", "rule": "FREQ=DAILY"} | STARTS)
    register(name="c")
    path = tmp_path / "tasks.jsonl"
    path.write_text(punctual("export", "--label", "team:x").stdout)
    assert ask("import", str(path)) == {"added": [], "changed": [], "left": ["a", "b"]}
    path.write_text(path.read_text().replace('"priority": 5', '"priority": 7'))
    assert "change  a     priority  5       7" in punctual("import", str(path), "--dry-run").stdout
    assert ask("tasks", "show", "a")["priority"] == 5
    assert len(ask("import", str(path))["changed"]) == 2
    assert ask("tasks", "show", "b")["priority"] == 7


STARTS = {"starts": "2026-01-01T09:00:00Z", "timezone": "Europe/Paris"}


def test_an_import_is_refused_by_the_lines_of_its_file(punctual, ask, tmp_path):
    good = '{"name": "good", "target": "debug.echo", "schedule": {"type": "now"}}\n'
    path = tmp_path / "f"
    path.write_text(good + good.replace("good", "bad").replace('"now"', '"cron", "expression": "61 * * * *"'))
    result = punctual("import", str(path), code=1)
    assert result.stderr.splitlines()[0].startswith(f"{path}:2: schedule.expression: ")
    assert result.stderr.splitlines()[1] == "punctual: Some tasks are not valid: nothing was imported."
    assert ask("tasks", "list") == []


@pytest.mark.parametrize(
    ("name", "content", "format_", "count"),
    [
        ("crontab", CRONTAB, "crontab", 3),
        ("beat.py", BEAT, "celery", 3),
        ("dump.json", json.dumps(DUMP), "django-celery-beat", 2),
    ],
)
def test_a_second_import_of_another_schedulers_changes_nothing(ask, shell, tmp_path, name, content, format_, count):
    (tmp_path / name).write_text(content)
    words = ["import", str(tmp_path / name), "--from", format_, "--label", f"from:{format_}"]
    first = ask(*words)
    assert (len(first["added"]), first["changed"], first["left"]) == (count, [], [])
    second = ask(*words)
    assert (second["added"], second["changed"], second["left"]) == ([], [], first["added"])
    assert len(ask("tasks", "list", "--label", f"from:{format_}")) == count


def test_many_are_paused_resumed_and_deleted_by_a_label(punctual, ask, register):
    for name in ("a", "b", "c"):
        register(name=name, labels={"team": "y" if name == "c" else "x"})
    assert punctual("tasks", "pause", "--label", "team:x", "--note", "holidays", "--yes").stdout == "paused: 2\n"
    assert {task["note"] for task in ask("tasks", "list", "--state", "paused")} == {"holidays"}
    assert ask("tasks", "resume", "--label", "team:x", "--yes") == {"tasks": 2}
    assert ask("tasks", "delete", "--label", "team:x", "--yes") == {"tasks": 2}
    assert [task["name"] for task in ask("tasks", "list")] == ["c"]


def test_a_new_key_opens_what_its_role_allows_until_it_is_revoked(punctual, ask, register):
    register(name="a")
    made = punctual("keys", "create", "--name", "ci", "--role", "viewer", "--expires", "30d")
    key = made.stdout.strip()
    assert len(made.stdout.splitlines()) == 1
    assert key not in made.stderr
    assert ask("tasks", "list", PUNCTUAL_KEY=key)[0]["name"] == "a"
    refused = punctual("tasks", "delete", "a", code=1, PUNCTUAL_KEY=key)
    assert refused.stderr == "punctual: This takes the role editor; your key has the role viewer.\n"
    [listed] = ask("keys", "list")
    assert key not in json.dumps(listed)
    punctual("keys", "revoke", listed["id"])
    assert punctual("tasks", "list", code=1, PUNCTUAL_KEY=key).stderr.startswith("punctual: A valid API key")


def test_the_chain_of_the_real_log_is_computed_again(punctual, ask, register):
    for name in ("a", "ü", "c"):
        register(name=name, labels={"größe": "日本"}, jitter=1.5)
    assert ask("audit", "verify")["unsealed"] == 3
    db.transact(audit.seal)
    ask("tasks", "pause", "a", "--note", "why")
    verdict = ask("audit", "verify")
    assert (verdict["good"], verdict["unsealed"], verdict["broken"]) == (3, 1, None)
    db.transact(audit.seal)
    assert ask("audit", "verify")["good"] == 4
    [paused] = ask("audit", "list", "--action", "pause")
    assert paused["hash"] == ask("audit", "verify")["head"]
    with db.engines().usual.begin() as connection:
        connection.execute(text("UPDATE audit SET subject_name = 'x' WHERE position = 2"))
    result = punctual("audit", "verify", code=1)
    assert result.stderr == "punctual: The chain is broken at position 2: its content is not what was sealed.\n"


def test_a_server_that_requires_a_version_is_served_too(ask, register, run, monkeypatch):
    task = register(name="a")
    monkeypatch.setenv("PUNCTUAL_REQUIRE_IF_MATCH", "1")
    settings.load.cache_clear()
    try:
        assert ask("tasks", "change", "a", "--set", "priority=1")["priority"] == 1
        assert ask("tasks", "pause", "a")["state"] == "paused"
        assert ask("tasks", "resume", "a")["state"] == "active"
        assert ask("tasks", "delete", "a")["id"] == task["id"]
        assert ask("runs", "cancel", run["id"])["state"] == "cancelled"
    finally:
        monkeypatch.undo()
        settings.load.cache_clear()


def test_figures_are_those_of_the_api(ask, punctual, run):
    assert ask("stats", "--since", "1h")["runs"].keys() >= {"succeeded", "failed"}
    assert "lateness.p99_ms" in punctual("stats", "--task", run["task_name"]).stdout
    assert ask("runs", "show", run["id"], "--wait", "1")["state"] == "pending"
