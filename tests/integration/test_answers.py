"""First answers by idempotency key, on a real PostgreSQL."""

import threading
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from app import answers, db, errors
from app.models import Answer

pytestmark = pytest.mark.usefixtures("database")


def request(key="k", given=None, route="punctual.create_task"):
    return answers.Request(route=route, key=key, given=given or {"a": 1})


def once(asked, answer, *, wait=False, later=timedelta(0)):
    with db.transaction() as session:
        return answers.once(session, db.now(session) + later, asked, lambda: answer, wait=wait)


def test_a_repeat_gets_the_first_answer_and_does_nothing():
    assert once(request(), {"n": 1}) == {"n": 1}
    assert once(request(), {"n": 2}) == {"n": 1}


def test_keys_of_one_route_say_nothing_about_another():
    once(request(), 1)
    assert once(request(route="punctual.run_task"), 2) == 2


def test_the_same_key_with_something_else_is_refused():
    once(request(given={"a": 1, "b": [2]}), 1)
    assert once(request(given={"b": [2], "a": 1}), 2) == 1
    with pytest.raises(errors.Invalid) as caught:
        once(request(given={"a": 1, "b": [3]}), 2)
    assert caught.value.errors == {"idempotency_key": ["This key came with something else before."]}


def test_a_request_that_failed_leaves_nothing_and_may_be_repeated():
    def fail():
        raise errors.Conflict("taken")

    with pytest.raises(errors.Conflict, match="taken"), db.transaction() as session:
        answers.once(session, db.now(session), request(), fail, wait=False)
    assert once(request(given={"a": 2}), 1) == 1


def test_an_answer_is_kept_for_a_day():
    once(request(), 1)
    assert once(request(), 2, later=answers.KEPT - timedelta(minutes=1)) == 1
    assert once(request(given={"b": 1}), 2, later=answers.KEPT + timedelta(minutes=1)) == 2


def test_old_answers_are_forgotten_in_batches():
    for n in range(3):
        once(request(key=str(n)), n)
    once(request(key="new"), 1, later=timedelta(minutes=5))
    with db.transaction() as session:
        later = db.now(session) + answers.KEPT + timedelta(minutes=1)
        assert answers.forget(session, later, limit=2) == 2
        assert answers.forget(session, later) == 1
        assert list(session.scalars(select(Answer.key))) == ["new"]


def test_a_key_that_is_being_answered_is_refused_or_waited_for():
    asked, held, go = request(), threading.Event(), threading.Event()

    def slow():
        held.set()
        assert go.wait(5)
        return "first"

    def first():
        with db.transaction() as session:
            answers.once(session, db.now(session), asked, slow, wait=False)

    waited = []
    threads = [
        threading.Thread(target=first),
        threading.Thread(target=lambda: waited.append(once(asked, "second", wait=True))),
    ]
    threads[0].start()
    assert held.wait(5)
    with pytest.raises(errors.Conflict, match="still being answered"):
        once(asked, "second")
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join(5)
    assert waited == ["first"]
    with db.transaction() as session:
        assert session.scalar(select(func.count()).select_from(Answer)) == 1
