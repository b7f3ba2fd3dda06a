"""How statements name runs: by id and slot, which finds the partition, and by the attempt that they speak for."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import DateTime, SmallInteger, TableValuedAlias, Uuid
from sqlalchemy.types import TypeEngine

from app import db
from app.messages import Ticket
from app.models import Run


def ticket(run: Run) -> Ticket:
    """The ticket of a run's current attempt."""
    return Ticket(task=run.task_id, run=run.id, slot=run.scheduled_for, attempt=run.attempt)


def fence(ticket: Ticket) -> tuple[Any, ...]:
    """The conditions that a run is at this attempt."""
    return Run.id == ticket.run, Run.scheduled_for == ticket.slot, Run.attempt == ticket.attempt


def among(keys: Sequence[tuple[UUID, datetime]]) -> Any:
    """The condition that a run is one of these, by id and slot.

    The keys come as arrays, so that each is one look-up; a list of tuples would be scanned for. The bounds
    tell the planner which partitions can be left out.
    """
    ids, slots = zip(*keys, strict=True)
    wanted = db.rows("wanted", id=(Uuid(), ids), slot=(DateTime(timezone=True), slots))
    return _found(wanted, slots)


def attempts(tickets: Sequence[Ticket], **more: tuple[TypeEngine[Any], Sequence[Any]]) -> TableValuedAlias:
    """These attempts as a table to join with, and with each what else is to be known of it."""
    return db.rows(
        "wanted",
        id=(Uuid(), [ticket.run for ticket in tickets]),
        slot=(DateTime(timezone=True), [ticket.slot for ticket in tickets]),
        attempt=(SmallInteger(), [ticket.attempt for ticket in tickets]),
        **more,
    )


def at(wanted: TableValuedAlias, tickets: Sequence[Ticket]) -> Any:
    """The condition that a run is at one of the attempts that `attempts` made of these tickets."""
    return _found(wanted, [ticket.slot for ticket in tickets]) & (Run.attempt == wanted.c.attempt)


def _found(wanted: TableValuedAlias, slots: Sequence[datetime]) -> Any:
    return (
        (Run.id == wanted.c.id)
        & (Run.scheduled_for == wanted.c.slot)
        & Run.scheduled_for.between(min(slots), max(slots))
    )
