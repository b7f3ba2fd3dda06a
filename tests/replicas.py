"""A streaming replica of the tests' PostgreSQL, made by pg_basebackup, and how it is held back."""

import os
import pwd
import subprocess
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import make_url
from stores import GIVEN, need, poll

from deploy import embedded, postgresql, processes, programs
from deploy.processes import StartError


def plain(url):
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def replica():
    """A replica of the given server; yields the URL of its database `postgres`."""
    with closing(psycopg.connect(plain(GIVEN["DATABASE_URL"]))) as server:
        version = server.info.server_version // 10_000
        found = server.execute("SELECT rolreplication FROM pg_roles WHERE rolname = current_user").fetchone()
    need("a PostgreSQL that lets its user replicate", there=found == (True,))
    try:
        backup, program = (programs.find(name, version) for name in ("pg_basebackup", "postgres"))
    except StartError as exc:
        need(str(exc), there=False)
    need(f"the programs of PostgreSQL {version}", there=str(version) in _version(program))
    with embedded.temporary() as data, processes.hold(data):
        folder = data / postgresql.FOLDER
        whence = make_url(plain(GIVEN["DATABASE_URL"])).set(database=None).render_as_string(hide_password=False)
        argv = [backup, f"--dbname={whence}", f"--pgdata={folder}", "--write-recovery-conf", "--checkpoint=fast"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        need(f"a PostgreSQL that can be replicated: {done.stderr}", there=done.returncode == 0)
        (folder / "postgresql.conf").touch()  # Debian keeps these elsewhere
        (folder / "pg_hba.conf").write_text("local all all trust\n")
        for left in folder.glob(".s.PGSQL*"):  # the embedded one has its socket among its data
            left.unlink()
        if os.geteuid() == 0:
            give(folder, GIVEN["DATABASE_URL"])
        account = postgresql._account(folder)
        if account.is_other:
            postgresql._open_way(folder, program.parent)
        server = postgresql._program(folder, program.parent, account, folder, postgresql.SCRATCH)
        keeper = processes.Keeper(server, processes.tell)
        url = make_url(postgresql._url(folder)).set(database="postgres").render_as_string()
        try:
            keeper.start()
            poll(lambda: answers(url), within=30)
            yield url
        finally:
            processes.stop([keeper])


def _version(program):
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout


def give(folder, url):
    """Gives the folder to whom PostgreSQL runs as where it may not run as root; it must still reach its primary."""
    sockets = make_url(url).query.get("host", "")
    named = Path(sockets).stat() if sockets.startswith("/") else None
    uid, gid = (named.st_uid, named.st_gid) if named and named.st_uid else pwd.getpwnam("nobody")[2:4]
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, gid, follow_symlinks=False)


def answers(url):
    try:
        with closing(psycopg.connect(plain(url), connect_timeout=3)):
            return True
    except psycopg.OperationalError:
        return False


@contextmanager
def held_back(url):
    """The replica at this URL replays nothing within it."""
    with closing(psycopg.connect(plain(url), autocommit=True)) as server:
        server.execute("SELECT pg_wal_replay_pause()")
        poll(lambda: server.execute("SELECT pg_get_wal_replay_pause_state()").fetchone() == ("paused",))
        try:
            yield
        finally:
            server.execute("SELECT pg_wal_replay_resume()")
