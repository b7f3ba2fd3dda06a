"""Fires as a beat does when nothing else is due: what the broker confirmed is marked at once."""

from app import dispatch


def fire(publish, task_ids):
    fired = dispatch.fire(publish, task_ids)
    dispatch.mark_queued(fired.sent)
    return fired
