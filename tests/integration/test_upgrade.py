"""What a migration does to the release before it, which goes on while it runs and after it."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager

import psycopg
import pytest
from alembic.config import Config
from sqlalchemy import Engine, event, make_url
from stores import DATABASE, GIVEN, ROOT, need, new_database, poll

from alembic import command
from drill import releases

LOOSE = (r"^CREATE (OR REPLACE )?FUNCTION\b.*", r"^(INSERT INTO|UPDATE|DELETE FROM) alembic_version\b.*")
"""What is left out: the bodies of functions, and Alembic's own notes."""

RULES = {
    r"\bDROP (TABLE|FUNCTION|VIEW)\b": "it may be in use",
    r"\bRENAME\b": "the previous release knows it by the old name",
    r"\bALTER COLUMN \w+ (SET DATA )?TYPE\b": "it rewrites the table, and others read the column",
    r"\bALTER COLUMN \w+ SET NOT NULL\b": "the previous release may leave it out",
    r"\bADD COLUMN (?!.*DEFAULT).*\bNOT NULL\b": "the previous release leaves it out: give it a default",
    r"^(UPDATE|DELETE)\b": "it keeps rows, and all that the migration has locked, for as long as it takes",
    r"^CREATE (UNIQUE )?INDEX (?!CONCURRENTLY|(IF NOT EXISTS )?\w+ ON ONLY)": "nobody writes meanwhile: CONCURRENTLY",
    r"^CREATE UNIQUE INDEX\b": "the previous release may write what it forbids",
    r"\bADD CONSTRAINT\b.*(?<!NOT VALID)$": "it reads the whole table, and nobody writes meanwhile",
}


def breaches(statements, kept_columns=""):
    """What in a migration's statements the previous release may not survive. It has `kept_columns` in its models."""
    made = set()
    found = []
    for statement in (" ".join(each.split()) for each in statements):
        made |= set(re.findall(r"^CREATE TABLE (?:IF NOT EXISTS )?(\w+)", statement))
        dropped = re.findall(r"\bDROP COLUMN (?:IF EXISTS )?(\w+)", statement)
        if any(re.match(loose, statement) for loose in LOOSE) or _is_about(statement, made):
            continue
        found += [f"{statement}: {why}" for rule, why in RULES.items() if re.search(rule, statement)]
        found += [
            f"{statement}: the previous release uses {name}"
            for name in dropped
            if re.search(rf"\b{name}\b", kept_columns)
        ]
    return found


def _is_about(statement, tables):
    """Whether it is about a table that the same migration has made, which nobody knows yet."""
    about = re.search(r"^(?:ALTER TABLE|CREATE (?:UNIQUE )?INDEX.* ON) (\w+)", statement)
    return about is not None and about[1] in tables


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE targets",
        "DROP FUNCTION make_partition(text, date)",
        "ALTER TABLE runs RENAME COLUMN reason TO why",
        "ALTER TABLE runs ALTER COLUMN missed TYPE BIGINT",
        "ALTER TABLE runs ALTER COLUMN reason SET NOT NULL",
        "ALTER TABLE runs ADD COLUMN why TEXT NOT NULL",
        "UPDATE tasks SET note = ''",
        "CREATE INDEX ix_tasks_note ON tasks (note)",
        "CREATE UNIQUE INDEX CONCURRENTLY uq_tasks_note ON tasks (note)",
        "ALTER TABLE tasks ADD CONSTRAINT ck_tasks_note CHECK (note <> '')",
        "ALTER TABLE tasks DROP COLUMN note",
    ],
)
def test_what_the_previous_release_does_not_survive_is_told(statement):
    assert breaches(["CREATE TABLE notes ()", statement], "note: Mapped[str]")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE INDEX ix_notes_text ON notes (text)",
        "ALTER TABLE notes ADD CONSTRAINT ck_notes_text CHECK (text <> '')",
        "CREATE INDEX CONCURRENTLY ix_tasks_note ON tasks (note)",
        "CREATE INDEX ix_runs_note ON ONLY runs (note)",
        "CREATE INDEX IF NOT EXISTS ix_runs_note ON ONLY runs (note)",
        "ALTER TABLE runs ADD COLUMN why TEXT",
        "ALTER TABLE runs ADD COLUMN held BOOLEAN DEFAULT false NOT NULL",
        "ALTER TABLE tasks ADD CONSTRAINT ck_tasks_note CHECK (note <> '') NOT VALID",
        "ALTER TABLE tasks DROP COLUMN gone",
        "CREATE FUNCTION forget() RETURNS void AS $$ BEGIN\nDELETE FROM runs; DROP TABLE x; END $$",
        "UPDATE alembic_version SET version_num='0011'",
    ],
)
def test_what_it_survives_is_let_through(statement):
    assert breaches(["CREATE TABLE notes ()", statement], "note: Mapped[str]") == []


@pytest.fixture(scope="module")
def previous(tmp_path_factory):
    """The files of the previous release."""
    if not releases.is_there():  # GitHub's job fetches the history: tests/unit/test_workflows.py holds it to that
        pytest.skip("needs git, and the history of this repository")
    return releases.extract(tmp_path_factory.mktemp("release") / "previous")


@pytest.fixture
def empty(template):
    """The URL of a database without a schema."""
    with new_database(f"{DATABASE}_empty") as url:
        yield url


def git(root, *words):
    who = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)


def test_the_previous_release_is_the_newest_tag_before_this_commit(tmp_path):
    need("git", there=shutil.which("git"))
    git(tmp_path, "init")
    seen = []
    for tag in (None, "v1.0.0", "v1.1.0-rc1", None, "v1.1.0", "other"):
        git(tmp_path, "commit", "--allow-empty", "-m", "x")
        if tag:
            git(tmp_path, "tag", tag)
        seen.append(releases.previous(tmp_path))
    assert seen == [releases.STAND_IN, releases.STAND_IN, "v1.0.0", "v1.0.0", "v1.0.0", "v1.1.0"]


def newest(root):
    return max(path.name for path in (root / "alembic/versions").glob("0*.py"))[:4]


def upgrade(url, monkeypatch, to):
    """Migrates in this process; returns what was sent."""
    from app import settings  # noqa: PLC0415 - only after the environment stands

    monkeypatch.setenv("DATABASE_URL", url)
    settings.load.cache_clear()
    sent = []

    def note(_connection, _cursor, statement, *_):
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        command.upgrade(Config(ROOT / "alembic.ini"), to)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
        monkeypatch.undo()
        settings.load.cache_clear()
    return sent


def test_the_previous_release_survives_each_migration_since(previous, empty, monkeypatch):
    models = (previous / "app/models.py").read_text()
    since = newest(previous)
    upgrade(empty, monkeypatch, since)
    later = sorted(path.name[:4] for path in (ROOT / "alembic/versions").glob("0*.py") if path.name[:4] > since)
    found = {number: breaches(upgrade(empty, monkeypatch, number), models) for number in later}
    assert {number: told for number, told in found.items() if told} == {}, "see Migrations in CONTRIBUTING.md"


def test_a_migration_that_finds_a_table_in_use_keeps_nobody_waiting(empty, monkeypatch):
    upgrade(empty, monkeypatch, "0010")
    address = make_url(empty).set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg.connect(address)) as reader, closing(psycopg.connect(address, autocommit=True)) as other:
        reader.execute("SELECT FROM tasks")  # as a backup does, for as long as it takes
        with migrating(empty, "0011") as (job, said):
            poll(lambda: any("a table is in use" in line for line in said), within=20)
            assert longest_update(other, seconds=4) < 3  # it waits for 0.2 s at a time, and others behind it
            assert schema(other) == "0010"
            reader.rollback()
            assert job.wait(20) == 0
        assert schema(other) == "0011"


@contextmanager
def migrating(url, to):
    """A migration job, with the lines that it says as they come."""
    words = [sys.executable, "-m", "alembic", "upgrade", to]
    env = os.environ | {"DATABASE_URL": url}
    said = []
    with subprocess.Popen(words, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as job:
        reading = threading.Thread(target=lambda: said.extend(job.stderr))
        reading.start()
        try:
            yield job, said
        finally:
            job.kill()
            reading.join()


def longest_update(connection, seconds):
    longest, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        asked = time.monotonic()
        connection.execute("UPDATE tasks SET note = note")
        longest = max(longest, time.monotonic() - asked)
    return longest


def schema(connection):
    return connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]


def test_the_previous_releases_own_tests_pass_on_this_schema(template, previous, tmp_path):
    """What it sends to PostgreSQL when it fires, claims, records and answers. Its tests, its code, our migrations."""
    root = tmp_path / "previous"
    shutil.copytree(previous, root)
    shutil.rmtree(root / "alembic/versions")
    shutil.copytree(ROOT / "alembic/versions", root / "alembic/versions")
    tests = [f"tests/integration/test_{name}.py" for name in ("dispatch", "runs", "api_tasks")]
    ours = ("PUNCTUAL_", "CI")  # what is missing here was looked for already
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | GIVEN
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=root,
        env=env,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 50
