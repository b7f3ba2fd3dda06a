"""Runs: read, cancel, run again."""

from typing import Any
from uuid import UUID

from app import attempts, db, models, queries, runs, schemas
from web import schemas as web_schemas
from web.blueprint import Blueprint

Fields = dict[str, Any]

blp = Blueprint("runs", "What ran, when, and what became of it.")


@blp.serves("GET", "/runs")
@blp.takes(web_schemas.RunsQuerySchema, "query")
@blp.gives(200, web_schemas.RunPageSchema)
def index(wanted: Fields) -> queries.Page[models.Run]:
    """Lists runs, newest slot first."""
    with db.transaction() as session:
        return queries.runs(session, **wanted)


@blp.serves("GET", "/runs/<uuid:run_id>")
@blp.gives(200, schemas.RunDetailSchema)
@blp.refuses(404)
def show(run_id: UUID) -> queries.RunDetail:
    """Shows a run with its attempts."""
    with db.transaction() as session:
        return queries.run(session, run_id)


@blp.serves("POST", "/runs/<uuid:run_id>/cancel")
@blp.gives(200, schemas.RunSchema)
@blp.refuses(404, 409)
def cancel(run_id: UUID) -> models.Run:
    """Cancels a run: one that waits never starts, one that runs is ended by its worker."""
    with db.transaction() as session:
        return runs.cancel(session, db.now(session), run_id)


@blp.serves("POST", "/runs/<uuid:run_id>/retry")
@blp.gives(200, schemas.RunSchema)
@blp.refuses(404, 409)
def retry(run_id: UUID) -> models.Run:
    """Runs a failed run again: a further attempt under the same id."""
    with db.transaction() as session:
        return attempts.run_again(session, run_id)
