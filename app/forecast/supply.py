"""Who is there to do the work: the processes that the workers have, or may have with their autoscaling."""

from collections import Counter

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import db, nodes
from app.forecast.model import Pool
from app.models import Node
from app.states import NodeKind


def pools(session: Session) -> list[Pool]:
    """The processes of the workers that are present, by the queues that they serve."""
    now = db.now(session)
    found: Counter[frozenset[str]] = Counter()
    for node in session.scalars(select(Node).where(Node.kind == NodeKind.WORKER)):
        if nodes.is_present(node, now):
            # a worker of an earlier release does not tell how many it may have
            most = int(node.details.get("most") or node.details["processes"])
            found[frozenset(node.details["queues"])] += most
    return [Pool(queues=queues, processes=processes) for queues, processes in found.items()]
