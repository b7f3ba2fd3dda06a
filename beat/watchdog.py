"""The watchdog: ends a beat that hangs, so that its supervisor starts it again.

It counts how long a watched thread has given no sign (`app.pulse`). A store that is away is not a hang: each wait for
one is bounded, and gives a sign before and after it. What is left is what was never meant to take long.
"""

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redis.retry import Retry
from sqlalchemy import Engine, event

from app import db, pulse
from beat.node import Node

EVERY = 0.25
"""Seconds between two looks."""

HANGS = 70
"""The exit code of a beat that hung: EX_SOFTWARE."""

LAST_WORDS = 0.25
"""Seconds for the log line; what hangs may hold the lock of the log itself."""

PG_WAIT = db.PATIENCE * 1.1 + 2
"""PostgreSQL's waits end by themselves a little after PATIENCE, by db.Guard."""

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Watched:
    """A thread, its latest sign, and for how long there was no other."""

    name: str
    sign: pulse.Sign | None = None
    still: float = 0.0


class Watchdog(threading.Thread):
    """Looks at the watched threads, and keeps the health file fresh: it waits for nothing else.

    A machine that was suspended, or a process that was stopped, makes nobody hang: of the time between two looks no
    more than twice EVERY counts.
    """

    def __init__(self, node: Node, end: Callable[[int], Any] = os._exit) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.node = node
        self.end = end
        self.stopping = threading.Event()
        self.watched: dict[int, Watched] = {}

    def watch(self, thread: threading.Thread) -> None:
        """From its first sign on. Whoever is watched and dies hangs too."""
        assert thread.ident is not None
        self.watched[thread.ident] = Watched(name=thread.name)

    def run(self) -> None:
        looked_at = time.monotonic()
        written_at = 0.0
        while not self.stopping.wait(EVERY):
            now = time.monotonic()
            self.look(min(now - looked_at, 2 * EVERY))
            looked_at = now
            if now - written_at >= 1:
                self.node.write_health()
                written_at = now

    def look(self, passed: float) -> None:
        """Ends the process where a thread has given no sign for too long, `passed` seconds after the last look."""
        for ident, thread in tuple(self.watched.items()):
            sign = pulse.last(ident)
            if sign is not thread.sign:
                thread.sign, thread.still = sign, 0.0
            elif sign is not None:
                thread.still += passed
                if thread.still > sign.within:
                    self._end(ident, thread, sign)

    def _end(self, ident: int, thread: Watched, sign: pulse.Sign) -> None:
        frame = sys._current_frames().get(ident)  # noqa: SLF001 - the one way to another thread's stack
        stack = "".join(traceback.format_stack(frame)) if frame else "the thread has ended"
        text = "thread %s hangs in %r, for %.1f s by now: this process ends and is started again\n%s"
        words = threading.Thread(target=log.critical, args=(text, thread.name, sign.step, thread.still, stack))
        words.daemon = True
        words.start()
        words.join(LAST_WORDS)
        self.end(HANGS)


class SigningRetry(Retry):
    """Redis's retries, with a sign around each try: each is bounded by the client's timeouts, their sum is long."""

    def call_with_retry(self, do: Callable[[], Any], *args: Any, **options: Any) -> Any:
        def signing() -> Any:
            pulse.mark("Redis")
            answer = do()
            pulse.mark("Redis answered")
            return answer

        return super().call_with_retry(signing, *args, **options)


def sign_statements(engine: Engine) -> None:
    """A sign around each wait for PostgreSQL."""

    def before(*_: Any) -> None:
        pulse.mark("a statement", PG_WAIT)

    def after(*_: Any) -> None:
        pulse.mark("PostgreSQL answered")

    hosts = (engine.url.host or "").count(",") + len(engine.url.normalized_query.get("host", ())) + 1

    def connecting(*_: Any) -> None:
        pulse.mark("connecting to PostgreSQL", hosts * db.CONNECT_TIMEOUT + PG_WAIT)

    event.listen(engine, "do_connect", connecting)
    for name in ("before_cursor_execute", "commit", "rollback"):
        event.listen(engine, name, before)
    for name in ("after_cursor_execute", "connect", "checkout", "checkin"):
        event.listen(engine, name, after)
