"""Months in files: each row a line of JSON, compressed. A file is there whole or not at all, and none is written over.

Knows nothing of when a month goes, see `app.retention`.
"""

import filecmp
import gzip
import os
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql

BLOCKS = 64
"""Blocks of a table that one statement reads, half a megabyte and what is stored beside it: each has a snapshot of its
own, so that none grows old and holds up the clearing away of dead rows."""

LEVEL = 1
"""Of the compression: a third of the time of the usual 6, for files that are a tenth larger."""

PIECE = 1 << 20

PARTIAL = ".partial"

# PostgreSQL's JSON has no line break, so each row is a line. They are put together there: to handle each by itself here
# would keep this process's other threads from their work.
_READ = """
    SELECT convert_to(string_agg(row_to_json(t)::text || chr(10), ''), 'UTF8') FROM {table} t
    WHERE ctid >= {first} AND ctid < {after}
"""

Rest = Callable[[float], None]
"""Is told after each piece how many seconds it took, and may wait; what it raises ends the work."""


def check(folder: Path) -> None:
    """Raises OSError where no file can be made in this folder. Takes along what a process left that died."""
    for left in folder.glob(f"*{PARTIAL}"):
        left.unlink(missing_ok=True)
    probe = folder / f"{uuid4().hex}{PARTIAL}"
    probe.touch(0o600, exist_ok=False)
    probe.unlink()


def write(connection: psycopg.Connection[Any], table: str, folder: Path, rest: Rest) -> tuple[Path, int]:
    """Writes a table that nobody changes any more; returns the file, and how many rows were found in it when it was
    read again.

    Raises OSError. The file is on the disk when this returns.
    """
    fresh = folder / f"{table}.{uuid4().hex}{PARTIAL}"
    try:
        _fill(connection, table, fresh, rest)
        rows = _count(fresh, rest)
        return _put(fresh, folder, table), rows
    finally:
        fresh.unlink(missing_ok=True)


def _fill(connection: psycopg.Connection[Any], table: str, fresh: Path, rest: Rest) -> None:
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        # nothing of the moment is in it: the same rows make the same file
        with gzip.GzipFile("", "wb", LEVEL, file, mtime=0) as packed, connection.cursor(binary=True) as cursor:
            for first in range(0, _blocks(connection, table), BLOCKS):
                began = time.monotonic()
                query = sql.SQL(_READ).format(
                    table=sql.Identifier(table),
                    first=sql.Literal(f"({first},0)"),
                    after=sql.Literal(f"({first + BLOCKS},0)"),
                )
                [lines] = cursor.execute(query).fetchone() or [None]
                packed.write(lines or b"")
                rest(time.monotonic() - began)
        file.flush()
        os.fsync(file.fileno())


def _blocks(connection: psycopg.Connection[Any], table: str) -> int:
    size = sql.SQL("SELECT pg_relation_size({}) / current_setting('block_size')::int").format(sql.Literal(table))
    found = connection.execute(size).fetchone()
    assert found is not None
    return int(found[0])


def _count(fresh: Path, rest: Rest) -> int:
    """The rows that can be read again. Raises OSError where the file is not what was written."""
    rows = 0
    with gzip.open(fresh, "rb") as packed:
        began = time.monotonic()
        while piece := packed.read(PIECE):
            rows += piece.count(b"\n")
            rest(time.monotonic() - began)
            began = time.monotonic()
    return rows


def _put(fresh: Path, folder: Path, table: str) -> Path:
    """Gives the file its name; where another one has it, as after a restored backup, the next one."""
    for number in count(1):
        final = folder / (f"{table}.jsonl.gz" if number == 1 else f"{table}.{number}.jsonl.gz")
        if not final.exists() or filecmp.cmp(fresh, final, shallow=False):
            break
    fresh.replace(final)
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)
    return final
