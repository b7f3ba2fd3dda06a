"""Health: what load balancers and people ask before anything else."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from app import bell, broker, db, errors
from web import schemas
from web.blueprint import Blueprint

STORES: dict[str, Callable[[], None]] = {"database": db.ping, "redis": bell.ping, "broker": broker.ping}

blp = Blueprint("health", "Whether it works.", base="")


@blp.serves("GET", "/healthz")
@blp.gives(200, schemas.HealthSchema)
def process() -> dict[str, str]:
    """Tells that this process answers, whatever the stores do."""
    return {"status": "ok"}


@blp.serves("GET", "/readyz")
@blp.gives(200, schemas.ReadinessSchema)
@blp.refuses(503)
def stores() -> dict[str, Any]:
    """Tells whether every store answers."""
    with ThreadPoolExecutor(len(STORES)) as pool:  # together: a probe does not wait for three timeouts
        away = [store for store, reached in zip(STORES, pool.map(answers, STORES.values()), strict=True) if not reached]
    if away:
        raise errors.Unavailable(f"Away: {', '.join(away)}.", errors={store: ["Does not answer."] for store in away})
    return {"status": "ready", "stores": dict.fromkeys(STORES, "ready")}


def answers(ping: Callable[[], None]) -> bool:
    """Whether a store's ping comes back."""
    try:
        ping()
    except errors.Unavailable:
        return False
    return True
