"""What is asked often and found once: for probes and scrapes, however many come."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

Found = TypeVar("Found")


@dataclass(kw_only=True)
class Look(Generic[Found]):
    """What was found last, which holds for `fresh` seconds. Whoever asks while somebody looks waits for it."""

    find: Callable[[], Found]
    fresh: float
    _lock: Lock = field(default_factory=Lock)
    _until: float = -math.inf
    _found: Found | None = None

    def __call__(self) -> Found:
        """Raises what `find` raises, and then looks again at the next call."""
        with self._lock:
            if time.monotonic() >= self._until or self._found is None:
                self._found = self.find()
                self._until = time.monotonic() + self.fresh
            return self._found

    def forget(self) -> None:
        """The next call looks."""
        self._until = -math.inf
