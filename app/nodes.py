"""What beats and workers tell of themselves: one row each, renewed about once a second."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, delete, false, func, select, true
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.models import Node
from app.states import NodeKind

PRESENT = timedelta(seconds=5)
"""A node that was not seen for so long is taken for gone."""

FORGOTTEN = timedelta(minutes=1)
"""And after so long its row goes, by whoever writes next."""


def announce(session: Session, kind: NodeKind, name: str, uptime: timedelta, details: dict[str, Any]) -> None:
    """Says that a node is there, for `uptime` by now, and clears away rows of nodes long gone. One statement."""
    now = func.statement_timestamp()
    # whoever else clears the same rows away right now is left to it, and nobody waits for anybody
    gone = select(Node.name).where(Node.seen_at < now - FORGOTTEN, Node.name != name).with_for_update(skip_locked=True)
    row = insert(Node).values(name=name, kind=kind, started_at=now - uptime, seen_at=now, details=details)
    session.execute(
        row.on_conflict_do_update(
            index_elements=["name"], set_={"seen_at": row.excluded.seen_at, "details": row.excluded.details}
        ).add_cte(delete(Node).where(Node.name.in_(gone)).cte("cleared"))
    )


def is_present(node: Node, now: datetime) -> bool:
    return now - node.seen_at < PRESENT


def tick_age(beat: Node, now: datetime) -> timedelta:
    """How long ago a beat's last tick was, as far as it has told."""
    return max(now - beat.seen_at, timedelta(0)) + timedelta(seconds=beat.details["last_tick_age"])


def leave(session: Session, name: str) -> None:
    """Says that a node stops."""
    session.execute(delete(Node).where(Node.name == name))


def offering(session: Session, target: str) -> set[str]:
    """The queues whose workers, each that is there right now, can run this system target. One of an earlier release
    may not, and would take its message for a stranger's."""
    can = func.coalesce(Node.details["system"].contains([target]), false())
    return {queue for queue, all_can in _by_queue(session, func.bool_and(can)).items() if all_can}


def processes(session: Session) -> dict[str, int]:
    """How many processes consume each queue right now, by what their workers said in the last seconds."""
    return _by_queue(session, func.sum(Node.details["processes"].as_integer()))


def _by_queue(session: Session, what: ColumnElement[Any]) -> dict[str, Any]:
    """Something of all workers that are there right now, by the queues that they consume."""
    queues = func.jsonb_array_elements_text(Node.details["queues"]).table_valued("name")
    rows = session.execute(
        select(queues.c.name, what.label("what"))
        .select_from(Node)
        .join(queues, true())
        .where(Node.kind == NodeKind.WORKER, Node.seen_at > func.statement_timestamp() - PRESENT)
        .group_by(queues.c.name)
    )
    return {row.name: row.what for row in rows}
