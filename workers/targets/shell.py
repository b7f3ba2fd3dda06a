"""`shell.run`: runs a program. Imported, and so there, only where `PUNCTUAL_SHELL` is on."""

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from app.broker import celery_app
from workers import excerpts

KEEPER = Path(__file__).with_name("keeper.py")

GRACE = 2.0
"""Seconds between asking a program to end and killing it; less than messages.HARD_LIMIT_GRACE."""

PATIENCE = GRACE + 2.0
"""Seconds after which the keeper of a program that is to end must be through."""

END = 8 * 1024
"""Bytes that are kept of the start, and of the end, of each output."""

ROOM = 24 * 1024
"""Bytes of JSON that an output may take, so that the result is not cut as a whole."""

MESSAGE = 2000
"""Characters of the error output's end that tell why a program failed."""

PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""All that a program sees of the worker's environment, in which secrets stand."""


class ProgramFailed(RuntimeError):
    """The program could not be started, or ended with a code other than 0."""


class Output:
    """Both ends of what a program writes."""

    def __init__(self) -> None:
        self.head = bytearray()
        self.tail = bytearray()
        self.size = 0

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        room = END - len(self.head)
        self.head += chunk[:room]
        self.tail += chunk[room:]
        if len(self.tail) > 2 * END:
            del self.tail[:-END]

    def excerpt(self) -> tuple[str, bool]:
        """The text that is kept, and whether some is left out of it."""
        tail = self.tail[-END:]
        left_out = self.size - len(self.head) - len(tail)
        if not left_out:
            return excerpts.ends(_text(self.head + tail), "", 0, ROOM)
        return excerpts.ends(_text(self.head), _text(tail), left_out, ROOM)

    def end(self) -> str:
        return _text(self.head + self.tail)[-MESSAGE:].strip()


@celery_app.task(name="shell.run", bind=True, packable=False)  # type: ignore[untyped-decorator]
def run(self: Any, argv: list[str], env: dict[str, str] | None = None, cwd: str | None = None) -> dict[str, Any]:
    """Runs a program, given as a list of its name and arguments; fails where it ends with a code other than 0."""
    _check(argv, env, cwd)
    line, theirs = socket.socketpair()
    with line:
        with theirs:
            keeper = subprocess.Popen(  # noqa: S603 - what operators switched on
                # the keeper's name in a list of processes is followed by the program's
                [sys.executable, "-I", "-S", KEEPER, str(theirs.fileno()), str(GRACE), *argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=_environment(self.request.id, env or {}),
                cwd=cwd,
            )
        with keeper, _Watch(keeper, line) as watch:
            watch.read()
    return _result(argv[0], watch)


class _Watch:
    """Reads what a program writes, and what its keeper says, as it comes: none of them waits for us.

    Left by an exception, the soft time limit among them, it has the program end, and waits until it has.
    """

    def __init__(self, keeper: "subprocess.Popen[bytes]", line: socket.socket) -> None:
        self.stdout, self.stderr, self.said = Output(), Output(), bytearray()
        self.line = line
        self.selector = selectors.DefaultSelector()
        self.selector.register(line, selectors.EVENT_READ, self.said.extend)
        self.selector.register(keeper.stdout, selectors.EVENT_READ, self.stdout.add)  # type: ignore[arg-type]
        self.selector.register(keeper.stderr, selectors.EVENT_READ, self.stderr.add)  # type: ignore[arg-type]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            if exc_info[0] is not None:
                self.line.shutdown(socket.SHUT_WR)
                self.read(time.monotonic() + PATIENCE)
        finally:
            self.selector.close()

    def read(self, end: float | None = None) -> None:
        """Reads until all are through. What outlives the keeper, which it should not, is not waited for."""
        while self.selector.get_map():
            ready = self.selector.select(None if end is None else max(0, end - time.monotonic()))
            if not ready or time.monotonic() > (end or float("inf")):
                return
            for key, _ in ready:
                chunk = os.read(key.fd, 64 * 1024)
                if chunk:
                    key.data(chunk)
                    continue
                self.selector.unregister(key.fileobj)
                if key.fileobj is self.line:
                    end = min(end or float("inf"), time.monotonic() + 1)


def _check(argv: object, env: object, cwd: object) -> None:
    if not isinstance(argv, list) or not all(isinstance(word, str) for word in argv) or not argv or not argv[0]:
        raise TypeError("argv must be an array of strings, the program first; no shell reads it.")
    if env is not None and not (isinstance(env, dict) and all(isinstance(value, str) for value in env.values())):
        raise TypeError("env must be an object of strings.")
    if not isinstance(cwd, str | None):
        raise TypeError("cwd must be a string.")


def _environment(run_id: str | None, given: dict[str, str]) -> dict[str, str]:
    passed = {name: os.environ[name] for name in PASSED if name in os.environ}
    return {"PATH": os.defpath} | passed | ({"RUN_ID": run_id} if run_id else {}) | given


def _result(program: str, watch: _Watch) -> dict[str, Any]:
    """What is recorded. Raises ProgramFailed with the end of what the program said last."""
    *problems, code = watch.said.decode().splitlines() or [""]
    if problems:
        raise ProgramFailed(f"{program} cannot be started: {problems[0].removeprefix('!')}")
    if code != "0":
        raise ProgramFailed(f"{program} {_ending(code)}: {watch.stderr.end() or watch.stdout.end()}")
    (stdout, is_cut), (stderr, is_error_cut) = watch.stdout.excerpt(), watch.stderr.excerpt()
    return {
        "code": 0,
        "stdout": stdout,
        "stdout_truncated": is_cut,
        "stderr": stderr,
        "stderr_truncated": is_error_cut,
    }


def _ending(code: str) -> str:
    """A keeper's answer in words; it gives none where it was killed."""
    if not code.lstrip("-").isdigit():
        return "was lost, as the process that keeps it was killed"
    if code.startswith("-"):
        return f"was ended by signal {signal.Signals(-int(code)).name}"
    return f"ended with code {code}"


def _text(read: bytes | bytearray) -> str:
    return read.decode(errors="replace")
