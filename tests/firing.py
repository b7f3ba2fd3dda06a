"""What a beat does while nothing else is due."""

from app import dispatch
from beat import chores


def fire(publish, task_ids):
    """Fires, and marks at once what the broker has confirmed."""
    fired = dispatch.fire(publish, task_ids)
    dispatch.mark_queued(fired.sent)
    return fired


def summarise():
    """Makes the summaries, however many turns of the chore that takes on a machine that stands still for a while."""
    while chores.summarise().more:
        pass
