"""What travels over the broker: names, the header that ties a message to its run, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

HEADER = "punctual"
"""The message header that holds the ticket. A message without it is an ordinary Celery call, unrecorded."""

DEFAULT_QUEUE = "default"
CALLS_QUEUE = "punctual"
DEAD_LETTERS = "punctual.dead"

RECORD_SUCCESS = "punctual.record_success"
RECORD_FAILURE = "punctual.record_failure"
"""The calls with which another app's worker answers for a run."""

HARD_LIMIT_GRACE = timedelta(seconds=5)
"""Between the soft limit, which a target may catch to clean up, and the hard one, which kills its process."""


EXTERNAL_GRACE = timedelta(seconds=30)
"""How long a message may lie in another app's queue. Then RabbitMQ drops it: what starts later could outlive the
attempt that it stands for."""


class TicketError(ValueError):
    """The header is there but cannot be read; `raw` is what it held."""

    def __init__(self, raw: object) -> None:
        super().__init__(f"not a ticket: {raw!r:.200}")
        self.raw = raw


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """Which attempt of which run a message stands for."""

    task: UUID
    run: UUID
    slot: datetime
    attempt: int

    def encode(self) -> dict[str, Any]:
        return {
            "task": str(self.task),
            "run": str(self.run),
            "slot": self.slot.astimezone(UTC).isoformat(),
            "attempt": self.attempt,
        }

    @classmethod
    def decode(cls, raw: object) -> "Ticket":
        """Raises TicketError where `raw` is not what `encode` made."""
        if not isinstance(raw, Mapping):
            raise TicketError(raw)
        try:
            return cls(
                task=UUID(raw["task"]),
                run=UUID(raw["run"]),
                slot=datetime.fromisoformat(raw["slot"]),
                attempt=int(raw["attempt"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise TicketError(raw) from exc


@dataclass(frozen=True, kw_only=True)
class Message:
    """One attempt of one run, on its way to a worker."""

    ticket: Ticket
    target: str
    queue: str
    priority: int
    args: list[Any]
    kwargs: dict[str, Any]
    timeout: timedelta


def answer_with(name: str, ticket: Ticket, options: Mapping[str, Any]) -> dict[str, Any]:
    """A Celery signature, as JSON, that has another app's worker call us with the ticket when a run has ended.

    Celery puts the result before it for a success, and the message's id, no more, for a failure.
    """
    return {
        "task": name,
        "args": [],
        "kwargs": {"ticket": ticket.encode()},
        "options": dict(options),
        "subtask_type": None,
        "immutable": False,
    }
