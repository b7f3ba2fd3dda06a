"""The nodes themselves: a process is handled as a container is, and Docker is asked for what it can do."""

import inspect
import os
import signal

import docker
import nodes
import psutil
import pytest
import stack as stacks
from docker.api.build import BuildApiMixin
from docker.models import containers
from engines import Docker, Machine, Process, find
from pytest_celery import CeleryTestNode
from pytest_docker_tools.exceptions import ContainerFailed
from stores import ROOT, poll

PATIENT = "sleep 60 & echo begun; trap 'kill $!; echo ended; exit 3' TERM; wait"


@pytest.fixture
def start(tmp_path):
    """Starts a shell as a node."""
    made = []

    def call(script):
        argv = ["bash", "-c", script]
        made.append(
            CeleryTestNode(nodes.Container(Machine(tmp_path).python("shell", argv, {"PATH": os.environ["PATH"]})))
        )
        return made[-1]

    yield call
    for node in made:
        node.teardown()


def test_what_a_process_offers_a_container_of_dockers_offers_too():
    offered = {name for name in vars(Process) if not name.startswith("_")}
    assert offered <= set(dir(containers.Container()))


def test_a_process_ends_by_a_signal_and_says_how(start):
    node = start(PATIENT)
    poll(lambda: "begun" in node.logs())
    assert node.ready()
    node.kill("SIGTERM")
    assert node.container.wait(within=5) == 3
    assert node.logs() == "begun\nended\n"
    node.kill()  # as with a container, what has ended can be told to end
    with pytest.raises(ContainerFailed, match="ended before it was ready: begun\nended"):
        node.ready()


def test_a_killed_process_takes_its_children_along_and_can_be_started_again(start):
    node = start(PATIENT)
    poll(lambda: "begun" in node.logs())
    family = psutil.Process(node.container.attrs["State"]["Pid"]).children()
    node.kill(signal.SIGKILL)
    assert node.container.wait(within=5) == 128 + signal.SIGKILL
    poll(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in family))
    node.restart()
    poll(lambda: node.logs() == "begun\nbegun\n")
    assert node.ready()


def test_what_does_not_end_in_time_is_told_of_with_its_last_words(start):
    node = start("trap '' TERM; echo deaf; while :; do sleep 1; done")
    poll(lambda: "deaf" in node.logs())
    node.kill("SIGTERM")
    with pytest.raises(pytest.fail.Exception, match=r"shell did not end within 0.1 s: deaf"):
        node.container.wait(within=0.1)


class FakeEngine:
    """Stands where Docker's client stands. Takes what the real one takes, and remembers it."""

    def __init__(self):
        self.containers = self.images = self
        self.built, self.ran = [], []

    def build(self, **options):
        inspect.signature(BuildApiMixin.build).bind(self, **options)
        self.built.append(options)
        return "an image", []

    def run(self, image, command=None, **options):
        assert options.pop("detach")
        made = {"image": image, "command": command, "version": docker.constants.DEFAULT_DOCKER_API_VERSION}
        self.ran.append(containers._create_container_args(made | options))  # raises where one is unknown
        return self

    def reload(self):
        """As a container that has just been started."""


def test_with_docker_a_worker_is_the_image_of_the_dockerfile_on_the_machines_network(tmp_path):
    fake = FakeEngine()
    env = {"PATH": "/here", "BROKER_URL": "amqp://127.0.0.1"}
    engine = Docker(fake)
    engine.python("worker.1", ["bash", "-c", stacks.procfile()["worker"]], env)
    engine.python("billing", ["celery"], env, tmp_path)
    [built] = fake.built
    assert (ROOT / "Dockerfile").samefile(f"{built['path']}/Dockerfile")
    worker, billing = fake.ran
    assert worker["image"] == "an image"
    assert worker["command"] == ["bash", "-c", "celery -A workers.main:celery_app worker"]
    assert worker["environment"] == {"BROKER_URL": "amqp://127.0.0.1"}
    assert worker["host_config"]["NetworkMode"] == "host"
    assert worker["working_dir"] is None
    assert billing["working_dir"] == str(tmp_path)
    assert f"{tmp_path}:{tmp_path}:ro" in billing["host_config"]["Binds"]


def test_with_docker_rabbitmq_is_the_image_of_compose_on_a_port_that_stays():
    fake = FakeEngine()
    nodes.rabbitmq(Docker(fake), consumer_timeout=4.0)
    [rabbitmq] = fake.ran
    assert f"image: {rabbitmq['image']}\n" in (ROOT / "docker-compose.yml").read_text()
    [port] = rabbitmq["host_config"]["PortBindings"]["5672/tcp"]
    assert (port["HostIp"], port["HostPort"].isdigit()) == ("127.0.0.1", True)
    assert "-rabbit consumer_timeout 4000" in rabbitmq["environment"]["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"]


def test_where_no_engine_answers_this_machine_runs_the_nodes(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    assert isinstance(find(tmp_path), Machine)
