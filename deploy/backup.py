"""`script/backup`: everything that PostgreSQL holds, in a folder of its own that is there whole or not at all.

It is what stood there at one moment, whatever goes on meanwhile: pg_dump reads by the snapshot that the manifest tells
of. Redis and the broker hold nothing that must be kept.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg import IsolationLevel
from psycopg.conninfo import make_conninfo
from sqlalchemy import make_url

from app import clock, settings
from deploy import embedded, postgresql, processes, programs
from deploy.processes import StartError

ROOT = Path(__file__).parent.parent
FORMAT = 1
NAME = re.compile(r"punctual-(\d{8}T\d{6}Z)(\.\d+)?")
DUMP, MANIFEST = "database.dump", "manifest.json"
PARTIAL = ".partial"
LOOK = 600.0
"""Seconds from one look whether a backup is due to the next, also after one that failed."""

PATIENT = "-c statement_timeout=0 -c idle_in_transaction_session_timeout=0"


@contextmanager
def database(data: Path) -> Iterator[str]:
    """The URL of the database that is meant: DATABASE_URL's, or the embedded one, which is started where it does not
    run. Raises StartError."""
    try:
        given = settings.text("DATABASE_URL", os.environ)
    except ValueError as exc:
        raise StartError(str(exc)) from None
    if given is not None:
        yield given
        return
    running = False
    try:
        with embedded.stores(data, want=("database",)) as urls:
            running = True
            yield urls["DATABASE_URL"]
    except processes.AlreadyHeld:
        if running:
            raise
        yield postgresql.address(data.resolve())


def connecting(url: str) -> tuple[str, dict[str, str]]:
    """A URL as libpq's programs take it: what may be seen in a list of processes, and the environment with the rest."""
    parsed = make_url(url)
    _, given = parsed.get_dialect()().create_connect_args(parsed)
    env = dict(os.environ)
    if password := given.pop("password", None):
        env["PGPASSWORD"] = password
    # of several hosts the primary is meant
    return make_conninfo(**{"target_session_attrs": "read-write", **given}), env


@contextmanager
def connection(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection that may take its time. Raises StartError."""
    conninfo, env = connecting(url)
    try:
        with psycopg.connect(
            conninfo, password=env.get("PGPASSWORD"), options=PATIENT, connect_timeout=10, autocommit=True
        ) as server:
            yield server
    except psycopg.OperationalError as exc:
        raise StartError(f"PostgreSQL cannot be used: {str(exc).strip()}") from None


def take(url: str, folder: Path, keep: int | None = None) -> Path:
    """Makes a backup in this folder, and removes all but the `keep` newest ones once it is there; returns its path.

    Raises StartError.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with processes.hold(folder):
        for left in folder.glob(f"*{PARTIAL}"):  # of one that died
            shutil.rmtree(left)
        fresh = folder / f"new{PARTIAL}"
        fresh.mkdir(mode=0o700)
        manifest = _dump(url, fresh)
        processes.private_text(fresh / MANIFEST, f"{json.dumps(manifest, indent=1)}\n")
        for path in (fresh / DUMP, fresh / MANIFEST, fresh):
            _sync(path)
        final = _name(folder, datetime.fromisoformat(manifest["taken_at"]))
        fresh.rename(final)
        _sync(folder)
        if keep is not None:
            for old in backups(folder)[:-keep]:
                gone = old.rename(old.with_name(old.name + PARTIAL))  # a half of one must not look like one
                shutil.rmtree(gone)
    return final


def backups(folder: Path) -> Sequence[Path]:
    """The backups of a folder, the oldest first."""
    return sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name) and (path / MANIFEST).exists())


def is_due(folder: Path, every: timedelta, now: datetime) -> bool:
    """Whether the newest backup of a folder is that old. So who is started again takes none too many."""
    made = backups(folder) if folder.exists() else ()
    taken_at = NAME.fullmatch(made[-1].name) if made else None
    return taken_at is None or now - datetime.strptime(taken_at[1], "%Y%m%dT%H%M%S%z") >= every


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(name: str, version: int, url: str, *options: str) -> None:
    """Runs one of PostgreSQL's programs on a database. Raises StartError with what it said last."""
    conninfo, env = connecting(url)
    argv = [str(programs.find(name, version)), "--no-password", f"--dbname={conninfo}", *options]
    done = subprocess.run(argv, env=env, check=False, capture_output=True, text=True, umask=0o077)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise StartError(f"{name} failed: {' / '.join(said[:3]) if said else f'code {done.returncode}'}")


def _dump(url: str, fresh: Path) -> dict[str, Any]:
    """Dumps what stands there now, and says what that is."""
    with connection(url) as server:
        server.autocommit, server.read_only, server.isolation_level = False, True, IsolationLevel.REPEATABLE_READ
        try:
            [revision] = server.execute("SELECT version_num FROM alembic_version").fetchone() or [None]
        except psycopg.errors.UndefinedTable:
            raise StartError("this database has no tables of Punctual's: it was never migrated") from None
        [taken_at, tasks, snapshot] = (
            server.execute("SELECT clock_timestamp(), (SELECT count(*) FROM tasks), pg_export_snapshot()").fetchone()
            or [None] * 3
        )
        version = server.info.server_version // 10_000
        # others read by the same snapshot while this transaction goes on
        run("pg_dump", version, url, "--format=custom", f"--snapshot={snapshot}", f"--file={fresh / DUMP}")
    return {
        "format": FORMAT,
        "taken_at": taken_at.astimezone(UTC).isoformat(),
        "revision": revision,
        "postgresql": version,
        "tasks": tasks,
        "bytes": (fresh / DUMP).stat().st_size,
        "sha256": digest(fresh / DUMP),
    }


def _name(folder: Path, taken_at: datetime) -> Path:
    """By the primary's clock to the second; a further one of the same second has a number."""
    name = f"punctual-{taken_at:%Y%m%dT%H%M%SZ}"
    number = sum(1 for path in folder.glob(f"{name}*"))
    return folder / (f"{name}.{number}" if number else name)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _take_one(given: argparse.Namespace) -> int:
    """Takes a backup and says where it is, or in one line why there is none; returns the exit code."""
    try:
        with database(given.data) as url:
            made = take(url, given.folder.resolve(), given.keep)
    except (StartError, OSError) as exc:
        print(f"punctual: {exc}", file=sys.stderr, flush=True)
        return 1
    print(made, flush=True)
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="script/backup", description="Backs up all that PostgreSQL holds.")
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / ".data/backups", help="where backups are kept")
    parser.add_argument("--keep", type=_positive, metavar="N", help="remove all but the N newest ones afterwards")
    parser.add_argument("--data", type=Path, default=ROOT / ".data", help="where the embedded PostgreSQL's data are")
    parser.add_argument("--every", type=_positive, metavar="HOURS", help="go on, and take one as often")
    given = parser.parse_args()
    processes.interrupt_on_signal()
    try:
        if given.every is None:
            return _take_one(given)
        while True:
            if is_due(given.folder, timedelta(hours=given.every), clock.now()):
                _take_one(given)
            time.sleep(LOOK)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
