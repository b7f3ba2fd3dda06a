"""How long a page takes to be made where 100,000 tasks and 1,000,000 runs are: in this process, without a browser."""

import re
import statistics
import sys
import time

from flask.testing import FlaskClient
from sqlalchemy import text

from app import clock, db, schemas, settings, summaries, tasks
from app.models import Task
from bench import load, stage
from bench.figures import Figure

MODELS = 200
"""Tasks of as many schedules, each of which is copied."""

COPIES = 500
RUNS_EACH = 10
LOOKS = 15

ADDRESSES = {
    "overview": "/",
    "tasks": "/tasks",
    "tasks by name": "/tasks?order=name",
    "tasks due next": "/tasks?order=next",
    "tasks like 'model-77-4'": "/tasks?q=model-77-4",
    "tasks like none": "/tasks?q=no-such-task",
    "tasks of a label": "/tasks?label=team:7",
    "a task": "/tasks/{task}",
    "its form": "/tasks/{task}/edit",
    "new task": "/tasks/new",
    "runs": "/runs",
    "failed runs": "/runs?state=failed",
    "skipped runs": "/runs?state=skipped",
    "a run": "/runs/{run}",
    "week": "/week",
    "cluster": "/cluster",
}

COPY = """
INSERT INTO tasks ({columns})
SELECT {values} FROM tasks t, generate_series(2, %(copies)s) n
"""
RUNS = """
INSERT INTO runs (id, task_id, scheduled_for, task_name, target, queue, trigger, missed, state, reason, attempt, worker,
                  fired_at, published_at, started_at, attempt_started_at, finished_at, error)
SELECT gen_random_uuid(), id, slot, name, target, queue, 'schedule', 0, outcome,
       CASE outcome WHEN 'failed' THEN 'error' WHEN 'skipped' THEN 'overlap' END, 1, 'worker@bench', slot, slot,
       CASE WHEN outcome <> 'skipped' THEN slot + late END, CASE WHEN outcome <> 'skipped' THEN slot + late END,
       slot + late + interval '20 ms',
       CASE outcome WHEN 'failed' THEN '{"type": "ValueError", "message": "no account", "traceback": null}'::jsonb END
FROM (SELECT t.*, now() - (random() * 7 + 0.001) * interval '1 day' AS slot, random() * interval '40 ms' AS late,
             CASE WHEN draw < 0.02 THEN 'failed' WHEN draw < 0.03 THEN 'skipped' ELSE 'succeeded' END AS outcome
      FROM (SELECT id, name, target, queue, random() AS draw FROM tasks, generate_series(1, %(runs)s)) t) r
"""


def pages() -> list[Figure]:
    """The median of some looks at each page."""
    with load.running(beats=0):
        pass  # its worker says what it offers, and is not needed any more
    fill()
    client = _signed_in()
    found = {"task": _scalar("SELECT id FROM tasks LIMIT 1"), "run": _scalar("SELECT id FROM runs LIMIT 1")}
    return [_look(client, name, address.format(**found)) for name, address in ADDRESSES.items()]


def _look(client: FlaskClient, name: str, address: str) -> Figure:
    took = []
    for _ in range(LOOKS):
        started = time.monotonic()
        answer = client.get(address)
        took.append(time.monotonic() - started)
        if answer.status_code != 200:
            raise stage.Missing(f"{address} answered {answer.status_code}")
    return Figure(what=f"page: {name}", value=statistics.median(took) * 1000, unit="ms")


def _signed_in() -> FlaskClient:
    from web import main  # noqa: PLC0415 - reads the settings, which stand only now

    client = main.create_app().test_client()
    token = re.search(r'name="csrf_token" value="([^"]+)"', client.get("/sign-in").text)
    key = settings.load().PUNCTUAL_ADMIN_KEY
    assert token is not None
    assert key is not None
    client.post("/sign-in", data={"csrf_token": token[1], "key": key.get_secret_value()})
    return client


def fill(runs: int = RUNS_EACH) -> None:
    """Makes the tasks, and so many runs of each."""
    now = clock.now()
    schema = schemas.TaskSchema()
    bodies = [
        {
            "name": f"model-{number}",
            "target": load.TARGET,
            "labels": {"team": str(number % 10)},
            "schedule": {"type": "cron", "expression": f"{number % 60} {number % 24} * * *", "timezone": "Europe/Paris"}
            if number % 2
            else {"type": "interval", "every": 3600 + number},
        }
        for number in range(MODELS)
    ]
    with db.transaction() as session:
        tasks.create_many(session, now, [schema.load(body) for body in bodies])
    own = {"id": "gen_random_uuid()", "name": "t.name || '-' || n", "created_at": "t.created_at - n * interval '1 s'"}
    names = [column.name for column in Task.__table__.columns]
    copy = COPY.format(columns=", ".join(names), values=", ".join(own.get(name, f"t.{name}") for name in names))
    with stage.connection() as connection:
        connection.execute(copy, {"copies": COPIES})
        connection.execute(RUNS, {"runs": runs})
        connection.execute(
            "INSERT INTO summaries (span, start) SELECT DISTINCT 'minute', date_trunc('minute', scheduled_for)"
            " FROM runs ON CONFLICT DO NOTHING"
        )
        connection.execute("VACUUM ANALYZE tasks")
        connection.execute("VACUUM ANALYZE runs")
    print("pages: the tables are filled", file=sys.stderr, flush=True)
    end = time.monotonic() + 300
    while _summarised() and time.monotonic() < end:
        pass
    print("pages: the figures are made", file=sys.stderr, flush=True)


def _summarised() -> bool:
    with db.transaction() as session:
        return summaries.summarise(session, db.now(session))[1]


def _scalar(query: str) -> object:
    with db.statement() as session:
        return session.scalar(text(query))
