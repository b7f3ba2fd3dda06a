"""Room for the months ahead: made by the chore, by a function that makes nothing else."""

from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DataError

from app import db
from beat import chores

AHEAD = (datetime.now(UTC).date().replace(day=1) + timedelta(days=3 * 31 + 15)).replace(day=1)
"""Some month that the chore makes room for."""


def make(parent, month):
    with db.transaction() as session:
        return session.scalar(text("SELECT make_partition(:parent, :month)"), {"parent": parent, "month": month})


def bounds(name):
    with db.transaction() as session:
        found = text("SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = :name")
        return session.scalar(found, {"name": name})


def drop(*names):
    with db.transaction() as session:
        for name in names:
            session.execute(text(f"DROP TABLE IF EXISTS {name}"))


@pytest.fixture
def month(database):
    """A month without its partitions; they are there again afterwards."""
    month = datetime.now(UTC).date().replace(day=1) + timedelta(days=62)
    month = month.replace(day=1)
    chores.make_partitions()  # those of a month that has begun since the database was made
    drop(f"runs_{month:%Y_%m}", f"attempts_{month:%Y_%m}")
    yield month
    chores.make_partitions()


def test_the_chore_makes_each_month_that_is_missing(month):
    assert chores.make_partitions() == chores.Done(work=2)
    after = (month + timedelta(days=32)).replace(day=1)
    for table in ("runs", "attempts"):
        assert bounds(f"{table}_{month:%Y_%m}") == (
            f"FOR VALUES FROM ('{month} 00:00:00+00') TO ('{after} 00:00:00+00')"
        )


def test_a_month_is_made_once(month):
    assert [make("runs", month) for _ in range(2)] == [True, False]


def test_a_month_whose_rows_lie_in_the_default_partition_stays_there_and_the_others_are_made(month, caplog):
    slot = datetime(month.year, month.month, 3, tzinfo=UTC)
    row = {"slot": slot}
    values = "gen_random_uuid(), :slot, 1, now(), 'failed'"
    columns = "run_id, scheduled_for, attempt, finished_at, outcome"
    with db.transaction() as session:
        session.execute(text(f"INSERT INTO attempts ({columns}) VALUES ({values})"), row)
    chores.make_partitions()
    assert f"no partition of attempts for {month}" in caplog.text
    assert bounds(f"attempts_{month:%Y_%m}") is None
    assert bounds(f"runs_{month:%Y_%m}") is not None
    with db.transaction() as session:
        session.execute(text("DELETE FROM attempts"))


@pytest.mark.parametrize(
    ("parent", "month"),
    [
        ("tasks", AHEAD),
        ("pg_class", AHEAD),
        ("runs; DROP TABLE runs", AHEAD),
        ("runs", AHEAD + timedelta(days=1)),
        ("runs", date(2020, 1, 1)),
        ("runs", AHEAD.replace(year=AHEAD.year + 2)),
    ],
)
def test_the_function_makes_nothing_else(database, parent, month):
    with pytest.raises(DataError, match="no partition of"):
        make(parent, month)
