"""The class of the targets that speak to people."""

from typing import Any

from app import messages
from workers.execution import RecordedTask
from workers.verdicts import GiveUp


class NotTaken(RuntimeError):
    """Whoever is told is away, or did not take it: it is tried again."""


class Notice(RecordedTask):
    """A target that only runs of Punctual's own call: a message that stands for no run would have it send anything to
    anybody."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.request.called_directly or (self.request.headers or {}).get(messages.HEADER)):
            raise GiveUp(f"{self.name} tells of incidents; nobody else calls it.")
        return super().__call__(*args, **kwargs)
