"""The audit log: who changed what."""

from typing import Any

from app import models, queries
from web import access, auth
from web.blueprint import Blueprint

Fields = dict[str, Any]

blp = Blueprint("audit", "Who changed what.")


@blp.serves("GET", "/audit")
@blp.takes(access.AuditQuerySchema, "query")
@blp.gives(200, access.AuditPageSchema)
def index(wanted: Fields) -> queries.Page[models.AuditEntry]:
    """Lists changes that people and apps made, newest first."""
    with auth.transaction() as session:
        return queries.audit(session, **wanted)
