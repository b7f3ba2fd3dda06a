"""A PostgreSQL that fails over: a primary, and a standby that has every commit before it is acknowledged.

What a cluster manager does is done here by hand: the standby is promoted, and the lost one made anew behind it.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import make_url

from deploy import postgresql
from deploy.processes import StartError
from drill import stores

NOTICED_AFTER = 2.0
"""Seconds that a cluster manager takes to be sure that the primary is gone."""

STREAMING = "SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')"


@dataclass(kw_only=True)
class Node:
    """One of the two servers."""

    home: Path
    server: postgresql.Server
    store: stores.Store

    @property
    def url(self) -> str:
        """Leads to this one alone."""
        return make_url(self.server.url).set(database=stores.DATABASE).render_as_string(hide_password=False)

    def ask(self, *statements: str) -> Any:
        """What the last of these statements answers."""
        admin = make_url(self.server.url).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(admin, autocommit=True, connect_timeout=3) as connection:
            for statement in statements:
                answer = connection.execute(statement.encode())
            row = answer.fetchone() if answer.description else None
        return row[0] if row else None

    def leads(self) -> bool:
        with suppress(psycopg.OperationalError):
            return not self.ask("SELECT pg_is_in_recovery()")
        return False


@dataclass(kw_only=True)
class Pair:
    """The two servers."""

    nodes: list[Node]

    @property
    def url(self) -> str:
        """Names both: whoever connects finds the one that takes changes."""
        sockets = [str(make_url(node.server.url).query["host"]) for node in self.nodes]
        ports = ",".join(str(postgresql.PORT) for _ in sockets)
        found = make_url(self.nodes[0].url).set(query={"host": ",".join(sockets), "port": ports})
        return found.render_as_string(hide_password=False)

    def primary(self) -> Node:
        return next(node for node in self.nodes if node.leads())

    @contextmanager
    def failing_over(self) -> Iterator[None]:
        """The primary is killed and the other one promoted; entered once that takes changes."""
        lost = self.primary()
        stays = next(node for node in self.nodes if node is not lost)
        if not self.is_whole():
            self._follow(stays, lost)
        lost.store.kill()
        time.sleep(NOTICED_AFTER)
        # alone it must not wait for a standby that is not there
        stays.ask("SELECT pg_promote()")
        stores.poll(stays.leads, within=30, what="the promotion of the standby")
        stays.ask("ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()")
        yield

    def is_whole(self) -> bool:
        with suppress(psycopg.OperationalError, StopIteration):
            return bool(self.primary().ask(STREAMING) == 1)
        return False

    def _follow(self, lost: Node, primary: Node) -> None:
        """Makes the lost one anew, as the standby of the other."""
        lost.store.kill()
        copy(primary, lost.home)
        lost.store.start()
        self.synchronise(primary)

    def synchronise(self, primary: Node) -> None:
        """From here on no commit is acknowledged that the standby has not."""
        primary.ask("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        stores.poll(self.is_whole, within=60, what="a standby that has every commit")


@contextmanager
def running(folder: Path) -> Iterator[Pair]:
    with ExitStack() as exits:
        first = exits.enter_context(_node(folder / "primary"))
        stores.make_database(first.server)
        copy(first, folder / "standby")
        second = exits.enter_context(_node(folder / "standby"))
        pair = Pair(nodes=[first, second])
        pair.synchronise(first)
        yield pair


@contextmanager
def _node(home: Path) -> Iterator[Node]:
    home.mkdir(exist_ok=True)
    with postgresql.prepared(home) as server:
        store = stores.crashing(server)
        with stores.running(store):
            yield Node(home=home, server=server, store=store)


def copy(primary: Node, home: Path) -> None:
    """Copies the primary's data, to follow it from there on."""
    fresh = home / postgresql.FOLDER
    shutil.rmtree(fresh, ignore_errors=True)
    home.mkdir(exist_ok=True)
    program = Path(primary.server.program.argv[0]).with_name("pg_basebackup")
    whence = make_url(primary.server.url).set(drivername="postgresql", database=None)
    done = subprocess.run(
        [
            str(program),
            f"--dbname={whence.render_as_string(hide_password=False)}",
            f"--pgdata={fresh}",
            "--write-recovery-conf",
            "--checkpoint=fast",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise StartError(f"the standby cannot be made: {done.stderr.strip()}")
    owner = (primary.home / postgresql.FOLDER).stat()
    for path in (fresh, *fresh.rglob("*")):
        if path.name.startswith(".s.PGSQL"):  # the primary's socket, which lies among its data
            path.unlink()
        elif os.geteuid() == 0:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
