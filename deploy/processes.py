"""Starts processes, keeps them running, and ends them, also those that an earlier start left behind.

Knows neither the stores nor the Procfile. Whatever runs for a data folder is recognised by itself and not by a
number in a file, which may be stale: it carries the folder in its environment, or works inside of it.
"""

import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

MARK = "PUNCTUAL"
"""The environment variable in which each process that we start carries its data folder."""

STORES = frozenset({"postgres", "redis-server"})
"""These write over their environment; they are known by their working folder instead."""

BACK_OFF = 0.5
"""Seconds until a process that ended is started again."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL = 0.05
LEFTOVER_PATIENCE = 3.0


class StartError(Exception):
    """Something could not be started; the text is one line for the person who started it."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """What to run, and how to end it. Its output goes to `log`, or line by line to the keeper's sink."""

    name: str
    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    log: Path | None = None
    user: int | None = None
    group: int | None = None
    stop_signal: signal.Signals = signal.SIGTERM


class AlreadyHeld(StartError):
    """Another process works on a data folder."""


class Keeper:
    """Keeps one program running in a session of its own, so that a terminal's Ctrl-C reaches us alone."""

    def __init__(self, program: Program, sink: Callable[[str, str], None]) -> None:
        self.program = program
        self.ended = threading.Event()
        """Set once the program ended without being asked to."""
        self._sink = sink
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name=program.name, daemon=True)

    @property
    def pid(self) -> int | None:
        """The process that runs now, or ran last, and its group; None before the start."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts the program. Raises StartError where that is impossible."""
        try:
            self._process = self._spawn()
        except OSError as exc:
            raise StartError(f"{self.program.name} cannot be started: {exc}") from exc
        self._thread.start()

    def ask(self) -> None:
        """Asks the program to stop, and does not wait."""
        with self._lock:  # a restart is either before this, and asked too, or does not happen
            self._stopping.set()
            if self._process is not None:
                self._process.send_signal(self.program.stop_signal)

    def finish(self, within: float) -> None:
        """Waits until the program is gone; after `within` seconds ends its whole group by force."""
        if self._process is None:
            return
        with suppress(RuntimeError):  # a signal may have come between the program's start and its thread's
            self._thread.join(within)
        if self._process.poll() is None:
            _kill_group(self._process.pid)
        self._process.wait()

    def _keep(self) -> None:
        while self._process is not None:
            pid = self._process.pid
            self._process.wait()
            _kill_group(pid)  # a dead worker's children must not go on without it
            if self._stopping.is_set():
                return
            self.ended.set()
            self._sink(self.program.name, f"ended with code {self._process.returncode}; starting it again")
            self._stopping.wait(BACK_OFF)
            self._restart()

    def _restart(self) -> None:
        with self._lock:
            if not self._stopping.is_set():
                with suppress(OSError):  # out of memory or of processes: the next round tries again
                    self._process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        process = spawn(self.program)
        if process.stdout:
            threading.Thread(target=self._pump, args=(process.stdout,), daemon=True).start()
        return process

    def _pump(self, lines: IO[bytes]) -> None:
        with lines:
            for line in lines:
                self._sink(self.program.name, line.decode(errors="replace").rstrip())


def spawn(program: Program) -> subprocess.Popen[bytes]:
    """Starts a program in a session of its own, which nobody keeps running. Raises OSError."""
    output = program.log.open("ab") if program.log else None
    process = subprocess.Popen(
        program.argv,
        cwd=program.cwd,
        env=program.env,
        user=program.user,
        group=program.group,
        extra_groups=[] if program.user is not None else None,
        stdin=subprocess.DEVNULL,
        stdout=output or subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    if output:
        output.close()
    return process


def stop(keepers: Collection[Keeper], *, patience: float = 7.0) -> None:
    """Asks all programs to stop at once, and returns when they are gone, by force after `patience` seconds."""
    end = time.monotonic() + patience
    for keeper in keepers:
        keeper.ask()
    for keeper in keepers:
        keeper.finish(max(0.0, end - time.monotonic()))


def wait_until(is_ready: Callable[[], bool], keepers: Collection[Keeper], *, within: float, what: str) -> None:
    """Polls until ready. Raises StartError at the deadline, or when one of the programs ends before."""
    end = time.monotonic() + within
    while True:
        ready = is_ready()
        # asked after: what the others remember can look ready while one of them is ending
        for keeper in keepers:
            if keeper.ended.is_set():
                raise StartError(f"{keeper.program.name} ended before it was ready{_where(keeper.program)}")
        if ready:
            return
        if time.monotonic() > end:
            raise StartError(f"{what} was not ready within {within:.0f} s")
        time.sleep(POLL)


def _where(program: Program) -> str:
    if program.log is None:
        return "; its lines above say why"
    lines = program.log.read_text(errors="replace").splitlines()
    return f": {lines[-1].strip()} (more in {program.log})" if lines else ""


def _kill_group(pid: int) -> None:
    # macOS answers EPERM for a group of which only a zombie is left
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def tell(name: str, line: str) -> None:
    """The sink of programs that have a log: what happens to them goes to standard error."""
    with suppress(OSError):
        print(f"punctual: {name} {line}", file=sys.stderr, flush=True)


@contextmanager
def hold(data: Path) -> Iterator[None]:
    """Holds a data folder for this process alone, and makes it. Raises AlreadyHeld where another holds it.

    The kernel lets go of the lock when the process dies, however it dies.
    """
    data.mkdir(parents=True, exist_ok=True)
    lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode() or "?"
            raise AlreadyHeld(f"already running on {data}, as process {holder}: stop that one first") from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(lock)


def end_leftovers(data: Path) -> None:
    """Ends what an earlier start left running for `data`. Whoever calls this holds the folder."""
    ourselves = {process.pid for process in (psutil.Process(), *psutil.Process().parents())}
    found = [process for process in psutil.process_iter() if process.pid not in ourselves and _is_of(process, data)]
    # the stores last: what uses them stops better while they are there
    _end([process for process in found if not _is_store(process)])
    _end([process for process in found if _is_store(process)])


def _end(found: Sequence[psutil.Process]) -> None:
    pids = {process.pid for process in found}
    for process in found:
        with suppress(psutil.Error):
            if process.ppid() not in pids:  # the parent ends its children in its own way
                # postgres: SIGINT ends it at once and safely, SIGTERM waits for its clients
                process.send_signal(signal.SIGINT if process.name() == "postgres" else signal.SIGTERM)
    for process in _alive_after(LEFTOVER_PATIENCE, found):
        with suppress(psutil.Error):
            process.kill()
    _alive_after(LEFTOVER_PATIENCE, found)


def _alive_after(seconds: float, found: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that are alive at the deadline; returns before it when none is."""
    end = time.monotonic() + seconds
    while (alive := [process for process in found if is_alive(process)]) and time.monotonic() < end:
        time.sleep(POLL)
    return alive


def is_alive(process: psutil.Process) -> bool:
    """Whether the process does anything yet: a zombie waits for its parent, in some containers for ever."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _is_store(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.name() in STORES
    return False


def _is_of(process: psutil.Process, data: Path) -> bool:
    try:
        if _is_store(process):
            return Path(process.cwd()).is_relative_to(data)
        return process.environ().get(MARK) == str(data)
    except (psutil.Error, OSError):  # somebody else's, or gone meanwhile
        return False


def interrupt_on_signal() -> None:
    """Lets the first signal to stop raise KeyboardInterrupt; the next must not break into the stopping."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in STOP_SIGNALS:
        signal.signal(number, interrupt)


def secret(path: Path) -> str:
    """The secret that is kept in this file; made at first use. Whoever calls this holds the folder."""
    if not path.exists():
        private_text(path, secrets.token_urlsafe(32))
    return path.read_text(encoding="ascii")


def private_text(path: Path, text: str) -> None:
    """Writes a file that only its owner may read, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)


def free_port(host: str = "127.0.0.1", wanted: int = 0) -> int:
    """`wanted` where it can be listened on, else any port that can."""
    for port in (wanted, 0):
        with suppress(OSError), socket.create_server((host, port)) as probe:
            return int(probe.getsockname()[1])
    raise StartError(f"no port of {host} can be listened on")
