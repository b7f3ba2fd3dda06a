"""A RabbitMQ node of the tests' own: killed, started again on the same port and data, impatient with consumers."""

import os
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import amqp
from stores import poll

RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""Debian's own script, below the one that changes the user."""

ADVANCED = "[{{rabbit, [{{consumer_timeout, {timeout}}}, {{channel_tick_interval, 1000}}]}}]."
"""Milliseconds in which a consumer must acknowledge what it was handed; channels are looked at each second."""


def is_there():
    return RABBITMQ.exists() and shutil.which("epmd") is not None


class Node:
    """One node, with a name, a cookie, ports and a port mapper of its own."""

    def __init__(self, home, consumer_timeout):
        self.home = Path(home)
        self.port, dist, self.mapper = (_free_port() for _ in range(3))
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        (self.home / "rabbitmq.conf").write_text(f"listeners.tcp.local = 127.0.0.1:{self.port}\n")
        (self.home / "advanced.config").write_text(ADVANCED.format(timeout=int(consumer_timeout * 1000)))
        (self.home / "enabled_plugins").write_text("[].\n")
        (self.home / "env.conf").touch()
        self.env = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.home),  # where Erlang keeps the cookie
            "RABBITMQ_NODENAME": f"tests-{self.port}@localhost",
            "RABBITMQ_MNESIA_BASE": str(self.home / "data"),
            "RABBITMQ_LOG_BASE": str(self.home / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(self.home / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.home / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(self.home / "env.conf"),  # not the machine's own
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.home / "enabled_plugins"),
            "RABBITMQ_DIST_PORT": str(dist),
            "ERL_EPMD_PORT": str(self.mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_FLAGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        self.processes = []

    def start(self):
        """Starts it, and returns when it answers."""
        if not self.processes:
            # a node that finds no port mapper starts one that would outlive it
            self._spawn("epmd", "-address", "127.0.0.1", "-port", str(self.mapper))
        self._spawn(str(RABBITMQ))
        poll(self.version, within=90, every=0.1)

    def kill(self):
        """Ends it as a power cut would."""
        self._end(self.processes.pop())

    def stop(self):
        while self.processes:
            self._end(self.processes.pop())

    def version(self):
        """The server's version where it opens a channel, or None."""
        with suppress(OSError, amqp.AMQPError), self._connection() as connection:
            connection.channel()
            return tuple(int(part) for part in connection.server_properties["version"].split(".")[:3])
        return None

    def consumers(self, queue="default"):
        """How many consumers the queue has, or None where it cannot be asked yet."""
        with suppress(OSError, amqp.AMQPError), self._connection() as connection:
            return connection.channel().queue_declare(queue, passive=True).consumer_count
        return None

    def _connection(self):
        return amqp.Connection(host=f"127.0.0.1:{self.port}", connect_timeout=3, read_timeout=3)

    def _spawn(self, *argv):
        with (self.home / "out.log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(argv, cwd=self.home, env=self.env, stdout=log, stderr=log, start_new_session=True)
            )

    def _end(self, process):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
