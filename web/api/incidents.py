"""Incidents: what is not well, since when, and what was."""

from typing import Any

from app import models, queries
from web import auth
from web import schemas as web_schemas
from web.blueprint import Blueprint

Fields = dict[str, Any]

blp = Blueprint("incidents", "What is not well.")


@blp.serves("GET", "/incidents")
@blp.takes(web_schemas.IncidentsQuerySchema, "query")
@blp.gives(200, web_schemas.IncidentPageSchema)
def index(wanted: Fields) -> queries.Page[models.Incident]:
    """Lists incidents, newest first: tasks that failed for good, were late, missed slots or were paused by Punctual."""
    with auth.transaction() as session:
        return queries.incidents(session, **wanted)
