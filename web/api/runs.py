"""Runs: read, cancel, run again."""

import threading
import time
from typing import Any
from uuid import UUID

from app import attempts, db, keys, models, queries, runs, schemas
from app.states import OPEN
from web import auth
from web import schemas as web_schemas
from web.blueprint import Blueprint

Fields = dict[str, Any]

LOOK_EVERY = 0.2
"""Seconds between two looks at a run that is waited for."""

MAX_WAITING = 8
"""Requests of a process that wait at once, of its 16 threads: one more is answered without waiting, and asks again."""

_waiting = threading.BoundedSemaphore(MAX_WAITING)

blp = Blueprint("runs", "What ran, when, and what became of it.")


@blp.serves("GET", "/runs")
@blp.takes(web_schemas.RunsQuerySchema, "query")
@blp.gives(200, web_schemas.RunPageSchema)
def index(wanted: Fields) -> queries.Page[models.Run]:
    """Lists runs, newest slot first."""
    with auth.reading() as session:
        return queries.runs(session, **wanted)


@blp.serves("GET", "/runs/<uuid:run_id>")
@blp.takes(web_schemas.WaitSchema, "query")
@blp.gives(200, schemas.RunDetailSchema, headers=("ETag",))
@blp.refuses(404)
def show(wanted: Fields, run_id: UUID) -> tuple[queries.RunDetail, dict[str, str]]:
    """Shows a run with its attempts, at once or when it has ended."""
    detail = _read(run_id)
    end = time.monotonic() + wanted["wait"]
    if wanted["wait"] and detail.run.state in OPEN and _waiting.acquire(blocking=False):
        try:
            while detail.run.state in OPEN and time.monotonic() < end:
                time.sleep(min(LOOK_EVERY, max(end - time.monotonic(), 0)))
                detail = _read(run_id)
        finally:
            _waiting.release()
    return detail, tag(detail.run)


def _read(run_id: UUID) -> queries.RunDetail:
    """In a transaction of its own: none is held while a request waits."""
    with auth.transaction() as session:
        return queries.run(session, run_id)


@blp.serves("POST", "/runs/<uuid:run_id>/cancel")
@blp.takes(web_schemas.IfMatchRunSchema, "headers")
@blp.gives(200, schemas.RunSchema, headers=("ETag",))
@blp.refuses(404, 409, 412, 428)
def cancel(wanted: Fields, run_id: UUID) -> tuple[models.Run, dict[str, str]]:
    """Cancels a run: one that waits never starts, one that runs is ended by its worker."""
    with auth.transaction() as session:
        run = runs.cancel(session, db.now(session), run_id, tag=wanted["tag"])
    return run, tag(run)


@blp.serves("POST", "/runs/<uuid:run_id>/retry")
@blp.takes(web_schemas.IfMatchRunSchema, "headers")
@blp.gives(200, schemas.RunSchema, headers=("ETag",))
@blp.refuses(404, 409, 412, 428)
def retry(wanted: Fields, run_id: UUID) -> tuple[models.Run, dict[str, str]]:
    """Runs a failed run again: a further attempt under the same id."""
    with auth.transaction() as session:
        run = attempts.run_again(session, db.now(session), run_id, tag=wanted["tag"])
    return run, tag(run)


def tag(run: models.Run) -> dict[str, str]:
    """The header that names a run's state, for If-Match."""
    return {"ETag": f'"{keys.tag(run)}"'}
