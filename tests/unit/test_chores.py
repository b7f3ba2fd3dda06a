"""When a chore has its next turn."""

from uuid import uuid4

import pytest

from app import clock, dispatch
from beat.chores import BESIDE, Chore, Chores, Done


@pytest.fixture
def now(monkeypatch):
    """A clock that goes on where it is told to."""
    moment = [100.0]
    monkeypatch.setattr(clock, "monotonic", lambda: moment[0])
    return moment


@pytest.mark.parametrize(
    ("share", "more", "next_at"), [(1.0, True, 102.0), (1.0, False, 107.0), (0.1, True, 120.0), (0.1, False, 107.0)]
)
def test_one_that_can_wait_rests_while_there_is_more_to_do(now, share, more, next_at):
    def work():
        now[0] += 2
        return Done(1, more=more)

    chore = Chore(name="work", every=5, step=work, share=share)
    Chores(None, Done).turn(chore)
    assert chore.next_at == pytest.approx(next_at)


@pytest.mark.parametrize("held", [set(), {3}])
def test_the_audit_path_hurries_only_where_its_beat_rings_nothing(monkeypatch, held):
    def fire(_publish, _overdue, limit):
        return dispatch.Fired(runs=[], next_run_at={uuid4(): None for _ in range(limit)})

    monkeypatch.setattr(dispatch, "fire_overdue", fire)

    class Publisher:
        publish = None

    done = Chores(Publisher(), Done, lambda: held).fire_overdue()
    assert done == (Done(BESIDE, more=False) if held else Done(dispatch.BATCH, more=True))
