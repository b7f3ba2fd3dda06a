"""What Celery's pool of processes has no word for. The only module that looks inside it.

All of it runs in the worker's loop, which alone writes to the processes and reads from them.
"""

import heapq
import time
from typing import Any

# ruff: noqa: SLF001 - looking inside is what this module is for


def pids(pool: Any) -> list[int]:
    return [process.pid for process in tuple(pool._pool)]


def idle(pool: Any) -> list[Any]:
    """The processes that are up and have no job, neither at work nor on its way; the youngest first."""
    occupied = pool._busy_workers | pool._active_writes
    return [
        process
        for process in reversed(pool._pool)
        if process.inqW_fd in pool._all_inqueues and process.inqW_fd not in occupied
    ]


def dismiss(pool: Any, count: int) -> int:
    """Asks up to `count` processes that have nothing to do to leave; returns how many were asked.

    Billiard's own shrink sends SIGTERM to any process that has not yet acknowledged a job: one that has just
    been sent a run dies with it, and the run is lost. Here a process is first taken off the list of those that
    are sent jobs, and then finds the word to leave in its pipe, behind anything that was written before.
    """
    asked = idle(pool)[:count]
    for process in asked:
        pool._all_inqueues.discard(process.inqW_fd)
        pool._processes -= 1
        pool._putlock.shrink()
        expect_end(process)
        process.inq.put(None)
    return len(asked)


def expect_end(process: Any) -> None:
    """Has the pool take this process's end for what it is: asked for, not an accident."""
    process._controlled_termination = True


def process_of(pool: Any, pid: int) -> Any:
    """The process with that id, or None where it is gone."""
    return pool._process_by_pid(pid)[0]


def forget_timers(timer: Any) -> None:
    """Forgets the time limits of jobs that have ended.

    Celery cancels them, and kombu keeps what is cancelled until its time comes: half a KiB for each run of the last
    five minutes, or of the last day where that is the limit.
    """
    timer._queue[:] = [each for each in timer._queue if not each.entry.canceled]
    heapq.heapify(timer._queue)


def settle(pool: Any, within: float = 1.0) -> None:
    """Waits until each process that was sent a job has acknowledged it.

    When the loop ends or begins anew, Celery forgets what is not acknowledged: a process that had just been sent
    a run would go on with it though nobody renews its heartbeat or waits for its end.
    """
    end = time.monotonic() + within
    while time.monotonic() < end and (sent := _unacknowledged(pool)):
        for process in sent:
            if process.outq._reader.poll(0.01):
                pool.handle_result_event(process.outqR_fd)


def _unacknowledged(pool: Any) -> list[Any]:
    """The processes to which a job was written, to its end, that have not acknowledged it."""
    return [
        job._write_to
        for job in tuple(pool._cache.values())
        if not job._accepted and job._write_to and job._write_to._is_alive() and job._writer() is None
    ]
