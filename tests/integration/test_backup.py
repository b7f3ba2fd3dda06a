"""Backups that are whole, keep their secrets, and are taken only for what they are."""

import json
import os
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from sqlalchemy import make_url, text
from stores import DATABASE, ROOT, new_database

from app import db
from deploy import backup, programs, restore
from deploy.processes import StartError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "backups"


@pytest.fixture
def empty():
    """The URL of an empty database."""
    with new_database(f"{DATABASE}_restored") as url:
        yield url


@pytest.fixture
def taken(register, database, folder):
    """A backup of a database with a task."""
    register(name="kept")
    return backup.take(database, folder)


def ask(url, statement):
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg.connect(plain, autocommit=True)) as server:
        done = server.execute(statement)
        return done.fetchall() if done.description else []


def test_what_comes_back_is_what_was_there_and_may_be_gone_on_from(client, task, taken, run, folder, database, empty):
    with db.transaction() as session:
        session.execute(text("UPDATE runs SET state = 'queued', published_at = now(), pack_id = gen_random_uuid()"))
        session.execute(text("UPDATE tasks SET mirrored_version = version"))
    restore.restore(empty, backup.take(database, folder))
    assert ask(empty, "SELECT name FROM tasks ORDER BY created_at") == ask(
        database, "SELECT name FROM tasks ORDER BY created_at"
    )
    assert ask(empty, "SELECT id::text, state, published_at, pack_id FROM runs") == [(run["id"], "pending", None, None)]
    assert ask(empty, "SELECT DISTINCT mirrored_version, version > 1000 FROM tasks") == [(0, True)]
    assert ask(empty, "SELECT count(*) FROM nodes") == [(0,)]
    definers = "SELECT proname FROM pg_proc WHERE prosecdef AND has_function_privilege('public', oid, 'EXECUTE')"
    assert ask(empty, definers) == []


def test_what_is_to_be_done_after_a_recovery_to_a_moment_is_what_a_restore_does():
    page = (ROOT / "docs/operations.md").read_text()
    assert [statement for statement in restore.SETTLE if f"{statement};" not in page] == ["DELETE FROM nodes"]


def test_a_database_that_is_not_empty_is_left_alone_unless_one_insists(taken, empty):
    ask(empty, "CREATE TABLE precious AS SELECT 1 AS one")
    with pytest.raises(StartError, match="not empty"):
        restore.restore(empty, taken)
    assert ask(empty, "SELECT one FROM precious") == [(1,)]
    for _ in range(2):  # the second time it is full of what was restored
        restore.restore(empty, taken, force=True)
    assert ask(empty, "SELECT name FROM tasks") == [("kept",)]
    assert ask(empty, "SELECT to_regclass('precious')") == [(None,)]


def test_nobody_is_restored_under(taken, database):
    db.ping()  # this very process is connected
    with pytest.raises(StartError, match="are connected to this database"):
        restore.restore(database, taken, force=True)
    assert ask(database, "SELECT name FROM tasks") == [("kept",)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "database.dump").write_bytes(b"PGDMP"), "cut short or changed"),
        (lambda folder: (folder / "database.dump").unlink(), "cut short or changed"),
        (lambda folder: (folder / "manifest.json").unlink(), "is no backup"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "is no backup"),
        (lambda folder: rewrite(folder, revision="9999"), "of a newer release"),
        (lambda folder: rewrite(folder, format=2), "in another way"),
        (lambda folder: rewrite(folder, postgresql=99), "is of PostgreSQL 99"),
    ],
)
def test_what_is_no_whole_backup_of_ours_is_refused(taken, empty, change, said):
    change(taken)
    with pytest.raises(StartError, match=said):
        restore.restore(empty, taken)
    assert ask(empty, "SELECT count(*) FROM pg_class WHERE relname = 'tasks'") == [(0,)]


def rewrite(folder, **changed):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changed))


def test_only_its_owner_can_read_one(taken):
    assert {path.stat().st_mode & 0o077 for path in (taken.parent, taken, *taken.iterdir())} == {0}


def test_as_many_stay_as_are_wanted_and_what_is_half_or_somebody_elses_is_none(database, folder):
    (folder / "new.partial").mkdir(parents=True)
    (folder / "mine").mkdir()
    made = [backup.take(database, folder, keep=2) for _ in range(3)]
    assert backup.backups(folder) == made[1:]
    assert sorted(path.name for path in folder.iterdir() if path.name.endswith(".partial")) == []
    assert (folder / "mine").exists()


def test_one_is_due_when_the_newest_is_as_old_as_is_wanted(database, folder):
    day = timedelta(days=1)
    assert backup.is_due(folder, day, datetime.now(UTC))
    backup.take(database, folder)
    assert not backup.is_due(folder, day, datetime.now(UTC) + day - timedelta(minutes=1))
    assert backup.is_due(folder, day, datetime.now(UTC) + day)


def test_who_is_to_go_on_takes_one_at_once_and_waits_until_it_is_told_to_stop(database, folder):
    argv = [sys.executable, "-m", "deploy.backup", folder, "--every", "24"]
    env = os.environ | {"DATABASE_URL": database}
    with subprocess.Popen(
        argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        made = running.stdout.readline().strip()
        running.terminate()
        assert running.wait(10) == 130
        assert running.stderr.read() == ""
    assert [str(path) for path in backup.backups(folder)] == [made]


def test_one_that_fails_leaves_none(folder, empty):
    with pytest.raises(StartError, match="never migrated"):
        backup.take(empty, folder)
    assert backup.backups(folder) == []


def test_no_password_is_among_the_arguments_of_a_program():
    conninfo, env = backup.connecting("postgresql+psycopg://me:s3cret%40@/db?host=one:1&host=two:2&sslmode=prefer")
    assert "s3cret" not in conninfo
    assert env["PGPASSWORD"] == "s3cret@"
    assert psycopg.conninfo.conninfo_to_dict(conninfo) == {
        "user": "me",
        "dbname": "db",
        "host": "one,two",
        "port": "1,2",
        "sslmode": "prefer",
        "target_session_attrs": "read-write",
    }


def test_a_program_that_is_not_there_is_named_with_what_to_install():
    with pytest.raises(StartError, match="postgresql-client-99"):
        programs.find("pg_dump", 99)
    assert programs.find("pg_dump", 1).name == "pg_dump"


def test_the_commands_back_up_and_restore(taken, database, empty, folder):
    def call(module, url, *words, code=0):
        env = os.environ | {"DATABASE_URL": url}
        argv = [sys.executable, "-m", module, *map(str, words)]
        done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done

    made = call("deploy.backup", database, folder, "--keep", 1).stdout.strip()
    assert "is fired again" in call("deploy.restore", empty, made).stdout
    refused = call("deploy.restore", empty, made, code=1)
    assert refused.stderr.startswith("punctual: this database is not empty")
    assert ask(empty, "SELECT name FROM tasks") == [("kept",)]
