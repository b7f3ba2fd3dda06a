"""What is told of a run's move once it is committed: it is counted, and the trace of a run that has ended ends."""

from collections.abc import Sequence
from functools import partial

from sqlalchemy.orm import Session

from app import db, metrics, traces
from app.messages import Ticket
from app.states import OPEN, Reason, RunState


def tell(tickets: Sequence[Ticket], state: RunState, reason: Reason | None = None) -> None:
    """Tells that these runs came to a state."""
    metrics.moved(state, reason, len(tickets))
    if state not in OPEN:
        for ticket in tickets:
            traces.ended(ticket, state)


def tell_after(session: Session, tickets: Sequence[Ticket], state: RunState, reason: Reason | None = None) -> None:
    """The same once the session's work is committed."""
    db.after(session, partial(tell, tickets, state, reason))
