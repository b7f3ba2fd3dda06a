"""Workers and brokers as pytest-celery has them: a node, and in it the container that an engine of ours started."""

import re
import time
from contextlib import suppress

import amqp
import psutil
import pytest
import pytest_celery
from docker.errors import APIError
from engines import AMQP
from pytest_celery import CeleryTestContainer, CeleryTestWorker, CeleryWorkerContainer, RabbitMQTestBroker
from pytest_docker_tools.exceptions import ContainerFailed

from deploy import processes


class Container(CeleryTestContainer):
    """A container, or a process like one, that has no address of its own, and no reader but its test."""

    @property
    def process(self):
        """Its main process, whose children do the work."""
        return psutil.Process(self.attrs["State"]["Pid"])

    def ready(self):
        """Whether it is up. A look: pytest-celery's own waits in steps of a second, and for an address first."""
        if self.has_ended():
            raise ContainerFailed(self, f"{self.name} ended before it was ready: {self.tail()}")
        return self.status == "running" and (self.ready_prompt or "") in self.logs()

    def has_ended(self):
        self.reload()
        return self.status == "exited"

    def kill(self, signal=None):
        with suppress(APIError):  # it has ended meanwhile
            super().kill(signal)

    def restart(self, timeout=10):
        """Starts it again, and does not wait."""
        self._container.restart(timeout=timeout)

    def wait(self, within):
        """Waits until it has ended; returns its exit code."""
        end = time.monotonic() + within
        while not self.has_ended():
            if time.monotonic() > end:
                pytest.fail(f"{self.name} did not end within {within} s: {self.tail()}")
            time.sleep(0.02)
        return self.attrs["State"]["ExitCode"]

    def tail(self, lines=30):
        return "\n".join(self.logs().splitlines()[-lines:])

    def teardown(self):
        self._container.remove(v=True, force=True)


class WorkerContainer(Container, CeleryWorkerContainer):
    pass


class Worker(CeleryTestWorker):
    def hostname(self):
        """The name that it gave itself."""
        return re.search(r"(\S+@\S+) ready\.", self.logs())[1]


class RabbitMQContainer(Container, pytest_celery.RabbitMQContainer):
    def ready(self):
        return super().ready() and self.server_version() is not None  # the log may tell of an earlier start

    @property
    def port(self):
        [port] = self.ports[AMQP]
        return port

    @property
    def url(self):
        return self.host_url  # our workers share the machine's network

    def connect(self):
        return amqp.Connection(host=f"127.0.0.1:{self.port}", connect_timeout=3, read_timeout=3)

    def server_version(self):
        """The server's version where it opens a channel, or None."""
        with suppress(OSError, amqp.AMQPError), self.connect() as connection:
            connection.channel()
            return tuple(int(part) for part in connection.server_properties["version"].split(".")[:3])
        return None

    def consumers(self, queue="default"):
        """How many consumers the queue has, or None where it cannot be asked yet."""
        with suppress(OSError, amqp.AMQPError), self.connect() as connection:
            return connection.channel().queue_declare(queue, passive=True).consumer_count
        return None


def rabbitmq(engine, consumer_timeout):
    """A RabbitMQ of the tests' own, whose consumers must acknowledge what they are handed within that many seconds."""
    # channels are looked at each second
    patience = f"-rabbit consumer_timeout {int(consumer_timeout * 1000)} -rabbit channel_tick_interval 1000"
    env = {"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": patience}
    return RabbitMQTestBroker(RabbitMQContainer(engine.rabbitmq(processes.free_port(), env)))
