"""One stack per broker, used by all tests that do not break it."""

import os
from urllib.parse import urlsplit

import engines
import httpx
import pytest
import redis
import stack as stacks
from stores import GIVEN, need, new_database


def broker_on_redis():
    """Where the queues are when no RabbitMQ carries them: the embedded broker, or a neighbour of the given Redis."""
    given = GIVEN["BROKER_URL"]
    if not given.startswith("amqp"):
        return given
    parts = urlsplit(GIVEN["REDIS_URL"])
    return parts._replace(path=f"/{int(parts.path.strip('/') or 0) + 1}").geturl()


def empty(broker):
    """Empties the tests' Redis and their queues: both belong to the tests alone."""
    with redis.Redis.from_url(GIVEN["REDIS_URL"]) as client:
        client.flushall()
    if broker.startswith("amqp"):
        from kombu import Connection  # noqa: PLC0415

        with Connection(broker) as connection:
            for name in ("default", "punctual", "punctual.dead"):
                connection.default_channel.queue_delete(name)


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    """What runs the nodes."""
    found = engines.find(tmp_path_factory.mktemp("nodes"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def make_stack(template, engine):
    """Makes stacks, each on a database of its own; stops and drops them at the end."""
    made = []

    def make(kind, broker=None):
        broker = broker or (GIVEN["BROKER_URL"] if kind == "rabbitmq" else broker_on_redis())
        empty(broker)
        name = f"punctual_{kind}_{os.getpid()}_{len(made)}"
        database = new_database(name, template)
        stores = {"DATABASE_URL": database.__enter__(), "BROKER_URL": broker}
        stack = stacks.Stack(os.environ | stores, engine)
        made.append((stack, database))
        return stack

    yield make
    for stack, database in made:
        stack.close()
        database.__exit__(None, None, None)


@pytest.fixture(params=["redis", "rabbitmq"], scope="module")
def stack(request, make_stack):
    """A running stack whose queues Redis or RabbitMQ carries. One runs at a time: they share a Redis."""
    if request.param == "rabbitmq":
        need("RabbitMQ: set BROKER_URL to an amqp:// address", there=GIVEN["BROKER_URL"].startswith("amqp"))
    made = make_stack(request.param)
    made.start_all()
    yield made
    made.stop_all()


@pytest.fixture
def task_of(stack):
    """Registers tasks that are deleted after the test, so that they do not ring into the next one."""
    made = []

    def create(**fields):
        made.append(stack.create(**fields))
        return made[-1]

    yield create
    for task in made:
        assert stack.api.delete(f"/tasks/{task['id']}").status_code in {httpx.codes.NO_CONTENT, httpx.codes.NOT_FOUND}
