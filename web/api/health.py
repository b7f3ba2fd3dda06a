"""Health: what load balancers and people ask before anything else."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

from app import bell, broker, db, errors
from web import schemas
from web.blueprint import Blueprint

STORES: dict[str, Callable[[], None]] = {"database": db.ping, "redis": bell.ping, "broker": broker.ping}

FRESH = 1.0
"""Seconds for which what was found holds."""

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
    away = _away()
    if away:
        raise errors.Unavailable(f"Away: {', '.join(away)}.", errors={store: ["Does not answer."] for store in away})
    return {"status": "ready", "stores": dict.fromkeys(STORES, "ready")}


class _Looked:
    """What was found last. Whoever asks meanwhile waits for it: probes by the thousand are one look a second."""

    lock = Lock()
    until = -math.inf
    away: tuple[str, ...] = ()


def _away() -> tuple[str, ...]:
    """The stores that do not answer."""
    with _Looked.lock:
        if time.monotonic() >= _Looked.until:
            with ThreadPoolExecutor(len(STORES)) as pool:  # together: a probe does not wait for three timeouts
                reached = pool.map(answers, STORES.values())
                _Looked.away = tuple(store for store, there in zip(STORES, reached, strict=True) if not there)
            _Looked.until = time.monotonic() + FRESH
        return _Looked.away


def answers(ping: Callable[[], None]) -> bool:
    """Whether a store's ping comes back."""
    try:
        ping()
    except errors.Unavailable:
        return False
    return True
