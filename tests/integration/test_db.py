"""Transactions that end in time, whatever the server does."""

import os
import time
from datetime import UTC, datetime
from uuid import uuid4

import plans
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from app import db, errors, runs
from app.messages import Ticket

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def impatient(monkeypatch):
    """A new engine whose transactions may take half a second."""
    monkeypatch.setattr(db, "PATIENCE", 0.5)
    db.engines().usual.dispose()
    db.engines.cache_clear()
    yield
    db.engines().usual.dispose()
    db.engines.cache_clear()


def test_a_transaction_that_outlives_its_time_is_ended_and_the_next_one_works(impatient):
    started = time.monotonic()
    with pytest.raises(errors.Unavailable), db.transaction() as session:
        session.execute(text("SELECT pg_sleep(30)"))
    assert time.monotonic() - started < 4  # and not after 5, which a statement may take
    db.ping()


def test_a_transaction_in_time_is_left_alone(impatient):
    with db.transaction() as session:
        session.execute(text("SELECT pg_sleep(0.2)"))
    time.sleep(0.8)  # past the time, had it gone on
    db.ping()


def test_a_childs_transactions_are_watched_too(impatient):
    db.ping()
    child = os.fork()
    if not child:
        db.forget()
        code = 1
        try:
            with db.transaction() as session:
                session.execute(text("SELECT pg_sleep(4)"))
        except errors.Unavailable:
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    db.ping()


def test_what_is_to_fork_has_connected_and_holds_no_connection(impatient):
    db.prepare()
    pool = db.engines().usual.pool
    assert (pool.checkedin(), pool.checkedout()) == (0, 0)
    db.ping()


@pytest.mark.parametrize(
    ("condition", "found"),
    [("id = %(given)s", True), ("state = %(given)s", False), ("state = 'active' AND next_run_at < now()", True)],
)
def test_a_statement_is_known_by_its_plan_where_no_index_leads_to_its_rows_for_any_parameters(condition, found):
    """What every test looks at, of each statement that is planned once."""
    with db.transaction() as session:
        driver = session.connection().connection.driver_connection
        looks = list(plans.looks(driver, f"SELECT 1 FROM tasks WHERE {condition}", {"given": "x"}))
    assert [plans.is_by_key(look) for look in looks] == [found]


def test_a_process_that_asks_for_it_has_planned_once_what_may_be_and_nothing_else(impatient, monkeypatch):
    asked = text("SELECT current_setting('plan_cache_mode')")
    with db.transaction(planned=True) as session:
        assert session.scalar(asked) == "auto"
    monkeypatch.setattr(db._Habits, "plans_once", True)
    db.engines().usual.dispose()
    db.engines.cache_clear()
    for _ in range(2):  # on one connection in turn
        with db.transaction(planned=True) as session:
            assert session.scalar(asked) == "force_generic_plan"
        with db.statement() as session:
            assert session.scalar(asked) == "force_generic_plan"
        with db.transaction() as session:
            assert session.scalar(asked) == "force_custom_plan"


def test_what_goes_straight_to_the_driver_waits_for_a_postgresql_that_is_away_as_all_else_does(monkeypatch):
    """Else its worker would take the message for done, and forget the run or its outcome."""
    nowhere = db.make_engine(SecretStr("postgresql+psycopg://nobody@127.0.0.1:1/nothing"))
    monkeypatch.setattr(db, "engines", lambda: db.Engines(nowhere, nowhere, nowhere, nowhere))
    ticket = Ticket(task=uuid4(), run=uuid4(), slot=datetime(2026, 6, 1, tzinfo=UTC), attempt=1)
    for step in (lambda: runs.claim(ticket, "w@h"), lambda: runs.succeed(ticket, None), db.ping):
        with pytest.raises(errors.Unavailable):
            step()
