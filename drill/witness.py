"""The witness: a sink outside the system, in a process of its own, that `http.request` calls at each start.

`python -m drill.witness FILE PORT` appends one JSON line per start: when it came, by the witness's own clock, the
run's id, which stands in the header Idempotency-Key, and the body's `task`. It answers when the line is written.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent

SYNC = 0.5
"""Seconds between two calls of fsync: a crash of the machine, not of the process, loses that much."""

START_PATIENCE = 10.0
STOP_PATIENCE = 5.0

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
BAD = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start, as the witness saw it."""

    at: datetime
    run: str
    task: str


@dataclass(frozen=True, kw_only=True)
class Witness:
    """A running witness."""

    url: str
    path: Path

    def starts(self, prefix: str = "") -> list[Start]:
        """The starts so far of the tasks whose name starts with `prefix`."""
        return [start for start in read(self.path) if start.task.startswith(prefix)]


def read(path: Path) -> list[Start]:
    """The starts in a witness's file, in the order in which they came. A last line cut short is left out."""
    text = path.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [
        Start(at=datetime.fromtimestamp(seen["at"], UTC), run=seen["run"], task=seen["task"])
        for seen in map(json.loads, lines)
    ]


@contextlib.contextmanager
def running(path: Path, port: int = 0) -> Iterator[Witness]:
    """A witness that appends to `path`; ended at the end. Port 0 is any free one."""
    command = [sys.executable, "-m", "drill.witness", str(path.absolute()), str(port)]
    # a session of its own: no signal that is meant for the system under test reaches it
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()  # ends with the process, so it never hangs
        if not address:
            raise RuntimeError(f"the witness did not start: it ended with {process.wait(START_PATIENCE)}")
        yield Witness(url=address, path=path)
    finally:
        process.terminate()
        try:
            process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


class _Sink:
    """Writes the lines; one `write` each, so that a line is whole or absent."""

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.unsynced = False

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: request after request, until the caller closes it."""
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                at = time.time()
                headers = _headers(head)
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                written = self._write(at, headers, body)
                writer.write(OK if written else BAD)
                await writer.drain()
                if not written:
                    break
        writer.close()

    def _write(self, at: float, headers: dict[str, str], body: bytes) -> bool:
        """Writes a start down. False: this is none, and is not written."""
        try:
            line = json.dumps({"at": at, "run": headers["idempotency-key"], "task": str(json.loads(body)["task"])})
        except (KeyError, TypeError, ValueError):
            return False
        os.write(self.file, line.encode() + b"\n")
        self.unsynced = True
        return True

    async def sync(self) -> None:
        while True:
            await asyncio.sleep(SYNC)
            if self.unsynced:
                self.unsynced = False
                await asyncio.to_thread(os.fsync, self.file)

    def close(self) -> None:
        os.fsync(self.file)
        os.close(self.file)


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _serve(path: Path, port: int) -> None:
    sink = _Sink(path)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = await asyncio.start_server(sink.answer, "127.0.0.1", port, backlog=1024)
    syncing = asyncio.create_task(sink.sync())
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", flush=True)
    await stopping.wait()
    server.close()
    syncing.cancel()
    sink.close()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2])))
