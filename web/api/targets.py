"""Targets: what can be called."""

from typing import Any

from app import db, queries
from web import schemas
from web.blueprint import Blueprint

blp = Blueprint("targets", "What a task can call.")


@blp.serves("GET", "/targets")
@blp.gives(200, schemas.TargetPageSchema)
def index() -> dict[str, Any]:
    """Lists what the workers offer."""
    with db.transaction() as session:
        return {"items": queries.targets(session), "next": None}
