"""Each process with users of its own, made by the files in `deploy/permissions`: they do their work, and no more.

The roles, users and the virtual host are of this run alone, and go with it.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import limits
import psycopg
import pytest
import redis
import yaml
from amqp.exceptions import AccessRefused, NotAllowed
from celery import Celery
from kombu import Connection
from limits.storage import RedisStorage
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import make_url
from stack import Stack, at
from stores import DATABASE, GIVEN, ROOT, need, new_database, poll

from deploy import backup, embedded, postgresql, restore
from deploy.processes import free_port

FILES = ROOT / "deploy/permissions"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
PREFIX = f"p{uuid4().hex[:8]}_"
"""Stands for `punctual_` in the names of this run's users."""

PASSWORDS = {
    f"{name}_PASSWORD": f"{name.lower()}-{uuid4().hex}"
    for name in ("OWNER", "WEB", "BEAT", "WORKER", "BACKUP", "FLOWER_BROKER", "REDIS")
}
NEXT_MONTH = (datetime.now(UTC).date().replace(day=1) + timedelta(days=32)).replace(day=1)
REFUSALS = re.compile(r"permission denied|NOPERM|no permissions|ACCESS_REFUSED|access to \S+ .*refused", re.IGNORECASE)


def password(user):
    return PASSWORDS[{"flower": "FLOWER_BROKER_PASSWORD"}.get(user, f"{user.upper()}_PASSWORD")]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files, with this run's names in the place of theirs."""
    folder = tmp_path_factory.mktemp("permissions")
    for path in FILES.iterdir():
        (folder / path.name).write_text(path.read_text().replace("punctual_", PREFIX))
    return folder


def run(*argv, **env):
    """Runs a command that must succeed; returns what it prints."""
    done = subprocess.run(argv, env=os.environ | env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def permit(files, url, **changed):
    """Applies the file for PostgreSQL to a database; `changed` are passwords that differ."""
    psql = postgresql.wheel() / postgresql.VERSIONS[max(postgresql.VERSIONS)] / "bin/psql"
    admin = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    run(
        str(psql),
        "--no-psqlrc",
        "--quiet",
        f"--dbname={admin}",
        f"--file={files}/postgresql.sql",
        **PASSWORDS | changed,
    )


def connect(url):
    return closing(
        psycopg.connect(
            make_url(url).set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True
        )
    )


@pytest.fixture(scope="module")
def databases(files):
    """The URL of a database for each role, and for the administrator: made as `docker-compose.yml` has it."""
    need("PostgreSQL: run script/test", there=GIVEN["DATABASE_URL"])
    with connect(GIVEN["DATABASE_URL"]) as server:
        is_superuser = server.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()[0]
    need("a PostgreSQL where roles may be made", there=is_superuser)
    with ExitStack() as last:
        url = last.enter_context(new_database(f"{DATABASE}_permissions"))
        last.callback(drop_roles, url)
        permit(files, url)
        urls = {"admin": url} | {
            user: make_url(url)
            .set(username=f"{PREFIX}{user}", password=password(user))
            .render_as_string(hide_password=False)
            for user in ("owner", "web", "beat", "worker", "backup")
        }
        run(sys.executable, "-m", "alembic", "upgrade", "head", DATABASE_URL=urls["owner"])
        permit(files, url)
        yield urls


def elsewhere(databases, url):
    """The URLs of the same users for another database."""
    name = make_url(url).database
    return {
        user: make_url(each).set(database=name).render_as_string(hide_password=False)
        for user, each in databases.items()
    }


@pytest.fixture
def apart(databases, files, template):
    """A database that no beat knows: those of the stack let go of an old month as soon as they see it."""
    with new_database(f"{DATABASE}_apart", template) as url:
        permit(files, url)
        yield elsewhere(databases, url)


def drop_roles(url):
    """Drops this run's roles with what they own; called while their database is there."""
    with connect(url) as server:
        for [role] in server.execute(
            "SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s)", [PREFIX]
        ).fetchall():
            server.execute(f"DROP OWNED BY {role} CASCADE")
            server.execute(f"DROP ROLE {role}")


def redis_programs():
    """Redis's program of the wheel, 6.2, and this machine's own where it has one."""
    return {"6.2": str(embedded.redis_server()), "own": shutil.which("redis-server")}


@contextmanager
def serving(program, files, folder, **changed):
    """A Redis with the file's users; yields its port."""
    port = free_port()
    acl = folder / "users.acl"
    acl.write_text(run("sh", f"{files}/redis.sh", **PASSWORDS | changed))
    argv = [program, "--bind", "127.0.0.1", "--port", str(port), "--aclfile", str(acl), "--save", "", "--dir", folder]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            poll(lambda: server.poll() is not None or listens(port))
            assert server.poll() is None, server.stdout.read()
            yield port
        finally:
            server.terminate()


def listens(port):
    named = {"username": "punctual", "password": PASSWORDS["REDIS_PASSWORD"]}
    with redis.Redis(port=port, **named, retry=Retry(NoBackoff(), 0)) as client:
        try:
            return client.ping()
        except redis.ConnectionError:
            return False


def redis_url(port, user):
    """`admin` is the one for people."""
    named = f"punctual:{PASSWORDS['REDIS_PASSWORD']}" if user == "admin" else f"{PREFIX}{user}:{password(user)}"
    return f"redis://{named}@127.0.0.1:{port}/0"


@pytest.fixture(params=["6.2", "own"], scope="module")
def redis_port(request, files, tmp_path_factory):
    program = redis_programs()[request.param]
    if not program:
        pytest.skip("this machine has no redis-server of its own")
    with serving(program, files, tmp_path_factory.mktemp("redis")) as port:
        yield port


@pytest.fixture(scope="module")
def brokers(files):
    """The URL of a virtual host for each user, and for the one that the tests were given."""
    given = GIVEN["BROKER_URL"] or ""
    need("RabbitMQ: set BROKER_URL to an amqp:// address", there=given.startswith("amqp"))
    need("rabbitmqctl and the right to use it", there=shutil.which("rabbitmqctl"))
    url, vhost = urlsplit(given), f"{PREFIX}vhost"
    ctl = ["rabbitmqctl", "--quiet"]
    made = subprocess.run([*ctl, "add_vhost", vhost], capture_output=True, text=True, check=False)
    need(f"rabbitmqctl that works: {made.stderr}", there=made.returncode == 0)
    users = ("web", "beat", "worker", "flower")
    with ExitStack() as last:
        last.callback(together, *[[*ctl, "delete_user", f"{PREFIX}{user}"] for user in users])
        last.callback(together, [*ctl, "delete_vhost", vhost])
        run(*ctl, "set_permissions", "--vhost", vhost, url.username or "guest", ".*", ".*", ".*")
        run("sh", f"{files}/rabbitmq.sh", **PASSWORDS, VHOST=vhost, QUEUES="default")
        place = f"{url.hostname}:{url.port or 5672}"
        yield {"admin": url._replace(path=f"/{vhost}").geturl()} | {
            user: url._replace(netloc=f"{PREFIX}{user}:{password(user)}@{place}", path=f"/{vhost}").geturl()
            for user in users
        }


def together(*commands):
    """Runs commands at the same time, whatever becomes of them."""
    for process in [subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for argv in commands]:
        process.wait()


@pytest.fixture(scope="module")
def stores(databases, brokers, files, tmp_path_factory):
    """What each process is given: `admin` is the tests' own."""
    program = redis_programs()["own"] or redis_programs()["6.2"]
    with serving(program, files, tmp_path_factory.mktemp("redis")) as port:
        yield {
            user: {
                "DATABASE_URL": databases[user],
                "REDIS_URL": redis_url(port, user),
                "BROKER_URL": brokers[user],
            }
            for user in ("admin", "web", "beat", "worker")
        }


@pytest.fixture(scope="module")
def stack(stores, engine, databases):
    """The whole stack, each process with its own users; a month's partitions are missing when it starts."""
    with connect(databases["owner"]) as owner:
        owner.execute(f"DROP TABLE runs_{NEXT_MONTH:%Y_%m}, attempts_{NEXT_MONTH:%Y_%m}")
    made = Stack(os.environ | stores["admin"], engine)
    made.env["PUNCTUAL_NOTIFY_WEBHOOK"] = "http://127.0.0.1:1/"  # where nobody listens
    try:
        for name, number in (("web", 1), ("beat", 1), ("beat", 2), ("worker", 1)):
            made.start(name, number, **stores[name])
        made.wait_ready()
        yield made
        made.stop_all()
    finally:
        made.close()


def test_tasks_of_every_kind_run_and_nobody_is_refused_anything(stack, stores):
    now = stack.create(schedule={"type": "now"}, kwargs={"n": 1})
    often = stack.create(schedule={"type": "interval", "every": 1}, overlap="queue")
    failing = stack.create(
        target="debug.fail", schedule={"type": "now"}, retry={"max_attempts": 2, "backoff": 0.1}, pause_after_failures=1
    )
    sleeping = stack.create(target="debug.sleep", kwargs={"seconds": 60}, schedule={"type": "now"}, overlap="cancel")
    many = stack.api.post(
        "/tasks/bulk", json={"items": [{"target": "debug.echo", "schedule": {"type": "once", "at": at(2)}}] * 60}
    )
    assert many.status_code == httpx.codes.CREATED, many.text
    [run] = stack.ended(now)
    assert (run["state"], run["result"]) == ("succeeded", {"args": [], "kwargs": {"n": 1}})
    [run] = stack.ended(failing)
    assert (run["state"], run["attempt"]) == ("failed", 2)
    assert stack.api.post(f"/runs/{run['id']}/retry").is_success
    poll(lambda: stack.runs(failing)[0]["attempt"] == 3 and stack.runs(failing)[0]["state"] == "failed")
    [run] = poll(lambda: [run for run in stack.runs(sleeping) if run["state"] == "running"])
    assert stack.api.post(f"/runs/{run['id']}/cancel").is_success
    assert stack.ended(sleeping)[0]["state"] == "cancelled"
    for bulk in many.json()["items"]:
        assert stack.ended(bulk)[0]["state"] == "succeeded"
    assert len(stack.ended(often, count=2)) >= 2
    assert stack.api.patch(f"/tasks/{often['id']}", json={"schedule": {"type": "interval", "every": 2}}).is_success
    assert stack.api.delete(f"/tasks/{often['id']}").status_code == httpx.codes.NO_CONTENT
    assert stack.api.get("/cluster").json()["queues"][0]["depth"] == 0
    assert refusals(stack, stores) == []


def refusals(stack, stores):
    """What any store has refused to any process, but for what redis-py says of itself and does not need."""
    with redis.Redis.from_url(stores["admin"]["REDIS_URL"], decode_responses=True) as client:
        denied = [entry for entry in client.acl_log() if "client" not in str(entry["object"])]
    said = [
        line
        for name, number in stack.nodes
        for line in stack.tail(name, number, 10_000).splitlines()
        if REFUSALS.search(line)
    ]
    return denied + said


def test_what_a_killed_worker_ran_is_rescued(stack, stores):
    task = stack.create(
        target="debug.sleep", kwargs={"seconds": 5}, schedule={"type": "now"}, retry={"max_attempts": 2, "backoff": 0}
    )
    poll(lambda: [run for run in stack.runs(task) if run["state"] == "running"])
    stack.stop("worker", sig=signal.SIGKILL)
    poll(stack.start("worker", **stores["worker"]).ready, within=60, every=0.1)
    [run] = stack.ended(task, within=60)
    assert (run["state"], run["attempt"]) == ("succeeded", 2)
    assert stack.api.get(f"/runs/{run['id']}").json()["attempts"][0]["outcome"] == "lost"
    assert refusals(stack, stores) == []


def test_a_beat_makes_the_partitions_that_are_missing(stack, databases):
    with connect(databases["admin"]) as server:
        names = [f"{table}_{NEXT_MONTH:%Y_%m}" for table in ("attempts", "runs")]
        owners = "SELECT relowner::regrole::text FROM pg_class WHERE relname = ANY (%s)"
        found = poll(lambda: len(seen := server.execute(owners, [names]).fetchall()) == len(names) and seen)
    assert set(found) == {(f"{PREFIX}owner",)}


def test_a_beat_notes_that_a_task_failed_and_a_worker_tells_of_it(stack, stores):
    def told():
        found = stack.api.get("/tasks", params={"target": "punctual.webhook"}).json()["items"]
        return found and [run for run in stack.runs(found[0]) if run["state"] == "retrying"]

    [run, *_] = poll(told, within=20)
    assert "NotTaken" in stack.api.get(f"/runs/{run['id']}").json()["attempts"][0]["error"]["type"]
    assert refusals(stack, stores) == []


def test_another_app_calls_and_is_answered(stack, stores, brokers):
    with Celery("anybody", broker=brokers["admin"], backend="rpc://", set_as_current=False) as app:

        def ask(name, **given):
            return app.send_task(f"punctual.{name}", kwargs=given, queue="punctual").get(timeout=15)

        task = ask("create_task", target="debug.echo", schedule={"type": "interval", "every": 3600})
        run = ask("run_task", task=task["id"])
        [ended] = stack.ended(task)
        assert (ended["id"], ended["state"]) == (run["id"], "succeeded")
        assert ask("change_task", task=task["id"], priority=9)["priority"] == 9
        assert ask("delete_task", task=task["id"])["state"] == "deleted"
        app.backend.result_consumer.stop()
    assert refusals(stack, stores) == []


def test_a_key_registers_a_task_and_an_app_deletes_it(stack, stores, brokers, databases):
    key = stack.api.post("/keys", json={"name": "k", "role": "editor", "max_tasks": 3})
    assert key.is_success, key.text
    headers = {"Authorization": f"Bearer {key.json()['key']}"}
    fields = {"target": "debug.echo", "schedule": {"type": "interval", "every": 3600}}
    task = httpx.post(f"{stack.api.base_url}tasks", json=fields, headers=headers)
    assert task.status_code == httpx.codes.CREATED, task.text
    with Celery("anybody", broker=brokers["admin"], backend="rpc://", set_as_current=False) as app:
        sent = app.send_task("punctual.delete_task", kwargs={"task": task.json()["id"]}, queue="punctual")
        assert sent.get(timeout=15)["state"] == "deleted"
        app.backend.result_consumer.stop()
    with connect(databases["admin"]) as server:
        assert server.execute("SELECT tasks FROM keys").fetchall() == [(0,)]
        poll(lambda: server.execute("SELECT count(*) FROM audit WHERE position IS NULL").fetchone() == (0,))
    assert stack.api.delete(f"/keys/{key.json()['id']}").is_success
    assert refusals(stack, stores) == []


def test_what_the_workers_container_is_probed_with_works_with_the_workers_own_user(stack, stores):
    probe = COMPOSE["worker"]["healthcheck"]["test"]
    assert probe[:2] == ["CMD", "python"]
    run(sys.executable, *probe[2:], **stores["worker"])


def test_flower_watches_and_asks_with_its_own_user_and_knows_no_other_store(stack, stores, brokers):
    port = free_port()
    given = {name: COMPOSE["flower"]["environment"][name] for name in ("DATABASE_URL", "REDIS_URL")}
    given["BROKER_URL"] = brokers["flower"]
    login = ("admin", "a-password")
    stack.start("flower", **given, FLOWER_PORT=str(port), FLOWER_BASIC_AUTH=":".join(login))
    site = httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=login, timeout=10)
    with site:
        poll(lambda: answers(site, "/healthcheck"), within=30)
        [worker] = poll(lambda: site.get("/api/workers", params={"refresh": 1}).json(), within=20)
        assert worker == stack.nodes["worker", 1].hostname()
        # Flower asks the worker for its events; what it runs from then on is seen
        task = stack.create(schedule={"type": "interval", "every": 1})
        poll(lambda: "debug.echo" in site.get("/api/tasks").text, within=20)
        stack.api.delete(f"/tasks/{task['id']}")
    with Celery(broker=brokers["flower"], set_as_current=False) as app:
        names = [name for answer in app.control.ping(timeout=5, limit=3) for name in answer]
    assert sorted(name.partition("-")[0] for name in names) == ["celery", "celerybeat", "celerybeat"]
    assert stack.stop("flower", sig=signal.SIGTERM) == 0
    assert refusals(stack, stores) == []


def answers(site, path):
    try:
        return site.get(path).is_success
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(
    ("user", "statement"),
    [
        ("web", "DELETE FROM tasks"),
        ("web", "DELETE FROM runs"),
        ("web", "UPDATE runs SET target = 'shell.run'"),
        ("web", "UPDATE runs SET scheduled_for = now()"),
        ("web", "UPDATE runs SET result = '1'"),
        ("web", "UPDATE attempts SET outcome = 'lost'"),
        ("web", "INSERT INTO targets SELECT * FROM targets"),
        ("web", "DELETE FROM nodes"),
        ("web", "DELETE FROM answers"),
        ("web", "DELETE FROM keys"),
        ("web", "UPDATE audit SET action = ''"),
        ("web", "UPDATE audit SET hash = ''"),
        ("web", "INSERT INTO audit (position, previous, hash) VALUES (1, '', '')"),
        ("web", "DELETE FROM audit"),
        ("web", "TRUNCATE audit"),
        ("web", "UPDATE incidents SET told = 'nothing'"),
        ("web", "DELETE FROM incidents"),
        ("web", "CREATE TABLE mine ()"),
        ("web", "CREATE TEMPORARY TABLE mine ()"),
        ("web", "CREATE SCHEMA mine"),
        ("web", "ALTER TABLE runs ADD mine int"),
        ("web", "DROP TABLE runs"),
        ("web", "DELETE FROM runs_default"),
        ("web", "SELECT FROM runs_default"),
        ("web", "SELECT make_partition('runs', current_date)"),
        ("web", "SELECT detach_month('2020-01-01')"),
        ("web", "SELECT drop_month('2020-01-01', NULL, NULL)"),
        ("web", "SELECT forget_runs('{{}}', '{{}}')"),
        ("web", "SELECT forget_tasks('{{}}')"),
        ("web", "SELECT FROM alembic_version"),
        ("web", "CREATE ROLE mine"),
        ("web", "SET ROLE {owner}"),
        ("web", "COPY (SELECT 1) TO PROGRAM 'true'"),
        ("beat", "UPDATE tasks SET args = '[]'"),
        ("beat", "UPDATE tasks SET target = 'shell.run'"),
        ("beat", "DELETE FROM tasks"),
        ("beat", "UPDATE runs SET args = '[]'"),
        ("beat", "DELETE FROM runs"),
        ("beat", "UPDATE targets SET queue = ''"),
        ("beat", "SELECT answer FROM answers"),
        ("beat", "INSERT INTO answers SELECT"),
        ("beat", "SELECT FROM keys"),
        ("beat", "UPDATE keys SET id = ''"),
        ("beat", "INSERT INTO audit (action) VALUES ('')"),
        ("beat", "UPDATE audit SET action = ''"),
        ("beat", "DELETE FROM audit"),
        ("beat", "CREATE TABLE runs_2000_01 PARTITION OF runs FOR VALUES FROM ('2000-01-01') TO ('2000-02-01')"),
        ("beat", "CREATE TABLE mine ()"),
        ("beat", "DROP TABLE runs_default"),
        ("beat", "SET ROLE {owner}"),
        ("worker", "DELETE FROM tasks"),
        ("worker", "UPDATE runs SET target = 'shell.run'"),
        ("worker", "UPDATE runs SET kwargs = NULL"),
        ("worker", "DELETE FROM runs"),
        ("worker", "DELETE FROM attempts"),
        ("worker", "DELETE FROM targets"),
        ("worker", "DELETE FROM answers"),
        ("worker", "DELETE FROM summaries"),
        ("worker", "SELECT * FROM keys"),
        ("worker", "SELECT digest FROM keys"),
        ("worker", "INSERT INTO keys SELECT"),
        ("worker", "UPDATE keys SET role = 'admin'"),
        ("worker", "UPDATE keys SET digest = ''"),
        ("worker", "INSERT INTO audit (position, previous, hash) VALUES (1, '', '')"),
        ("worker", "UPDATE audit SET hash = ''"),
        ("worker", "DELETE FROM audit"),
        ("worker", "UPDATE incidents SET told = 'nothing'"),
        ("worker", "DELETE FROM incidents"),
        ("worker", "SELECT make_partition('runs', current_date)"),
        ("worker", "SELECT detach_month('2020-01-01')"),
        ("worker", "SELECT drop_month('2020-01-01', NULL, NULL)"),
        ("worker", "SELECT forget_runs('{{}}', '{{}}')"),
        ("worker", "SELECT forget_tasks('{{}}')"),
        ("worker", "CREATE TABLE mine ()"),
        ("worker", "SET ROLE {owner}"),
        ("backup", "UPDATE tasks SET args = '[]'"),
        ("backup", "INSERT INTO keys SELECT"),
        ("backup", "DELETE FROM runs_default"),
        ("backup", "TRUNCATE audit"),
        ("backup", "CREATE TABLE mine ()"),
        ("backup", "CREATE TEMPORARY TABLE mine ()"),
        ("backup", "SELECT make_partition('runs', current_date)"),
        ("backup", "SET ROLE {owner}"),
        ("owner", "CREATE ROLE mine"),
        ("owner", "CREATE DATABASE mine"),
        ("owner", "COPY (SELECT 1) TO PROGRAM 'true'"),
    ],
)
def test_a_role_of_postgresql_may_not(databases, user, statement):
    with connect(databases[user]) as server, pytest.raises(psycopg.errors.InsufficientPrivilege):
        server.execute(statement.format(owner=f"{PREFIX}owner"))


def test_a_beat_archives_and_drops_an_old_month_also_one_that_was_detached_before(apart, files, tmp_path):
    with connect(apart["owner"]) as owner:
        for month, after in (("2020-01-01", "2020-02-01"), ("2020-02-01", "2020-03-01")):
            for table in ("runs", "attempts"):
                name = f"{table}_{month[:7].replace('-', '_')}"
                owner.execute(f"CREATE TABLE {name} PARTITION OF {table} FOR VALUES FROM ('{month}') TO ('{after}')")
    with connect(apart["beat"]) as beat:
        assert beat.execute("SELECT detach_month('2020-01-01')").fetchone() == (True,)
    permit(files, apart["admin"])  # takes from the beat what the function gave it
    turn = "from beat import keeper; k = keeper.Keeper(); assert k.turn()"
    unused = {"REDIS_URL": "redis://none", "BROKER_URL": "redis://none"}
    run(
        sys.executable,
        "-c",
        turn,
        **unused,
        DATABASE_URL=apart["beat"],
        PUNCTUAL_ARCHIVE_PATH=str(tmp_path),
        PYTHONPATH=str(ROOT),
    )
    assert len(list(tmp_path.iterdir())) == 4
    with connect(apart["admin"]) as server:
        assert (
            server.execute("SELECT to_regclass('runs_2020_01'), to_regclass('runs_2020_02')").fetchone() == (None,) * 2
        )


def test_a_backup_is_taken_by_the_user_for_it_and_the_owner_restores(databases, files, tmp_path):
    with connect(databases["owner"]) as owner:  # since the file was applied
        owner.execute("CREATE TABLE runs_2019_01 PARTITION OF runs FOR VALUES FROM ('2019-01-01') TO ('2019-02-01')")
    made = backup.take(databases["backup"], tmp_path)
    with new_database(f"{DATABASE}_restored") as url:
        urls = elsewhere(databases, url)
        permit(files, url)
        restore.restore(urls["owner"], made)
        with connect(urls["beat"]) as beat, pytest.raises(psycopg.errors.InsufficientPrivilege):
            beat.execute("SELECT forget_tasks('{}')")
        permit(files, url)
        with connect(urls["beat"]) as beat:
            assert beat.execute("SELECT forget_tasks('{}')").fetchone() == (0,)


def test_by_its_second_name_a_process_is_what_it_is_by_its_first_while_a_password_is_set_for_it(databases, files):
    second = make_url(databases["worker"]).set(username=f"{PREFIX}worker_second", password="new")
    with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
        connect(second)
    permit(files, databases["admin"], WORKER_PASSWORD_SECOND="new")
    with connect(second) as worker:
        assert worker.execute("SELECT current_user").fetchone() == (f"{PREFIX}worker",)
        worker.execute("SELECT FROM tasks")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            worker.execute("DELETE FROM runs")
    permit(files, databases["admin"], WORKER_PASSWORD_SECOND="")  # as compose says that it is not set
    with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
        connect(second)


@pytest.mark.parametrize(
    ("user", "table", "may"),
    [
        ("web", "keys", {"SELECT", "INSERT", "UPDATE"}),
        ("beat", "keys", set()),
        ("worker", "keys", set()),
        ("web", "audit", {"SELECT"}),
        ("beat", "audit", {"SELECT"}),
        ("worker", "audit", {"SELECT"}),
        ("beat", "answers", {"DELETE"}),
    ],
)
def test_a_role_may_do_this_with_a_whole_table_and_nothing_else(databases, user, table, may):
    with connect(databases["admin"]) as server:
        query = "SELECT has_table_privilege(%s, %s, %s)"
        rights = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
        has = {right for right in rights if server.execute(query, [f"{PREFIX}{user}", table, right]).fetchone()[0]}
    assert has == may


NOTED = {
    "at",
    "actor",
    "actor_name",
    "via",
    "address",
    "action",
    "subject",
    "subject_id",
    "subject_name",
    "before",
    "after",
}


@pytest.mark.parametrize(
    ("user", "table", "right", "columns"),
    [
        ("web", "audit", "INSERT", NOTED),
        ("web", "audit", "UPDATE", set()),
        ("worker", "audit", "INSERT", NOTED),
        ("worker", "audit", "UPDATE", set()),
        ("beat", "audit", "INSERT", set()),
        ("beat", "audit", "UPDATE", {"position", "previous", "hash"}),
        ("worker", "keys", "SELECT", {"id", "tasks"}),
        ("worker", "keys", "UPDATE", {"tasks"}),
        ("worker", "keys", "INSERT", set()),
        ("beat", "keys", "SELECT", set()),
        ("beat", "keys", "UPDATE", set()),
        ("beat", "answers", "SELECT", {"route", "key", "created_at"}),
    ],
)
def test_a_role_may_do_this_with_these_columns_and_with_no_other(databases, user, table, right, columns):
    with connect(databases["admin"]) as server:
        found = server.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
            " AND has_column_privilege(%s, attrelid, attnum, %s)",
            [table, f"{PREFIX}{user}", right],
        )
        assert {name for [name] in found} == columns


def test_what_a_later_migration_makes_is_open_to_nobody(databases):
    with connect(databases["owner"]) as owner:
        owner.execute("CREATE TABLE later (id int GENERATED ALWAYS AS IDENTITY)")
        owner.execute("CREATE FUNCTION sooner() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'")
        for user in ("web", "beat", "worker"):
            with connect(databases[user]) as server:
                for statement in ("SELECT FROM later", "INSERT INTO later DEFAULT VALUES", "SELECT sooner()"):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        server.execute(statement)
        owner.execute("DROP TABLE later; DROP FUNCTION sooner")


def test_to_apply_the_file_again_takes_back_what_it_does_not_say_and_changes_nothing_else(databases, files):
    rights = (
        "SELECT c.relname, coalesce(c.relacl, acldefault('r', relowner))::text, relowner::regrole::text, "
        "array_agg(attname || attacl::text ORDER BY attnum) "
        "FROM pg_class c JOIN pg_attribute ON attrelid = c.oid WHERE relnamespace = 'public'::regnamespace "
        "GROUP BY c.oid ORDER BY c.relname"
    )
    with connect(databases["admin"]) as server:
        before = server.execute(rights).fetchall()
        server.execute(f"GRANT ALL ON keys, audit, runs_default TO PUBLIC, {PREFIX}worker")
        server.execute(f"GRANT UPDATE (args) ON tasks TO {PREFIX}beat")
        server.execute("ALTER TABLE nodes OWNER TO CURRENT_USER")
        server.execute(f"ALTER ROLE {PREFIX}worker SUPERUSER CONNECTION LIMIT 300")
        permit(files, databases["admin"])
        assert server.execute(rights).fetchall() == before
        [role] = server.execute(
            "SELECT rolsuper, rolconnlimit FROM pg_roles WHERE rolname = %s", [f"{PREFIX}worker"]
        ).fetchall()
    assert role == (False, 300)  # a limit that somebody raised stays


def test_nobody_else_may_connect_to_the_database(databases):
    with connect(databases["admin"]) as server:
        server.execute(f"CREATE ROLE {PREFIX}stranger LOGIN")
        url = make_url(databases["admin"]).set(username=f"{PREFIX}stranger", password="x")
        with pytest.raises(psycopg.OperationalError):
            connect(url)


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("web", "FLUSHALL"),
        ("web", "FLUSHDB"),
        ("web", "KEYS *"),
        ("web", "SCAN 0"),
        ("web", "CONFIG GET *"),
        ("web", "ACL LIST"),
        ("web", "MONITOR"),
        ("web", "SHUTDOWN"),
        ("web", "DEBUG SLEEP 0"),
        ("web", "SCRIPT FLUSH"),
        ("web", "CLIENT LIST"),
        ("web", "SUBSCRIBE punctual:bell"),
        ("web", "PUBLISH another 1"),
        ("web", "GET redbeat:{0}::lock"),
        ("web", "DEL redbeat:beats"),
        ("web", "SET another 1"),
        ("beat", "FLUSHALL"),
        ("beat", "KEYS redbeat:*"),
        ("beat", "CONFIG SET maxmemory 1"),
        ("beat", "PUBLISH punctual:bell 1"),
        ("beat", "SUBSCRIBE another"),
        ("beat", "GET LIMITS:LIMITER/key"),
        ("beat", "SET another 1"),
        ("beat", "SCRIPT FLUSH"),
        ("worker", "FLUSHALL"),
        ("worker", "GET redbeat:beats"),
        ("worker", "GET LIMITS:LIMITER/key"),
        ("worker", "SUBSCRIBE punctual:bell"),
        ("worker", "PUBLISH another 1"),
        ("worker", "SCRIPT LOAD return"),
        ("worker", "CONFIG GET *"),
    ],
)
def test_a_user_of_redis_may_not(redis_port, user, command):
    with redis.Redis.from_url(redis_url(redis_port, user)) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command.split())


def test_a_user_of_redis_has_two_passwords_while_one_is_replaced(files, tmp_path):
    with serving(redis_programs()["6.2"], files, tmp_path, WEB_PASSWORD_SECOND="new", BEAT_PASSWORD_SECOND="") as port:
        for secret in (password("web"), "new"):
            with redis.Redis(port=port, username=f"{PREFIX}web", password=secret) as client:
                assert client.ping()
        for name in ("web", "beat"):
            client = redis.Redis(port=port, username=f"{PREFIX}{name}", password="")
            with client, pytest.raises(redis.AuthenticationError):
                client.ping()


@pytest.mark.parametrize("user", ["web", "beat"])
def test_a_script_reaches_no_further_than_its_user(redis_port, user):
    theirs, others = ("LIMITS:x", "redbeat:x") if user == "web" else ("redbeat:x", "LIMITS:x")
    with redis.Redis.from_url(redis_url(redis_port, user)) as client:
        get = client.register_script("return redis.call('get', ARGV[1])")
        assert get(args=[theirs]) is None
        with pytest.raises(redis.ResponseError, match=r"NOPERM|can't access|ACL failure"):
            get(args=[others])


@pytest.mark.parametrize(
    "strategy", ["FixedWindowRateLimiter", "MovingWindowRateLimiter", "SlidingWindowCounterRateLimiter"]
)
def test_web_counts_requests_by_each_strategy(redis_port, strategy):
    limiter = getattr(limits.strategies, strategy)(RedisStorage(redis_url(redis_port, "web")))
    twice = limits.parse("2 per minute")
    assert [limiter.hit(twice, strategy) for _ in range(3)] == [True, True, False]
    assert limiter.get_window_stats(twice, strategy).remaining == 0
    limiter.clear(twice, strategy)
    assert limiter.test(twice, strategy)


def test_without_a_name_nobody_may_do_anything_in_redis(redis_port):
    with redis.Redis(port=redis_port, retry=Retry(NoBackoff(), 0)) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def publish(to, exchange, routing_key):
    to.basic_publish_confirm(to.prepare_message(b"[[], {}, {}]"), exchange=exchange, routing_key=routing_key)


@pytest.mark.parametrize(
    ("user", "what"),
    [
        ("web", lambda to: to.basic_get("default")),
        ("web", lambda to: to.queue_declare("mine")),
        ("web", lambda to: to.queue_delete("default")),
        ("web", lambda to: to.queue_purge("default")),
        ("web", lambda to: publish(to, "", "default")),
        ("web", lambda to: publish(to, "punctual", "punctual")),
        ("web", lambda to: publish(to, "celery.pidbox", "")),
        ("beat", lambda to: to.basic_get("punctual")),
        ("beat", lambda to: to.basic_get("punctual.dead")),
        ("beat", lambda to: to.queue_delete("punctual")),
        ("beat", lambda to: to.queue_declare("billing")),
        ("beat", lambda to: to.queue_delete("billing")),
        ("beat", lambda to: publish(to, "celery.pidbox", "")),
        ("beat", lambda to: publish(to, "celeryev", "worker.heartbeat")),
        ("worker", lambda to: to.basic_get("billing")),
        ("worker", lambda to: to.queue_delete("billing")),
        ("worker", lambda to: to.queue_purge("billing")),
        ("worker", lambda to: to.queue_declare("mine")),
        ("worker", lambda to: to.basic_get("punctual.dead")),
        ("worker", lambda to: to.queue_purge("punctual.dead")),
        ("worker", lambda to: publish(to, "amq.fanout", "")),
        ("flower", lambda to: to.basic_get("default")),
        ("flower", lambda to: to.basic_get("punctual")),
        ("flower", lambda to: to.queue_delete("default")),
        ("flower", lambda to: publish(to, "", "default")),
        ("flower", lambda to: publish(to, "punctual", "punctual")),
        ("flower", lambda to: publish(to, "celeryev", "worker.heartbeat")),
    ],
)
def test_a_user_of_rabbitmq_may_not(stack, brokers, user, what):
    with Connection(brokers["admin"]) as connection:
        connection.default_channel.queue_declare("billing", durable=True, auto_delete=False)
    with Connection(brokers[user]) as connection, pytest.raises(AccessRefused):
        what(connection.default_channel)


@pytest.mark.parametrize("user", ["web", "beat", "worker", "flower"])
def test_a_user_of_rabbitmq_reaches_no_other_virtual_host(brokers, user):
    elsewhere = urlsplit(brokers[user])._replace(path="//").geturl()
    with Connection(elsewhere) as connection, pytest.raises((NotAllowed, AccessRefused)):
        connection.connect()
