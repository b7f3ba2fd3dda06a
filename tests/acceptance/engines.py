"""What runs the tests' nodes: the Docker engine of this machine or, where none answers, this machine itself.

Each starts what pytest-celery's containers wrap: a `Container` of Docker's, or a `Process` that is handled like one.
"""

import gc
import os
import shlex
import socket
import tempfile
import warnings
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import count
from signal import SIGKILL, Signals
from subprocess import TimeoutExpired
from uuid import uuid4

import docker
import yaml
from docker.errors import DockerException
from stores import ROOT

from deploy import processes
from deploy.processes import Program
from drill import stores as servers

AMQP = "5672/tcp"
"""RabbitMQ's port, as Docker calls it."""

LABEL = "punctual.tests"
"""By this one finds the containers of tests that were killed before their end."""


def find(folder):
    """The Docker engine where one answers, else this machine, which keeps logs and data in `folder`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with suppress(DockerException):
            return Docker(docker.from_env())  # which asks the engine for its version
        gc.collect()  # where nobody listens Docker's client forgets to close its socket
    return Machine(folder)


class Docker:
    """Starts containers. Ours share the machine's network, temporary folder and user: what a test names, they reach."""

    has_rabbitmq = True

    def __init__(self, client):
        self.client = client

    def close(self):
        self.client.close()

    def python(self, name, argv, env, folder=None):
        """A command in the image of the Dockerfile, in a folder of the checkout or where our own code lies."""
        shared = {tempfile.gettempdir(): "rw"} | ({str(folder): "ro"} if folder else {})
        return self._run(
            name,
            self._image,
            argv,
            environment={key: value for key, value in env.items() if key != "PATH"},  # the image has its own
            network_mode="host",
            user=f"{os.getuid()}:{os.getgid()}",
            volumes={path: {"bind": path, "mode": mode} for path, mode in shared.items()},
            working_dir=str(folder) if folder else None,
        )

    def rabbitmq(self, port, env):
        """RabbitMQ as compose has it, on that port of the machine."""
        compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
        image = compose["services"]["rabbitmq"]["image"]
        return self._run("rabbitmq", image, environment=env, ports={AMQP: ("127.0.0.1", port)})

    def _run(self, name, *what, **options):
        started = self.client.containers.run(*what, **options, detach=True, labels={LABEL: name})
        started.reload()  # what it says of itself is from before its start
        return started

    @cached_property
    def _image(self):
        return self.client.images.build(path=str(ROOT), tag="punctual:tests", rm=True)[0]


class Machine:
    """Starts processes."""

    def __init__(self, folder):
        self.folder = folder
        self._numbers = count(1)

    def close(self):
        """Does nothing: each process is ended by its node."""

    @property
    def has_rabbitmq(self):
        return servers.has_rabbitmq()

    def python(self, name, argv, env, folder=ROOT):
        log = self.folder / f"{next(self._numbers)}.{name}.log"
        return Process(Program(name=name, argv=argv, cwd=folder, env=env, log=log))

    def rabbitmq(self, port, env):
        home = self.folder / f"{next(self._numbers)}.rabbitmq"
        home.mkdir()
        epmd, node = servers.rabbitmq_programs(home / "rabbitmq", port, processes.free_port())
        # in one session, so that the port mapper ends with the node
        argv = ["bash", "-c", f"{shlex.join(epmd.argv)} & exec {shlex.join(node.argv)}"]
        return Process(replace(node, argv=argv, env=node.env | env), {AMQP: port})


class Process:
    """A program, handled as Docker's `Container` is: what pytest-celery's nodes and the tests use of that."""

    def __init__(self, program, ports=None):
        self.id = uuid4().hex
        self.name = program.name
        self._program = program
        self._ports = ports or {}
        self._process = processes.spawn(program)

    @property
    def status(self):
        return "running" if self._process.poll() is None else "exited"

    @property
    def attrs(self):
        code = self._process.poll() or 0
        return {
            "Config": {
                "Env": [f"{name}={value}" for name, value in self._program.env.items()],
                "Hostname": socket.gethostname(),
            },
            "NetworkSettings": {
                "Networks": {},
                "Ports": {name: [{"HostPort": str(port)}] for name, port in self._ports.items()},
            },
            "State": {"ExitCode": code if code >= 0 else 128 - code, "Pid": self._process.pid},
        }

    def reload(self):
        """Does nothing: what it says of itself is never old."""

    def logs(self):
        return self._program.log.read_bytes()

    def kill(self, signal=None):
        number = Signals[signal] if isinstance(signal, str) else signal or SIGKILL
        # a worker's children must outlive a polite signal to end their runs; a power cut takes them all
        if number != SIGKILL:
            self._process.send_signal(number)
        elif self.status == "running":
            os.killpg(self._process.pid, SIGKILL)
            self._process.wait()

    def restart(self, timeout=10):
        with suppress(TimeoutExpired):
            self._process.terminate()
            self._process.wait(timeout)
        self.kill()
        self._process = processes.spawn(self._program)

    def remove(self, **_options):
        """Ends it. Its log is kept, for whoever wants to know why a test failed."""
        self.kill()
