"""What a worker tells of arguments to who watches it, Flower or `celery inspect`: without what looks like a secret.

A run's arguments go to the workers as they are and stand so in its record; here only what is shown is masked. What is
a secret is told by its name, wherever it lies; and in an address, the password and what the query names so.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from celery.utils.saferepr import saferepr
from celery.worker.request import Request

MASK = "***"
MAX_SHOWN = 1024
"""Characters, as Celery's own are cut."""

ELSEWHERE = "kept in the run's record"

SECRET = re.compile(
    r"passw|pwd|passphrase|secret|token|credential|authoriz|cookie|signature|private.?key|api.?key|access.?key|^auth$|^key$",
    re.IGNORECASE,
)
USER_INFO = re.compile(r"(?<=://)[^/?#@\s]+(?=@)")
IN_QUERY = re.compile(r"([?&]([^=&#\s]+)=)[^&#\s]+")
SCHEME = re.compile(r"\b(Bearer|Basic|Digest)\s+\S+", re.IGNORECASE)


class MaskedRequest(Request):  # type: ignore[misc]
    """A message in the worker's main process that shows its arguments masked, whatever its sender said of them."""

    @property
    def argsrepr(self) -> str:
        return _shown(_by_position(self.task, self.args or ()))

    @property
    def kwargsrepr(self) -> str:
        return _shown(masked(self.kwargs or {}))

    def info(self, safe: bool = False) -> dict[str, Any]:  # noqa: ARG002, FBT001, FBT002 - Celery's own signature
        return dict(super().info(safe=True)) | {"args": self.argsrepr, "kwargs": self.kwargsrepr}

    def send_event(self, type: str, **fields: Any) -> Any:  # noqa: A002 - Celery's own signature
        """Says nothing of results: nothing tells which part of one is a secret."""
        return super().send_event(type, **fields | ({"result": ELSEWHERE} if "result" in fields else {}))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.humaninfo()}>"


def masked(value: Any, name: str = "") -> Any:
    """A value without what is a secret in it; `name` is what it is called."""
    if SECRET.search(name) and value not in (None, "", False, True):
        return MASK
    if isinstance(value, Mapping):
        return {key: masked(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([masked(inner) for inner in value])
    return without_secrets(value) if isinstance(value, str) else value


def _by_position(task: Any, args: Sequence[Any]) -> list[Any]:
    """Arguments by position have the names of the target's parameters."""
    try:
        names = list(inspect.signature(task.run).parameters)
    except (TypeError, ValueError):
        names = []
    names += [""] * (len(args) - len(names))
    return [masked(value, name) for value, name in zip(args, names, strict=False)]


def without_secrets(text: str) -> str:
    """A text without the passwords and tokens of the addresses in it."""

    def hide(found: re.Match[str]) -> str:
        return f"{found[1]}{MASK}" if SECRET.search(found[2]) else found[0]

    return SCHEME.sub(rf"\1 {MASK}", IN_QUERY.sub(hide, USER_INFO.sub(MASK, text)))


def _shown(value: Any) -> str:
    return str(saferepr(value, maxlen=MAX_SHOWN))
