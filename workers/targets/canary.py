"""`punctual.canary`: does nothing. That it was executed is what it says."""

from app import messages
from app.broker import celery_app


@celery_app.task(name=messages.CANARY, packable=False)  # type: ignore[untyped-decorator]
def canary() -> None:
    """Says that a queue is worked on."""
