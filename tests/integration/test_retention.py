"""What goes, what stays, and what a beat that dies half-way leaves to the next one."""

import gzip
import json
import logging
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError

from app import archive, db, settings
from app.states import OPEN
from beat import keeper

TODAY = datetime.now(UTC).date()
OLD = (TODAY - timedelta(days=15 * 31)).replace(day=1)
"""A month that is older than what is kept."""


@pytest.fixture
def given(monkeypatch):
    """Sets settings of this test."""

    def give(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))
        settings.load.cache_clear()

    yield give
    monkeypatch.undo()
    settings.load.cache_clear()


@pytest.fixture
def old(database):
    """An old month with its partitions; gone afterwards whatever became of it."""
    after = (OLD + timedelta(days=32)).replace(day=1)
    names = [f"{table}_{OLD:%Y_%m}" for table in ("runs", "attempts")]
    with db.transaction() as session:
        for table, name in zip(("runs", "attempts"), names, strict=True):
            bounds = f"FROM ('{OLD} 00:00:00+00') TO ('{after} 00:00:00+00')"
            session.execute(text(f"CREATE TABLE {name} PARTITION OF {table} FOR VALUES {bounds}"))
    yield
    with db.transaction() as session:
        for name in names:
            session.execute(text(f"DROP TABLE IF EXISTS {name}"))


def record(task_id, slots, state="succeeded"):
    """Runs of a task, each with an attempt before its last."""
    one = {"task": UUID(str(task_id)), "state": state}
    rows = [one | {"id": uuid4(), "slot": slot, "ended": None if state in OPEN else slot} for slot in slots]
    with db.transaction() as session:
        session.execute(
            text(
                "INSERT INTO runs (id, task_id, scheduled_for, task_name, target, queue, trigger, missed, state,"
                " attempt, fired_at, finished_at, result)"
                " VALUES (:id, :task, :slot, E'a\\nname', 'debug.echo', 'default', 'schedule', 0,"
                ' :state, 2, :slot, :ended, \'{"text": "a\\nline, \\u0022quoted\\u0022"}\')'
            ),
            rows,
        )
        session.execute(
            text(
                "INSERT INTO attempts (run_id, scheduled_for, attempt, finished_at, outcome)"
                " VALUES (:id, :slot, 1, :slot, 'failed')"
            ),
            rows,
        )


def in_old(count):
    return [datetime(OLD.year, OLD.month, 1, tzinfo=UTC) + timedelta(minutes=n) for n in range(count)]


def ago(**length):
    return datetime.now(UTC) - timedelta(**length)


def count(table):
    with db.transaction() as session:
        return session.scalar(text(f"SELECT count(*) FROM {table}"))


def is_there(name):
    with db.transaction() as session:
        return session.scalar(text("SELECT to_regclass(:name) IS NOT NULL"), {"name": name})


def connect(url):
    return psycopg.connect(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False))


def read(folder, name):
    return [json.loads(line) for line in gzip.open(folder / f"{name}.jsonl.gz", "rt")]


def test_an_old_month_is_archived_row_by_row_and_dropped_and_the_young_stay(old, register, given, tmp_path):
    task = register()
    given(PUNCTUAL_ARCHIVE_PATH=tmp_path)
    record(task["id"], in_old(1_500))
    record(task["id"], [ago(days=2)])
    keeper.Keeper().turn()
    assert [is_there(f"{table}_{OLD:%Y_%m}") for table in ("runs", "attempts")] == [False, False]
    assert (count("runs"), count("attempts")) == (1, 1)
    runs, attempts = (read(tmp_path, f"{table}_{OLD:%Y_%m}") for table in ("runs", "attempts"))
    assert {datetime.fromisoformat(run["scheduled_for"]) for run in runs} == set(in_old(1_500))
    assert len(runs) == 1_500
    assert {attempt["run_id"] for attempt in attempts} == {run["id"] for run in runs}
    assert runs[0]["result"] == {"text": 'a\nline, "quoted"'}
    assert runs[0]["task_name"] == "a\nname"
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600, 0o600]


def test_a_month_with_a_run_that_has_not_ended_stays_until_it_has(old, register, given):
    task = register()
    record(task["id"], in_old(3))
    record(task["id"], [in_old(4)[-1]], state="running")
    keeper.Keeper().turn()
    assert count("runs") == 4
    with db.transaction() as session:
        session.execute(text("UPDATE runs SET state = 'failed', finished_at = now() WHERE state = 'running'"))
    keeper.Keeper().turn()
    assert count("runs") == 0


def test_for_ever_is_for_ever(old, register, given):
    given(PUNCTUAL_KEEP_RUNS_DAYS=0)
    record(register()["id"], in_old(3))
    keeper.Keeper().turn()
    assert count("runs") == 3


def test_what_a_beat_that_died_has_left_is_finished_by_the_next(old, register, given, tmp_path, monkeypatch):
    given(PUNCTUAL_ARCHIVE_PATH=tmp_path)
    record(register()["id"], in_old(20))

    class Died(BaseException):
        pass

    def die(*_):
        raise Died

    for step in ("_count", "_put"):
        with monkeypatch.context() as patch:
            patch.setattr(archive, step, die)
            with pytest.raises(Died):
                keeper.Keeper().turn()
        assert is_there(f"runs_{OLD:%Y_%m}")
        assert count("runs") == 0  # out of sight already
    (tmp_path / "left.partial").touch()
    keeper.Keeper().turn()
    assert len(read(tmp_path, f"runs_{OLD:%Y_%m}")) == 20
    assert len(list(tmp_path.iterdir())) == 2
    assert not is_there(f"runs_{OLD:%Y_%m}")


def test_a_month_is_not_dropped_where_its_archive_lacks_a_row(old, register, given, tmp_path, monkeypatch):
    given(PUNCTUAL_ARCHIVE_PATH=tmp_path)
    record(register()["id"], in_old(20))
    counted = archive._count
    with monkeypatch.context() as patch:
        patch.setattr(archive, "_count", lambda *given: counted(*given) - 1)
        with pytest.raises(psycopg.DataError, match="has 20 rows, and 19 were archived"):
            keeper.Keeper().turn()
    assert is_there(f"runs_{OLD:%Y_%m}")
    keeper.Keeper().turn()
    assert not is_there(f"runs_{OLD:%Y_%m}")


def test_where_nothing_can_be_written_nothing_is_taken_out_of_use(old, register, given, tmp_path):
    given(PUNCTUAL_ARCHIVE_PATH=tmp_path / "nowhere")
    record(register()["id"], in_old(2))
    with pytest.raises(OSError, match="nowhere"):
        keeper.Keeper().turn()
    assert count("runs") == 2


def test_an_archive_is_never_written_over_by_another_one(tmp_path):
    for content in (b"one", b"two", b"two"):
        fresh = tmp_path / "x.partial"
        fresh.write_bytes(content)
        archive._put(fresh, tmp_path, "runs_2025_01")
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"two", b"one"]


def test_who_uses_the_table_is_not_ended_and_keeps_nobody_waiting(old, register, database, caplog):
    caplog.set_level(logging.INFO)
    record(register()["id"], in_old(2))
    with closing(connect(database)) as reader:
        reader.execute("SELECT count(*) FROM runs")  # its transaction goes on
        waited = []

        def write():
            time.sleep(0.05)  # into the wait for the lock
            began = time.monotonic()
            with db.transaction() as session:
                session.execute(text("SELECT FROM runs LIMIT 1"))
            waited.append(time.monotonic() - began)

        thread = threading.Thread(target=write)
        thread.start()
        keeper.Keeper().turn()
        thread.join()
        assert "the table was in use" in caplog.text
        assert waited[0] < 2.5
        assert count("runs") == 2
    keeper.Keeper().turn()
    assert count("runs") == 0


def test_one_beat_at_a_time(old, register, database, eventually):
    record(register()["id"], in_old(2))
    with closing(connect(database)) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [db.Lock.KEEP])
        assert keeper.Keeper().turn() is False
        assert count("runs") == 2
    eventually(keeper.Keeper().turn)  # the other's end may take a moment
    assert count("runs") == 0


def test_of_each_task_as_many_stay_as_are_wanted_and_all_of_the_last_day(register, given):
    given(PUNCTUAL_KEEP_RUNS_PER_TASK=3)
    often, seldom, strict = register(), register(), register(pause_after_failures=5)
    for task in (often, strict):
        record(task["id"], [ago(days=2, minutes=n) for n in range(9)])
    record(often["id"], [ago(days=3)], state="retrying")
    record(seldom["id"], [ago(days=2), ago(days=300)])
    fresh = register()
    record(fresh["id"], [ago(hours=1, minutes=n) for n in range(9)])
    keeper.Keeper().prune()
    with db.transaction() as session:
        rows = session.execute(text("SELECT task_id::text, count(*) FROM runs GROUP BY task_id"))
        left = dict(tuple(row) for row in rows)
    assert left == {often["id"]: 4, strict["id"]: 5, seldom["id"]: 2, fresh["id"]: 9}
    assert count("attempts") == count("runs")


def test_runs_of_the_systems_own_tasks_go_after_two_days(register):
    task, other = register(), register()
    for each in (task, other):
        record(each["id"], [ago(days=1.9), ago(days=2.1)])
    with db.transaction() as session:
        session.execute(text("UPDATE tasks SET target = 'punctual.canary' WHERE id = :id"), {"id": task["id"]})
    keeper.Keeper().prune()
    with db.transaction() as session:
        rows = session.execute(text("SELECT task_id::text, count(*) FROM runs GROUP BY task_id"))
        assert dict(tuple(row) for row in rows) == {task["id"]: 1, other["id"]: 2}


@pytest.mark.parametrize(("days", "left"), [(7, 1), (400, 2)])
def test_what_lies_in_no_month_that_can_go_goes_row_by_row(register, given, days, left):
    given(PUNCTUAL_KEEP_RUNS_DAYS=days)
    task = register()
    record(task["id"], [ago(days=1), ago(days=8), ago(days=900)])
    keeper.Keeper().prune()
    assert count("runs") == left


def test_a_deleted_task_goes_when_its_last_run_has(client, register):
    task, young = register(), register()
    for each in (task, young):
        assert client.delete(f"/api/v1/tasks/{each['id']}").status_code == 204
    age = text("UPDATE tasks SET updated_at = now() - interval '401 days' WHERE id = :id")
    with db.transaction() as session:
        session.execute(age, {"id": task["id"]})
    record(task["id"], [ago(days=2)])
    keeper.Keeper().prune()
    assert count("tasks") == 2
    with db.transaction() as session:
        session.execute(text("TRUNCATE runs"))
    keeper.Keeper().prune()
    assert count("tasks") == 1


def test_a_slot_whose_run_has_gone_is_not_run_again(client, register, given):
    task = register(starts_at="2020-01-01T00:00:00Z")
    record(task["id"], [ago(days=2, hours=n) for n in range(3)])
    given(PUNCTUAL_KEEP_RUNS_PER_TASK=3)
    for since in (ago(days=500), ago(days=3)):
        asked = {"since": since.isoformat(), "until": (since + timedelta(days=1)).isoformat()}
        answer = client.post(f"/api/v1/tasks/{task['id']}/backfill", json=asked)
        assert answer.status_code == 422
        assert "are kept from" in answer.json["errors"]["since"][0]
    assert count("runs") == 3


@pytest.mark.parametrize(
    "call",
    [
        f"detach_month('{TODAY.replace(day=1)}')",
        f"detach_month('{OLD + timedelta(days=1)}')",
        f"drop_month('{(TODAY - timedelta(days=27)).replace(day=1)}', NULL, NULL)",  # 28 days after its end it may go
        "drop_month(NULL, NULL, NULL)",
    ],
)
def test_the_functions_let_go_of_no_young_month(database, call):
    with pytest.raises(DBAPIError, match="no month that may go"), db.transaction() as session:
        session.execute(text(f"SELECT {call}"))


def test_the_functions_drop_no_month_that_is_in_use(old):
    with pytest.raises(DBAPIError, match="is in use"), db.transaction() as session:
        session.execute(text("SELECT drop_month(:month, NULL, NULL)"), {"month": OLD})


def test_the_functions_forget_no_young_run_and_none_that_has_not_ended(register):
    task = register()["id"]
    record(task, [ago(hours=23)])
    record(task, [ago(hours=25)], state="queued")
    with db.transaction() as session:
        gone = "SELECT forget_runs(array_agg(id), array_agg(scheduled_for)) FROM runs"
        assert session.scalar(text(gone)) == 0
        assert session.scalar(text("SELECT forget_tasks(array_agg(id)) FROM tasks")) == 0
