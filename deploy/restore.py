"""`script/restore`: a backup into an empty database, migrated, and such that Punctual may go on from it.

What was done after the backup was taken is not known any more, neither to the database nor to this: its slots are fired
again. What Redis and the broker still hold of that time is harmless: see `SETTLE`.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from app import retention
from deploy import backup, processes, server
from deploy.backup import ROOT
from deploy.processes import StartError

SETTLE = (
    # An entry in Redis may be of a version that this database has yet to reach: each is written again. And what
    # somebody read of a task after the backup must fit none that is still to come.
    "UPDATE tasks SET version = version + 1000, mirrored_version = 0",
    # Whether the broker holds their messages is not known. One that it does is the second of two: the first is claimed.
    "UPDATE runs SET state = 'pending' WHERE state = 'queued'",
    "UPDATE runs SET published_at = NULL, pack_id = NULL WHERE state = 'pending'",
    # those that were there then; runs that they had in hand are found without a heartbeat
    "DELETE FROM nodes",
)

PRESENT = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'punctual'"
TABLES = """
    SELECT c.relname FROM pg_class c
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
"""
FUNCTIONS = """
    SELECT p.oid::regprocedure::text FROM pg_proc p
    WHERE p.pronamespace = current_schema()::regnamespace AND p.prosecdef
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
"""

UNUSED = {"REDIS_URL": "redis://none", "BROKER_URL": "redis://none"}
"""A migration speaks to neither."""

SAID = """\
Restored what stood there at {taken_at}. Before you start Punctual:
- What was due after that moment is fired again as each task's catch-up policy has it, also what was executed already.
- API keys that were revoked after it are valid again, and those made after it are gone.
- The audit log ends there.
- Give each process its rights again, where they have users of their own: deploy/permissions/postgresql.sql.
"""


def restore(url: str, folder: Path, *, force: bool = False) -> Mapping[str, Any]:
    """Restores a backup; returns its manifest. Raises StartError, with nothing changed unless it says otherwise."""
    manifest = check(folder)
    with backup.connection(url) as server_:
        version = server_.info.server_version // 10_000
        _refuse(server_, manifest, version, force=force)
        if force:
            _empty(server_)
    # Users are the server's own, and may be others here. In one transaction: it is there whole or not at all.
    options = ("--no-owner", "--no-privileges", "--single-transaction", "--exit-on-error")
    backup.run("pg_restore", max(version, manifest["postgresql"]), url, *options, str(folder / backup.DUMP))
    with backup.connection(url) as server_:
        _close_functions(server_)
        found = server_.execute("SELECT count(*) FROM tasks").fetchone()
        if found != (manifest["tasks"],):
            raise StartError(f"the backup was of {manifest['tasks']} tasks, and {found} were restored: do not use this")
    server.migrate(server.read(ROOT / "Procfile")["release"], _environment(url))
    with backup.connection(url) as server_:
        _settle(server_)
    return manifest


def check(folder: Path) -> Mapping[str, Any]:
    """The manifest of a backup that is whole, and that this release can use. Raises StartError."""
    try:
        manifest: dict[str, Any] = json.loads((folder / backup.MANIFEST).read_text(encoding="utf-8"))
        seen = (manifest["format"], manifest["sha256"], manifest["revision"], manifest["postgresql"], manifest["tasks"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise StartError(f"{folder} is no backup: {exc}") from None
    if seen[0] != backup.FORMAT:
        raise StartError(f"{folder} is of a release that makes backups in another way")
    if not (folder / backup.DUMP).exists() or backup.digest(folder / backup.DUMP) != manifest["sha256"]:
        raise StartError(
            f"{folder / backup.DUMP} is not the file that the manifest tells of: it was cut short or changed"
        )
    if not any(ROOT.glob(f"alembic/versions/{manifest['revision']}_*.py")):
        raise StartError(f"{folder} is of a newer release: its schema is {manifest['revision']}")
    return manifest


def _refuse(server_: psycopg.Connection[Any], manifest: Mapping[str, Any], version: int, *, force: bool) -> None:
    if version < manifest["postgresql"]:
        raise StartError(f"the backup is of PostgreSQL {manifest['postgresql']}, and this is {version}")
    [present] = server_.execute(PRESENT).fetchone() or [0]
    if present:
        raise StartError(f"processes of Punctual are connected to this database, {present} times: stop them first")
    if not force and server_.execute(TABLES).fetchone():
        raise StartError("this database is not empty: name another one, or say --force, and what it holds is lost")


def _empty(server_: psycopg.Connection[Any]) -> None:
    """Drops all that a backup could hold."""
    with server_.transaction():
        for [name] in server_.execute(TABLES).fetchall():
            server_.execute(sql.SQL("DROP TABLE {} CASCADE").format(sql.Identifier(name)))
        for [signature] in server_.execute(FUNCTIONS).fetchall():
            server_.execute(sql.SQL("DROP FUNCTION {}").format(sql.SQL(signature)))


def _close_functions(server_: psycopg.Connection[Any]) -> None:
    """Takes from everybody what PostgreSQL gives to everybody: these run with their owner's rights."""
    for [signature] in server_.execute(FUNCTIONS).fetchall():
        server_.execute(sql.SQL("REVOKE ALL ON FUNCTION {} FROM PUBLIC").format(sql.SQL(signature)))


def _settle(server_: psycopg.Connection[Any]) -> None:
    with server_.transaction():
        for statement in SETTLE:
            server_.execute(statement)
    # before the first slots are fired: an old backup has no room for them
    for month in retention.coming_months(datetime.now(UTC)):
        for table in ("runs", "attempts"):
            server_.execute("SELECT make_partition(%s, %s)", [table, month])


def _environment(url: str) -> dict[str, str]:
    given = {name: value for name, value in os.environ.items() if name != "DATABASE_URL_FILE"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{given.get('PATH', os.defpath)}"
    missing = {name: value for name, value in UNUSED.items() if not (given.get(name) or given.get(f"{name}_FILE"))}
    return given | missing | {"DATABASE_URL": url, "PATH": path}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="script/restore", description="Restores a backup into an empty database.")
    parser.add_argument("backup", type=Path, help="the folder that script/backup has made")
    parser.add_argument("--force", action="store_true", help="drop what the database holds")
    parser.add_argument("--data", type=Path, default=ROOT / ".data", help="where the embedded PostgreSQL's data are")
    given = parser.parse_args()
    processes.interrupt_on_signal()
    try:
        with backup.database(given.data) as url:
            manifest = restore(url, given.backup.resolve(), force=given.force)
    except (StartError, OSError) as exc:
        print(f"punctual: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(SAID.format(**manifest))
    return 0


if __name__ == "__main__":
    sys.exit(main())
