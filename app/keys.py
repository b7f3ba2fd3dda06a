"""How statements name runs: by id and slot, which finds the partition, and by the attempt that they speak for. And what
a run becomes that its worker lets go of.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Integer,
    Select,
    SmallInteger,
    SQLColumnExpression,
    TableValuedAlias,
    Text,
    Uuid,
    any_,
    case,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.types import TypeEngine

from app import db, errors
from app.messages import Ticket
from app.models import Run
from app.states import RunState


def ticket(run: Run) -> Ticket:
    """The ticket of a run's current attempt."""
    return Ticket(task=run.task_id, run=run.id, slot=run.scheduled_for, attempt=run.attempt)


def tag(run: Run) -> str:
    """Stands for a run as it is: another one stands for it once it has moved."""
    return f"{run.state}.{run.attempt}" if run.cancel_reason is None else f"{run.state}.{run.attempt}.cancelling"


def require(run: Run, wanted: str | None) -> None:
    """Raises Stale where a run is not as this tag says."""
    if wanted is not None and wanted != tag(run):
        raise errors.Stale


def fence(ticket: Ticket) -> tuple[Any, ...]:
    """The conditions that a run is at this attempt."""
    return Run.id == ticket.run, Run.scheduled_for == ticket.slot, Run.attempt == ticket.attempt


def attempts(**more: TypeEngine[Any]) -> TableValuedAlias:
    """Attempts of runs as a table to join with, and with each what else is to be known of it: see `given`."""
    return db.rows("wanted", id=Uuid(), slot=DateTime(timezone=True), attempt=SmallInteger(), **more)


def given(tickets: Sequence[Ticket], **more: Iterable[Any]) -> dict[str, list[Any]]:
    """The parameters of a statement with the table that `attempts` made."""
    return db.arrays(
        "wanted",
        id=(ticket.run for ticket in tickets),
        slot=(ticket.slot for ticket in tickets),
        attempt=(ticket.attempt for ticket in tickets),
        **more,
    )


def among(wanted: TableValuedAlias) -> Any:
    """The condition that a run is at one of the attempts that `attempts` made."""
    return (Run.id == wanted.c.id) & (Run.scheduled_for == wanted.c.slot) & (Run.attempt == wanted.c.attempt)


def at(wanted: TableValuedAlias, states: Collection[RunState]) -> Any:
    """The same, and in one of these states.

    Each must be one look-up by the primary key, which also finds the partition. PostgreSQL knows little of a table that
    a burst fills and empties in seconds: it takes the runs in a state, or of a span of time, for a handful, and would
    scan for them first. So nothing is asked of a run alone: even its state is asked only once its key was found.
    """
    return among(wanted) & case((wanted.c.attempt.is_not(None), Run.state)).in_(sorted(states))


def in_state(*states: RunState) -> ColumnElement[bool]:
    """The condition that a run is in one of these states, for statements that ask for no run by its key.

    They stand in the statement itself. As parameters PostgreSQL does not know them when it plans for a statement that
    it has prepared: then no index of some states alone will do, and it reads every run there is.
    """
    return Run.state.in_([literal_column(f"'{state}'", Text) for state in sorted(states)])


def open_runs(run: Any, task_id: SQLColumnExpression[UUID], *conditions: SQLColumnExpression[bool]) -> Select[Any]:
    """A query for the open runs of a task that another table names; `run` is Run, or an alias of it.

    Each must be a look at the task's own place in `ix_runs_open_task`, which alone knows of `finished_at`: a run has it
    where it has ended, and only there. Asked for states, PostgreSQL takes an index that begins with them, reads every
    open run and holds each of them against each task: behind a backlog of some ten thousand a burst would take longer
    than a statement may.
    """
    return select(literal_column("1", Integer)).where(run.task_id == task_id, run.finished_at.is_(None), *conditions)


def looked_up(column: Any, value: SQLColumnExpression[UUID]) -> ColumnElement[bool]:
    """The condition that a column with an index is what another table says: one look-up for each of its rows, whatever
    size PostgreSQL takes the table of the column for.

    By an equality it could as well read the whole table in the order of the index, as a merge join would. Where that
    held three rows when a plan was made it looks cheaper, and the plan stays when there are a million. An array has no
    such order.
    """
    return column == any_(array([value]))  # type: ignore[no-any-return]


def released(state: RunState) -> dict[str, Any]:
    """The values of a run that its worker gives back: `state`, or cancelled where that was wished meanwhile."""
    wished = Run.cancel_reason.is_not(None)
    return {
        "state": case((wished, RunState.CANCELLED), else_=state),
        "reason": Run.cancel_reason,
        "finished_at": case((wished, func.statement_timestamp())),
    }
