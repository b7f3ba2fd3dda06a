"""How much room a machine has left, and what waits at the broker: read in a thread of its own, never by the loop."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

EVERY = 0.5
"""Seconds between two readings."""

ASK_EVERY = 5.0
"""Seconds between two questions to the broker, which are asked only while the answer matters."""

CGROUP = Path("/sys/fs/cgroup")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was seen last. Shares are from 0 to 1."""

    cpu: float = 0.0
    """How busy the machine's processors are."""
    own: float = 0.0
    """How busy the worker's processes are by themselves, in the mean: 1 is a whole core each."""
    memory: float = 0.0
    """How much of the memory is used: the machine's, or the container's where that is the tighter one."""
    depth: int = 0
    """Messages in the worker's queues that no worker has taken."""


class Gauge(threading.Thread):
    """Reads until the process ends. `pids` and `depth` are called in this thread."""

    def __init__(self, pids: Callable[[], Iterable[int]], depth: Callable[[], int]) -> None:
        super().__init__(name="gauge", daemon=True)
        self.pids = pids
        self.depth = depth
        self.reading = Reading()
        self.wants_depth = False
        """Set by the loop: whether anything hangs on the depth right now."""
        self._asked_at = 0.0
        self._spent: dict[int, float] = {}
        self._read_at = time.monotonic()

    def run(self) -> None:
        psutil.cpu_percent()
        while True:
            time.sleep(EVERY)
            try:
                self.read()
            except Exception:
                log.exception("a reading of the machine failed, the next one follows")

    def read(self) -> None:
        """One reading."""
        last = self.reading
        self.reading = Reading(
            cpu=psutil.cpu_percent() / 100,
            own=self._own(),
            memory=used_memory(),
            depth=self._ask(last.depth) if self.wants_depth else 0,
        )

    def _own(self) -> float:
        now, before = time.monotonic(), self._spent
        self._spent = {pid: spent for pid in self.pids() if (spent := _spent_by(pid)) is not None}
        elapsed, self._read_at = now - self._read_at, now
        shares = [(spent - before[pid]) / elapsed for pid, spent in self._spent.items() if pid in before]
        return sum(shares) / len(shares) if shares else 0.0

    def _ask(self, last: int) -> int:
        """The depth of the queues, from the broker now and then. Where it is away, nothing is known to wait."""
        if time.monotonic() - self._asked_at < ASK_EVERY:
            return last
        self._asked_at = time.monotonic()
        try:
            return self.depth()
        except Exception as exc:  # noqa: BLE001 - whatever a broker that goes away makes a client raise
            log.debug("the broker does not say how much waits: %r", exc)
            return 0


def used_memory(cgroup: Path = CGROUP) -> float:
    """The share of the memory that is used: of the machine, or of the container where it has a limit."""
    machine: float = psutil.virtual_memory().percent / 100
    try:
        limit = int((cgroup / "memory.max").read_text())  # "max" where there is none
        used = int((cgroup / "memory.current").read_text()) - _reclaimable(cgroup)
    except (OSError, ValueError):
        return machine
    return max(machine, used / limit)


def _reclaimable(cgroup: Path) -> int:
    """Bytes of the page cache that count as used though the kernel would give them up first."""
    stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    return int(stat.get("inactive_file", 0))


def _spent_by(pid: int) -> float | None:
    """Seconds of processor time that a process has used; None where it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
    spent: float = times.user + times.system
    return spent
