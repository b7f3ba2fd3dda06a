"""What a client asked of the API, and what it was answered. Pure, and kept as JSON. Knows neither HTTP nor slots."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

Schedule = Mapping[str, Any]


class Deed(StrEnum):
    """What a call does to a task."""

    REGISTER = "register"
    CHANGE = "change"
    """Sets another schedule."""
    PAUSE = "pause"
    RESUME = "resume"
    """From now on; what fell into the pause is not made up for."""
    DELETE = "delete"


class Answer(StrEnum):
    """What is known of a call's effect."""

    ACKNOWLEDGED = "acknowledged"
    """It holds, from the answer on at the latest."""
    REFUSED = "refused"
    """It has no effect: a 4xx, or nobody listened."""
    UNKNOWN = "unknown"
    """It may hold, at any time after it was asked: a 5xx, a timeout, a connection that was cut."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call on one task. A bulk call is kept as one of these per task."""

    task: str
    """The task's name: known also of one whose registration was never answered."""
    deed: Deed
    asked_at: datetime
    answered_at: datetime
    """For an unknown one, when the client gave up."""
    answer: Answer
    schedule: Schedule | None = None
    """Of REGISTER and CHANGE: as it was answered, else as it was sent."""
    status: int | None = None


@dataclass(frozen=True, kw_only=True)
class History:
    """All calls of one client, in the order in which they were asked."""

    calls: tuple[Call, ...]

    def dump(self) -> str:
        """As JSON; a time is RFC 3339."""
        return json.dumps([asdict(call) for call in self.calls], default=datetime.isoformat)

    @classmethod
    def load(cls, text: str) -> "History":
        return cls(calls=tuple(_call(fields) for fields in json.loads(text)))


def _call(fields: dict[str, Any]) -> Call:
    read = {
        "deed": Deed(fields["deed"]),
        "answer": Answer(fields["answer"]),
        "asked_at": datetime.fromisoformat(fields["asked_at"]),
        "answered_at": datetime.fromisoformat(fields["answered_at"]),
    }
    return Call(**fields | read)
