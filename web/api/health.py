"""Health: what load balancers and people ask before anything else."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from app import bell, broker, canary, db, errors
from web import auth, schemas
from web.blueprint import Blueprint
from web.look import Look

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
@blp.takes(schemas.ReadinessQuerySchema, "query")
@blp.gives(200, schemas.ReadinessSchema)
@blp.refuses(503)
def stores(wanted: dict[str, Any]) -> dict[str, Any]:
    """Tells whether the stores answer, and with `deep` whether the canary of every queue sings too."""
    asked = [wanted["store"]] if "store" in wanted else list(STORES)
    missing = [store for store in away() if store in asked]
    if missing:
        does_not_answer = {store: ["Does not answer."] for store in missing}
        raise errors.Unavailable(f"Away: {', '.join(missing)}.", errors=does_not_answer)
    told: dict[str, Any] = {"status": "ready", "stores": dict.fromkeys(asked, "ready")}
    return told | {"canaries": _canaries()} if wanted["deep"] else told


def _canaries() -> dict[str, float]:
    """By queue the seconds since the canary's last run. Raises Unavailable where one is silent, or none is there."""
    songs = canaries()
    silent = {song.queue: [f"Silent for {song.age.total_seconds():.0f} s."] for song in songs if song.is_silent}
    if silent or not songs:
        raise errors.Unavailable(
            f"The canary is silent on: {', '.join(silent)}." if silent else "No queue has a canary.", errors=silent
        )
    return {song.queue: round(song.age.total_seconds(), 3) for song in songs}


def _find_away() -> tuple[str, ...]:
    """The stores that do not answer."""
    with ThreadPoolExecutor(len(STORES)) as pool:  # together: a probe does not wait for three timeouts
        reached = pool.map(answers, STORES.values())
        return tuple(store for store, there in zip(STORES, reached, strict=True) if not there)


def _find_songs() -> list[canary.Song]:
    with auth.transaction() as session:  # whoever asks needs no key
        return canary.songs(session, db.now(session))


def answers(ping: Callable[[], None]) -> bool:
    """Whether a store's ping comes back."""
    try:
        ping()
    except errors.Unavailable:
        return False
    return True


away = Look(find=_find_away, fresh=FRESH)
canaries = Look(find=_find_songs, fresh=FRESH)
