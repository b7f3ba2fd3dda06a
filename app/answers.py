"""First answers, kept by idempotency key: a repeated request gets the answer of the first, and does nothing.

A request and its answer are one transaction, so a request that died half-way has left neither, and a repeat
starts afresh. REST and Celery calls share this; what an answer holds is theirs.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app import errors
from app.models import Answer

KEPT = timedelta(hours=24)

PATIENCE = 1.5
LOOK_EVERY = 0.05
"""Seconds. A web that dies over a request leaves its transaction behind until PostgreSQL sees that nobody is there any
more; meanwhile the gateway has sent the request to another web."""

BATCH = 5_000


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked, under which key, with what."""

    route: str
    key: str
    given: Any

    @property
    def digest(self) -> str:
        """The same for the same JSON, however its keys are ordered."""
        return hashlib.sha256(json.dumps(self.given, sort_keys=True).encode()).hexdigest()


def once(session: Session, now: datetime, request: Request, do: Callable[[], Any], *, wait: bool) -> Any:
    """The kept answer to a request, or that of `do`, JSON, which is kept from here on.

    While the same key is being answered elsewhere, this waits where `wait` says so, else for PATIENCE, and then raises
    Conflict. Raises Invalid where the key came with something else before. Errors of `do` are not kept.
    """
    _hold(session, request, wait=wait)
    kept = session.get(Answer, (request.route, request.key))
    if kept is not None and kept.created_at > now - KEPT:
        if kept.digest != request.digest:
            raise errors.Invalid(errors={"idempotency_key": ["This key came with something else before."]})
        return kept.answer
    values = {"digest": request.digest, "answer": do(), "created_at": now}
    key = {"route": request.route, "key": request.key}
    session.execute(insert(Answer).values(key | values).on_conflict_do_update(constraint="pk_answers", set_=values))
    return values["answer"]


def forget(session: Session, now: datetime, limit: int = BATCH) -> int:
    """Deletes answers that are kept no longer; returns their number."""
    old = select(Answer.route, Answer.key).where(Answer.created_at <= now - KEPT).limit(limit)
    gone = session.execute(delete(Answer).where(tuple_(Answer.route, Answer.key).in_(old)).returning(Answer.key))
    return len(gone.all())


def _hold(session: Session, request: Request, *, wait: bool) -> None:
    """Keeps others with the same key out until this transaction ends."""
    lock = func.hashtextextended(f"{request.route}\n{request.key}", 0)
    if wait:
        session.execute(select(func.pg_advisory_xact_lock(lock)))
        return
    end = time.monotonic() + PATIENCE
    while not session.scalar(select(func.pg_try_advisory_xact_lock(lock))):
        if time.monotonic() > end:
            raise errors.Conflict("A request with this idempotency key is still being answered.")
        time.sleep(LOOK_EVERY)
