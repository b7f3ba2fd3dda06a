"""Targets: what can be called."""

from typing import Any

from app import queries
from web import auth, schemas
from web.blueprint import Blueprint

blp = Blueprint("targets", "What a task can call.")


@blp.serves("GET", "/targets")
@blp.gives(200, schemas.TargetPageSchema)
def index() -> dict[str, Any]:
    """Lists what the workers offer."""
    with auth.transaction() as session:
        return {"items": queries.targets(session), "next": None}
