"""What a beat tells of itself: a row in PostgreSQL for `GET /cluster`, and a file for a probe on its own machine."""

import contextlib
import json
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from prometheus_client import Metric

from app import clock, db, exporter, nodes, publishing
from app.states import NodeKind
from beat import chores
from beat.leases import Leases

NAME = f"celerybeat-{uuid4().hex[:6]}@{socket.gethostname()}"
"""Unique: a second beat of the same name would be locked out of its control queue."""

REMEMBERED = 20
"""Entries that were set aside and are still shown, the latest ones."""

log = logging.getLogger(__name__)


class Node:
    """This beat. Its thread of ticks and its chores change it, its watchdog reads it."""

    def __init__(self, leases: Leases, health_file: Path | None) -> None:
        self.leases = leases
        self.health_file = health_file
        self.publishers: list[publishing.Publisher] = []
        self.unreadable: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)
        self.started_at = self.ticked_at = time.monotonic()
        self.failing = False

    def ticked(self) -> None:
        """A tick has ended, well or not."""
        self.ticked_at = time.monotonic()

    def set_aside(self, member: str, bucket: int) -> None:
        """Remembers a member of a bucket that is no entry. It may hold any character: it is kept as a literal."""
        self.unreadable.append({"bucket": bucket, "member": ascii(member)[:200], "at": clock.now().isoformat()})

    def health(self) -> dict[str, Any]:
        """Role, buckets and the age of the last tick."""
        held = sorted(self.leases.held())
        age = round(time.monotonic() - self.ticked_at, 3)
        return {"role": "leader" if held else "standby", "buckets": held, "last_tick_age": age}

    def gauges(self) -> Iterable[Metric]:
        """The same for Prometheus."""
        yield exporter.gauge("punctual_beat_buckets", "Buckets that this beat holds.", len(self.leases.held()))
        age = time.monotonic() - self.ticked_at
        yield exporter.gauge("punctual_beat_last_tick_age_seconds", "Since the end of this beat's last tick.", age)

    def announce(self) -> chores.Done:
        """The chore: says in PostgreSQL that this beat is there."""
        aside = {"queues": _undeclared(self.publishers), "entries": list(self.unreadable)}
        uptime = timedelta(seconds=time.monotonic() - self.started_at)
        with db.statement() as session:
            nodes.announce(session, NodeKind.BEAT, NAME, uptime, self.health() | {"set_aside": aside})
        return chores.Done(1)

    def leave(self) -> None:
        """A clean stop: takes row and file along. Raises Unavailable."""
        if self.health_file:
            with contextlib.suppress(OSError):
                self.health_file.unlink()
        with db.statement() as session:
            nodes.leave(session, NAME)

    def write_health(self) -> None:
        """Replaces the file as a whole, so that a probe never reads half of it. Waits for no store."""
        if self.health_file is None:
            return
        new = self.health_file.with_name(f"{self.health_file.name}.{os.getpid()}")
        try:
            new.write_text(json.dumps({"name": NAME, "at": clock.now().isoformat()} | self.health()), encoding="utf-8")
            new.replace(self.health_file)
        except OSError as exc:
            if not self.failing:
                log.error("the health file cannot be written: %s", exc)  # noqa: TRY400 - the trace says no more
            self.failing = True
        else:
            self.failing = False


def _undeclared(publishers: Iterable[publishing.Publisher]) -> list[dict[str, str]]:
    queues = {name: why for publisher in publishers for name, why in tuple(publisher.undeclared.items())}
    return [{"name": name, "reason": why} for name, why in sorted(queues.items())]
