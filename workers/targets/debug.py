"""Targets to try Punctual out with."""

import time
from typing import Any

from app.broker import celery_app


@celery_app.task(name="debug.echo")  # type: ignore[untyped-decorator]
def echo(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Returns its arguments."""
    return {"args": list(args), "kwargs": kwargs}


@celery_app.task(name="debug.sleep", packable=False)  # type: ignore[untyped-decorator]
def sleep(seconds: float) -> float:
    """Sleeps, and returns for how many seconds."""
    time.sleep(seconds)
    return seconds


@celery_app.task(name="debug.fail", bind=True)  # type: ignore[untyped-decorator]
def fail(self: Any, times: int | None = None) -> str:
    """Fails the first `times` attempts, or always."""
    attempt = self.request.retries + 1
    if times is None or attempt <= times:
        raise RuntimeError(f"attempt {attempt} fails, as asked")
    return f"attempt {attempt} succeeds"
