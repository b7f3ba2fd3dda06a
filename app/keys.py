"""How statements name runs: by id and slot, which finds the partition, and by the attempt that they speak for."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import DateTime, SmallInteger, TableValuedAlias, Uuid, case
from sqlalchemy.types import TypeEngine

from app import db
from app.messages import Ticket
from app.models import Run
from app.states import RunState


def ticket(run: Run) -> Ticket:
    """The ticket of a run's current attempt."""
    return Ticket(task=run.task_id, run=run.id, slot=run.scheduled_for, attempt=run.attempt)


def fence(ticket: Ticket) -> tuple[Any, ...]:
    """The conditions that a run is at this attempt."""
    return Run.id == ticket.run, Run.scheduled_for == ticket.slot, Run.attempt == ticket.attempt


def among(keys: Sequence[tuple[UUID, datetime]]) -> Any:
    """The condition that a run is one of these, by id and slot."""
    ids, slots = zip(*keys, strict=True)
    wanted = db.rows("wanted", id=(Uuid(), ids), slot=(DateTime(timezone=True), slots))
    return (Run.id == wanted.c.id) & (Run.scheduled_for == wanted.c.slot)


def attempts(tickets: Sequence[Ticket], **more: tuple[TypeEngine[Any], Sequence[Any]]) -> TableValuedAlias:
    """These attempts as a table to join with, and with each what else is to be known of it."""
    return db.rows(
        "wanted",
        id=(Uuid(), [ticket.run for ticket in tickets]),
        slot=(DateTime(timezone=True), [ticket.slot for ticket in tickets]),
        attempt=(SmallInteger(), [ticket.attempt for ticket in tickets]),
        **more,
    )


def at(wanted: TableValuedAlias, states: Collection[RunState]) -> Any:
    """The condition that a run is at one of the attempts that `attempts` made, and in one of these states.

    Each must be one look-up by the primary key, which also finds the partition. PostgreSQL knows little of a table that
    a burst fills and empties in seconds: it takes the runs in a state, or of a span of time, for a handful, and would
    scan for them first. So nothing is asked of a run alone: even its state is asked only once its key was found.
    """
    return (
        (Run.id == wanted.c.id)
        & (Run.scheduled_for == wanted.c.slot)
        & (Run.attempt == wanted.c.attempt)
        & case((wanted.c.attempt.is_not(None), Run.state)).in_(sorted(states))
    )
