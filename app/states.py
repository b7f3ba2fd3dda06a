"""States, reasons and allowed moves, of tasks and runs. Knows no tables."""

from enum import StrEnum


class TaskState(StrEnum):
    """Where a task stands."""

    ACTIVE = "active"
    """Its slots are fired. A person pauses or deletes it; `dispatch` completes it when no slot is left."""
    PAUSED = "paused"
    """No slot is fired until a person resumes it."""
    COMPLETED = "completed"
    """No slot is left. A change of its schedule that brings a slot makes it active again."""
    DELETED = "deleted"
    """Gone for clients, kept for its runs."""


class RunState(StrEnum):
    """Where a run stands, and who moves it on."""

    PENDING = "pending"
    """Committed, not surely sent: `dispatch` and the chore `publish_pending` send it."""
    QUEUED = "queued"
    """The broker has confirmed it: a worker claims it. Another app's worker does not: its answer ends the run."""
    RUNNING = "running"
    """A worker has claimed it and records its outcome, or gives it back where it was claimed in a pack and not begun;
    `rescue_lost` where that worker is gone."""
    RETRYING = "retrying"
    """An attempt failed: `publish_retries` makes it pending at `retry_at`."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """No attempt is left. A person may ask for a further one."""
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    """Recorded, never executed."""


class Role(StrEnum):
    """What the holder of a key may do. Each includes those before it."""

    VIEWER = "viewer"
    """Reads."""
    OPERATOR = "operator"
    """Runs, pauses, resumes, cancels, retries."""
    EDITOR = "editor"
    """Creates, changes, deletes."""
    ADMIN = "admin"
    """Manages keys, reads the audit log."""

    def includes(self, other: "Role") -> bool:
        roles = list(Role)
        return roles.index(other) <= roles.index(self)


class Span(StrEnum):
    """What a summary is of."""

    MINUTE = "minute"
    HOUR = "hour"


class Via(StrEnum):
    """By which way somebody changed something."""

    API = "api"
    PAGE = "page"
    CELERY = "celery"


class Subject(StrEnum):
    """What is changed by somebody."""

    TASK = "task"
    RUN = "run"
    KEY = "key"


class Action(StrEnum):
    """What was done by somebody."""

    CREATE = "create"
    CHANGE = "change"
    PAUSE = "pause"
    RESUME = "resume"
    DELETE = "delete"
    RUN = "run"
    BACKFILL = "backfill"
    CANCEL = "cancel"
    RETRY = "retry"
    REVOKE = "revoke"


class NodeKind(StrEnum):
    """What a process that tells of itself is."""

    BEAT = "beat"
    WORKER = "worker"


class Reason(StrEnum):
    """Why a run ended as it did, where the state alone does not say."""

    ERROR = "error"
    TIMEOUT = "timeout"
    LOST = "lost"
    REJECTED = "rejected"
    BY_USER = "by_user"
    OVERLAP = "overlap"
    TASK_DELETED = "task_deleted"
    MISSED = "missed"
    PAUSED = "paused"


class Trigger(StrEnum):
    """What made a run."""

    SCHEDULE = "schedule"
    MANUAL = "manual"
    BACKFILL = "backfill"


class Trouble(StrEnum):
    """In which way a task is not well: the kinds of incidents."""

    FAILED = "failed"
    """A run of it failed for good. It is well again when a later one succeeds, or that one when it is retried."""
    LATE = "late"
    """A run of it has not started when it should have. It is well again when a later one starts in time."""
    MISSED = "missed"
    """A slot of it has no run of its own. It is well again when a later one is fired in time."""
    PAUSED = "paused"
    """Punctual paused it, no person did. It is well again when it is resumed."""


class Ending(StrEnum):
    """How an incident came to its end."""

    WELL = "well"
    DELETED = "deleted"
    """Its task was deleted."""
    OVER = "over"
    """Its task has no slot left that could show that it is well."""


class Told(StrEnum):
    """What was last told of an incident, where anything was."""

    OPENED = "opened"
    CLOSED = "closed"
    NOTHING = "nothing"
    """Nobody was to be told when it opened; so nobody is when it is over."""


class Overlap(StrEnum):
    """What becomes of a slot while an earlier run of its task is open."""

    ALLOW = "allow"
    SKIP = "skip"
    """It is recorded as skipped."""
    QUEUE = "queue"
    """It is held until the earlier one has ended; while one is held already, it is skipped."""
    CANCEL = "cancel"
    """The earlier one is cancelled, and it is held until that has ended."""


class Catchup(StrEnum):
    """What becomes of slots that could not be fired in time."""

    LATEST = "latest"
    ALL = "all"
    NONE = "none"


WAITING = frozenset({RunState.PENDING, RunState.QUEUED, RunState.RETRYING})
"""Not yet claimed by any worker in this attempt: these may still be cancelled without touching a worker."""

CLAIMABLE = frozenset({RunState.PENDING, RunState.QUEUED})
"""A worker may hold the message before its confirm came back, so a pending run can be claimed too."""

OPEN = WAITING | {RunState.RUNNING}
"""Not ended."""

OTHERWISE = frozenset({RunState.FAILED, RunState.CANCELLED, RunState.SKIPPED})
"""Ended, and not as it was meant to."""

ANSWERS = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.RETRYING})
"""Where the answer of another app moves a run that no worker of ours has claimed, or that it never came."""

MOVES: dict[RunState, frozenset[RunState]] = {
    RunState.PENDING: frozenset({RunState.QUEUED, RunState.RUNNING, RunState.CANCELLED}) | ANSWERS,
    RunState.QUEUED: frozenset({RunState.PENDING, RunState.RUNNING, RunState.CANCELLED}) | ANSWERS,
    RunState.RUNNING: frozenset(
        {RunState.SUCCEEDED, RunState.FAILED, RunState.RETRYING, RunState.PENDING, RunState.CANCELLED}
    ),
    RunState.RETRYING: frozenset({RunState.PENDING, RunState.CANCELLED}),
    RunState.FAILED: frozenset({RunState.RETRYING}),
}
"""Every allowed move. What is not named here is final."""


def sources(to: RunState) -> frozenset[RunState]:
    """The states from which a run may move to `to`."""
    return frozenset(state for state, targets in MOVES.items() if to in targets)
