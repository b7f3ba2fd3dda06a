"""What travels over the broker: names, the header that ties a message to its run, and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID, uuid4

HEADER = "punctual"
"""The message header that holds the ticket. A message without it is an ordinary Celery call, unrecorded."""

OWN = "punctual."
"""How the names of Punctual's own targets and tasks begin. A task is a system task where its target does: no client
registers, changes or deletes one, and lists leave them out unless their target is asked for."""

CANARY = "punctual.canary"
"""The target of the canaries, see `app.canary`."""

WEBHOOK = "punctual.webhook"
EMAIL = "punctual.email"
"""The targets of notifications, see `app.notifications`."""

PACK = "punctual.pack"
"""The Celery task that works through a pack. Its one argument is what `Pack.encode` makes."""

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


BEGIN_WITHIN = timedelta(seconds=2)
"""After the claim of a pack none of its runs begins later than this."""


@lru_cache(maxsize=64)  # what travels together has the same slot, and was sent at the same time
def _shown(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()


@lru_cache(maxsize=64)
def _read(text: str) -> datetime:
    return datetime.fromisoformat(text)


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
    sent_at: datetime | None = field(default=None, compare=False)
    """When it was handed to the broker, by PostgreSQL's clock, where the run's row did not know it yet."""
    backfill: bool = field(default=False, compare=False)
    """Its slot was over when the run was asked for: it cannot be late."""

    @property
    def is_promised(self) -> bool:
        """Whether its start is the one that lateness is measured by."""
        return self.attempt == 1 and not self.backfill

    def named(self) -> dict[str, Any]:
        """What tells it from others, for logs and traces."""
        return {"task": str(self.task), "run": str(self.run), "attempt": self.attempt}

    def encode(self) -> dict[str, Any]:
        return {
            "task": str(self.task),
            "run": str(self.run),
            "slot": _shown(self.slot),
            "attempt": self.attempt,
            "sent_at": _shown(self.sent_at) if self.sent_at else None,
        } | ({"backfill": True} if self.backfill else {})

    @classmethod
    def decode(cls, raw: object) -> "Ticket":
        """Raises TicketError where `raw` is not what `encode` made."""
        if not isinstance(raw, Mapping):
            raise TicketError(raw)
        try:
            sent_at = raw.get("sent_at")
            return cls(
                task=UUID(raw["task"]),
                run=UUID(raw["run"]),
                slot=_read(raw["slot"]),
                attempt=int(raw["attempt"]),
                sent_at=_read(sent_at) if sent_at else None,
                backfill=bool(raw.get("backfill")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise TicketError(raw) from exc

    @classmethod
    def read(cls, raw: object) -> "Ticket | None":
        """The ticket, or None where there is none that can be read."""
        try:
            return cls.decode(raw)
        except TicketError:
            return None


class Message(NamedTuple):
    """One attempt of one run, on its way to a worker."""

    ticket: Ticket
    target: str
    queue: str
    priority: int
    args: list[Any]
    kwargs: dict[str, Any]
    timeout: timedelta

    @property
    def id(self) -> UUID:
        return self.ticket.run

    @property
    def messages(self) -> tuple["Message", ...]:
        """What it carries, as for a pack."""
        return (self,)


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Several runs of one target, queue and priority, in one message."""

    id: UUID
    messages: tuple[Message, ...]

    @property
    def target(self) -> str:
        return self.messages[0].target

    @property
    def queue(self) -> str:
        return self.messages[0].queue

    @property
    def priority(self) -> int:
        return self.messages[0].priority

    @property
    def timeout(self) -> timedelta:
        """The longest that one of its runs may take."""
        return max(message.timeout for message in self.messages)

    @classmethod
    def of(cls, messages: Sequence[Message]) -> "Pack":
        return cls(id=uuid4(), messages=tuple(messages))

    def encode(self) -> dict[str, Any]:
        return {
            "id": str(self.id),
            "target": self.target,
            "queue": self.queue,
            "priority": self.priority,
            "runs": [
                [message.ticket.encode(), message.args, message.kwargs, message.timeout.total_seconds()]
                for message in self.messages
            ],
        }

    @classmethod
    def decode(cls, raw: object) -> "Pack":
        """Raises TicketError where `raw` is not what `encode` made."""
        if not isinstance(raw, Mapping):
            raise TicketError(raw)
        try:
            common = {name: raw[name] for name in ("target", "queue", "priority")}
            messages = [
                Message(
                    ticket=Ticket.decode(ticket), args=args, kwargs=kwargs, timeout=timedelta(seconds=timeout), **common
                )
                for ticket, args, kwargs, timeout in raw["runs"]
            ]
            return cls(id=UUID(raw["id"]), messages=tuple(messages))
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise TicketError(raw) from exc


Parcel = Message | Pack
"""What one message of the broker carries."""


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
