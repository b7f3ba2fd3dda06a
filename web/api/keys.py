"""Keys: who may do what."""

from typing import Any

from app import api_keys, db, models, queries
from web import access, auth, schemas
from web.blueprint import Blueprint

Fields = dict[str, Any]

blp = Blueprint("keys", "Who may do what.")


@blp.serves("POST", "/keys", keeps_answer=False)
@blp.takes(access.NewKeySchema)
@blp.gives(201, access.MadeKeySchema)
def create(fields: Fields) -> api_keys.Made:
    """Makes a key and shows it, this once."""
    with auth.transaction() as session:
        return api_keys.create(session, db.now(session), fields)


@blp.serves("GET", "/keys")
@blp.takes(schemas.PageQuerySchema, "query")
@blp.gives(200, access.KeyPageSchema)
def index(wanted: Fields) -> queries.Page[models.ApiKey]:
    """Lists keys, newest first, without what opens."""
    with auth.transaction() as session:
        return queries.api_keys(session, **wanted)


@blp.serves("DELETE", "/keys/<string:key_id>")
@blp.gives(204)
@blp.refuses(404)
def revoke(key_id: str) -> None:
    """Revokes a key for good; within 5 seconds it is refused everywhere."""
    with auth.transaction() as session:
        api_keys.revoke(session, db.now(session), key_id)
    auth.forget(key_id)
