"""The embedded stores, started and killed for real."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import make_url

from deploy import embedded, postgresql, processes

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch):
    """An environment that names no store."""
    for name in embedded.CARRIERS:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)


@pytest.fixture
def data():
    with embedded.temporary() as folder:
        yield folder
        processes.end_leftovers(folder)


def ask(urls, statement):
    address = make_url(urls["DATABASE_URL"]).set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg.connect(address, autocommit=True, connect_timeout=3)) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else None


def bell(urls, name="REDIS_URL"):
    return closing(redis.Redis.from_url(urls[name], decode_responses=True))


def write(urls):
    ask(urls, "CREATE TABLE kept AS SELECT 42 AS answer")
    with bell(urls) as client:
        client.set("kept", "42")
        # the file is written each second; a second that a kill takes is the risk that was chosen
        client.config_set("appendfsync", "always")


def is_kept(urls):
    with bell(urls) as client:
        return ask(urls, "SELECT answer FROM kept") == [(42,)] and client.get("kept") == "42"


def running(data):
    """What runs for a data folder."""
    return [process for process in psutil.process_iter() if processes._is_of(process, data)]


@contextmanager
def command(data, *words):
    """`deploy.embedded` with a command that first prints the word up."""
    shell = ["sh", "-c", f"echo up; {words[0]}", *words[1:]]
    started = subprocess.Popen(
        [sys.executable, "-m", "deploy.embedded", *(["--data", data] if data else []), "--", *shell],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with started as process:
        try:
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            process.kill()


def test_a_second_start_finds_the_data_of_the_first(data):
    with embedded.stores(data) as urls:
        write(urls)
        assert len(running(data)) > 1
    assert running(data) == []
    with embedded.stores(data) as urls:
        assert is_kept(urls)


def test_a_start_after_a_sigkill_ends_what_was_left_and_finds_the_data(data, eventually):
    with command(data, "exec sleep 600") as process:
        left = eventually(lambda: running(data))
        assert {"postgres", "redis-server", "sleep"} <= {each.name() for each in left}
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert running(data) != []
    with embedded.stores(data) as urls:
        assert [each for each in left if processes.is_alive(each)] == []
        write(urls)
        os.kill(processes_of("postgres", data).pid, signal.SIGKILL)
    with embedded.stores(data) as urls:
        assert is_kept(urls)


def processes_of(name, data):
    """The first process of that name, which is the parent of the others."""
    return min((each for each in running(data) if each.name() == name), key=psutil.Process.create_time)


@pytest.mark.parametrize("name", ["postgres", "redis-server"])
def test_a_store_that_dies_comes_back_where_it_was(data, eventually, name, capfd):
    with embedded.stores(data) as urls:
        write(urls)
        processes_of(name, data).kill()

        def is_back():
            try:
                return is_kept(urls)
            except (psycopg.OperationalError, redis.ConnectionError):
                return False

        eventually(is_back, within=20)
    assert "starting it again" in capfd.readouterr().err


def test_the_second_of_two_starts_is_refused_with_the_number_of_the_first(data):
    with embedded.stores(data, want=()), pytest.raises(processes.StartError, match=f"process {os.getpid()}:"):
        embedded.stores(data).__enter__()


def test_two_folders_do_not_meet(data):
    with embedded.stores(data / "one") as one, embedded.stores(data / "two") as two:
        write(one)
        assert ask(two, "SELECT to_regclass('kept')") == [(None,)]
        with bell(two) as client:
            assert client.get("kept") is None


def test_a_folder_too_deep_for_a_socket_will_do(data):
    deep = data / ("d" * 80) / ("e" * 80)
    for _ in range(2):
        with embedded.stores(deep, want=["database"]) as urls:
            assert ask(urls, "SELECT current_database()") == [("punctual",)]
            sockets = Path(make_url(urls["DATABASE_URL"]).query["host"])
        assert not sockets.exists()


def test_data_that_were_half_made_are_made_again(data):
    (data / "postgresql.new").mkdir()
    (data / "postgresql.new/PG_VERSION").write_text("18\n")
    with embedded.stores(data, want=["database"]) as urls:
        assert ask(urls, "SELECT 1") == [(1,)]


def test_postgresql_forces_what_it_commits_and_listens_on_no_port(data):
    with embedded.stores(data, want=["database"]) as urls:
        assert ask(urls, "SHOW fsync") == [("on",)]
        assert ask(urls, "SHOW synchronous_commit") == [("on",)]
        assert ask(urls, "SHOW max_connections") == [("200",)]
        assert ask(urls, "SHOW listen_addresses") == [("",)]


def test_redis_keeps_its_data_and_asks_for_a_password(data):
    with embedded.stores(data, want=["redis"]) as urls:
        with bell(urls) as client:
            wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
            assert {name: client.config_get(name)[name] for name in wanted} == wanted
        port = make_url(urls["REDIS_URL"]).port
        with (
            closing(redis.Redis(port=port, retry=Retry(NoBackoff(), 0))) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()


def test_the_queues_do_not_share_a_database_with_the_entries(data):
    with embedded.stores(data, want=["redis"]) as urls, bell(urls) as entries, bell(urls, "BROKER_URL") as queues:
        queues.set("message", "1")
        assert entries.dbsize() == 0


def test_only_what_is_missing_is_started(data, monkeypatch, tmp_path):
    (tmp_path / "url").write_text("postgresql+psycopg://elsewhere/db")
    monkeypatch.setenv("DATABASE_URL_FILE", str(tmp_path / "url"))
    monkeypatch.setenv("BROKER_URL", "amqp://elsewhere")
    with embedded.stores(data) as urls:
        assert list(urls) == ["REDIS_URL"]
        assert {process.name() for process in running(data)} == {"redis-server"}


def test_a_command_ends_with_its_own_code_and_gets_sigterm(data, tmp_path, eventually):
    ready = tmp_path / "ready"
    with command(data, f'trap "exit 7" TERM; touch {ready}; while :; do sleep 0.05; done') as process:
        eventually(ready.exists)
        process.terminate()
        assert process.wait(20) == 7
    assert running(data) == []


def test_a_temporary_folder_whose_process_was_killed_is_removed_by_a_later_start(tmp_path, monkeypatch, eventually):
    tmp_path.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # where Python remembers TMPDIR
    with command(None, "exec sleep 600") as process:
        folder = eventually(lambda: list(tmp_path.glob("punctual-data-*")))[0]
        process.kill()
        process.wait()
    assert running(folder) != []
    with embedded.temporary():
        assert folder.exists()  # it might be one that is just being made
    os.utime(folder, (time.time() - 3600,) * 2)
    with embedded.temporary():
        assert not folder.exists()
        assert running(folder) == []
    assert not postgresql._aside(folder / "postgresql").exists()
