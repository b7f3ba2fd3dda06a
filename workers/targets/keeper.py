"""Keeps a program for `shell.run`: a process between the two, which leaves nothing of the program behind.

Run as `python -I -S keeper.py LINE GRACE program argument…`. LINE is a socket to the worker's process. It closes when
that process gives up, and also when it is killed, with no chance to say so. Then, and when the program has ended,
everything that the program has started is asked to end, and killed after GRACE seconds. What has left the program's
process group is found as well, on Linux: it becomes this process's child as soon as its own parent is gone.

Answers over the line with the program's exit code, before that with an `!` and a sentence where it could not be
started. Imports nothing of ours: it starts quickly, and knows none of the worker's secrets.
"""

import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

KILLING = 1.0
"""Seconds for the killed to be gone: one that hangs in the kernel is left to it."""

USUAL = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGUSR1, signal.SIGXFSZ)
"""Signals that a program finds as it is used to, whatever the worker does with them."""


def main(line: socket.socket, grace: float, argv: list[str]) -> None:
    """Starts the program, waits until it ends or the line is cut, and clears up after it."""
    line.set_inheritable(False)
    woken = _wake_on_children()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    program = os.fork()
    if program == 0:
        _become(argv, line)
    with contextlib.suppress(OSError):
        os.setpgid(program, program)  # whoever is first, the program or we: a group to be signalled is there
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # such a wish is for the program
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nowhere, stream)  # the program's output ends with the program
    keeper = _Keeper(program)
    while keeper.code is None:
        ready, _, _ = select.select([line, woken], [], [])
        if woken in ready:
            woken.recv(4096)
        keeper.reap()
        if line in ready:
            break
    keeper.clear(grace)
    with contextlib.suppress(OSError):
        line.sendall(f"{keeper.code}\n".encode())


class _Keeper:
    """The program, its process group, and all that came to be children of this process."""

    def __init__(self, program: int) -> None:
        self.program = program
        self.code: int | None = None

    def reap(self) -> bool:
        """Takes note of what has ended. Whether anything is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return self._is_group()
            if pid == 0:
                return True
            if pid == self.program:
                self.code = os.waitstatus_to_exitcode(status)

    def clear(self, grace: float) -> None:
        """Has all that is left end, first by asking."""
        if not self.reap():
            return
        self._signal(signal.SIGTERM)
        end = time.monotonic() + grace
        while self.reap() and time.monotonic() < end:
            time.sleep(0.02)
        end = time.monotonic() + KILLING
        while self.reap() and time.monotonic() < end:
            self._signal(signal.SIGKILL)  # again and again: the orphans of what was killed come to us
            time.sleep(0.01)

    def _signal(self, signum: int) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self.program, signum)
        for pid in _children():
            with contextlib.suppress(OSError):
                os.kill(pid, signum)

    def _is_group(self) -> bool:
        """Whether the group has a member; where orphans do not come to us, some may be nobody's child of ours."""
        with contextlib.suppress(OSError):
            os.killpg(self.program, 0)
            return True
        return False


def _become(argv: list[str], line: socket.socket) -> NoReturn:
    keeper = os.getppid()
    try:
        os.setpgid(0, 0)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for signum in USUAL:
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        if os.getppid() == keeper:  # else it was killed before it could be watched
            os.execvp(argv[0], argv)  # noqa: S606 - the very purpose
    except (OSError, ValueError) as exc:
        line.sendall(f"!{getattr(exc, 'strerror', None) or exc}\n".encode())
    finally:
        os._exit(127)


def _wake_on_children() -> socket.socket:
    """A socket that can be read when a child has ended."""
    woken, waking = socket.socketpair()
    waking.settimeout(0)
    signal.set_wakeup_fd(waking.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return woken


def _children() -> Iterator[int]:
    """This process's children, where the system tells them."""
    me = str(os.getpid()).encode()
    for stat in Path("/proc").glob("[0-9]*/stat") if sys.platform == "linux" else ():
        with contextlib.suppress(OSError):  # it may be gone by now
            # behind the name, which may hold anything: state, parent
            if stat.read_bytes().rpartition(b")")[2].split()[1] == me:
                yield int(stat.parent.name)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), float(sys.argv[2]), sys.argv[3:])
