"""Back-off between the attempts of a run. Pure."""

from datetime import timedelta


def delay(attempt: int, *, backoff: timedelta, backoff_max: timedelta, jitter: bool, draw: float) -> timedelta:
    """How long to wait after `attempt`, counted from 1, has failed: doubling, bounded and, with jitter, drawn
    from all of it, so that runs that failed together do not come back together. `draw` is in [0, 1)."""
    doublings = min(attempt - 1, 40)  # beyond any bound that a task may have, and below what overflows
    full = min(backoff.total_seconds() * 2**doublings, backoff_max.total_seconds())
    return timedelta(seconds=full * draw if jitter else full)
