"""`script/server` with stand-ins for the processes, so that each way to fail can be had at will."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from deploy import embedded, processes

ROOT = Path(__file__).parent.parent.parent

WEB = """
import http.server, json, os

class Page(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        known = self.headers["Authorization"] == "Bearer " + os.environ["PUNCTUAL_ADMIN_KEY"]
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"items": [{"name": "debug.echo"}]}).encode())

http.server.HTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Page).serve_forever()
"""

LINES = {
    "web": f"{sys.executable} web.py",
    "beat": "sleep 600",
    "worker": "sleep 601",
    "flower": "sh -c 'echo flower at ${FLOWER_PORT:-?} of $FLOWER_BASIC_AUTH; exec sleep 602'",
    "release": "true",
}


@pytest.fixture
def data():
    with embedded.temporary() as folder:
        yield folder
        processes.end_leftovers(folder)


@pytest.fixture
def server(data, tmp_path):
    """Starts the server with the given lines and settings; what it says is in `out`."""
    (tmp_path / "web.py").write_text(WEB)
    made = {"PUNCTUAL_ADMIN_KEY", "SECRET_KEY", "PORT", "FLOWER_PORT", "FLOWER_BASIC_AUTH", "LOG_FORMAT"}
    elsewhere = {
        "DATABASE_URL": "postgresql+psycopg://localhost:1/none",
        "REDIS_URL": "redis://localhost:1",
        "BROKER_URL": "amqp://localhost:1",
        "HOST": "127.0.0.1",
    }
    out = tmp_path / "out"

    @contextmanager
    def start(lines=None, **settings):
        procfile = tmp_path / "Procfile"
        lines = LINES | {"web": f"{sys.executable} {tmp_path}/web.py"} | (lines or {})
        procfile.write_text("".join(f"{name}: {line}\n" for name, line in lines.items()))
        with (
            out.open("w") as file,
            subprocess.Popen(
                [sys.executable, "-m", "deploy.server", "--data", data, "--procfile", procfile],
                cwd=ROOT,
                env={name: value for name, value in os.environ.items() if name not in made} | elsewhere | settings,
                stdout=file,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            process.says = out.read_text
            try:
                yield process
            finally:
                process.kill()

    return start


def running(data):
    return [process for process in psutil.process_iter() if processes._is_of(process, data)]


def wait_ready(process, eventually):
    eventually(lambda: "admin key" in process.says() or process.poll() is not None, within=30)
    assert process.poll() is None, process.says()


def test_it_prints_last_where_everything_is_and_the_key_that_opens_it(server, data, eventually):
    with server() as process:
        wait_ready(process, eventually)
        said = process.says()
        page = re.search(r"page +(\S+)", said)[1]
        key = re.search(r"admin key +(\S+)", said)[1]
        assert key == (data / "admin_key").read_text()
        assert said.endswith(f"admin key  {key}\n\n")
        assert httpx.get(page, headers={"Authorization": f"Bearer {key}"}).status_code == httpx.codes.OK
        login, password, port = re.search(r"flower at (\d+) of (\w+):(\S+)", said).group(2, 3, 1)
        assert f"Flower     http://127.0.0.1:{port}/   (user {login}, password {password})" in said
        assert (data / "client.env").read_text() == f"PUNCTUAL_URL={page}api/v1\nPUNCTUAL_KEY={key}\n"
        secrets = ["client.env", "admin_key", "secret_key", "flower_password"]
        assert {(data / name).stat().st_mode & 0o777 for name in secrets} == {0o600}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_stops_all_that_it_started(server, data, eventually, number):
    with server() as process:
        wait_ready(process, eventually)
        assert len(running(data)) == 5
        process.send_signal(number)
        assert process.wait(15) == 0
    assert running(data) == []


def test_a_process_that_will_not_stop_is_ended_with_its_children(server, data, eventually):
    with server({"worker": "sh -c 'trap : TERM; sleep 601 & while :; do sleep 1; done'"}) as process:
        wait_ready(process, eventually)
        process.terminate()
        assert process.wait(15) == 0
    assert running(data) == []


def test_a_process_that_dies_is_started_again_without_what_it_left(server, data, eventually):
    with server({"beat": "sh -c 'sleep 600 & sleep 600 & wait'"}) as process:
        wait_ready(process, eventually)
        first = [each for each in running(data) if each.name() == "sh" and "wait" in each.cmdline()[-1]]
        assert len(first) == 2
        children = first[0].children()
        first[0].kill()
        eventually(lambda: "beat.1   | ended with code -9" in process.says() or "beat.2   | ended" in process.says())
        eventually(lambda: not any(processes.is_alive(each) for each in children))
        eventually(lambda: sum(each.name() == "sh" and "wait" in each.cmdline()[-1] for each in running(data)) == 2)


def test_a_start_after_a_sigkill_ends_what_was_left(server, data, eventually):
    with server() as process:
        wait_ready(process, eventually)
        left = running(data)
    assert [each for each in left if processes.is_alive(each)] != []
    with server() as process:
        wait_ready(process, eventually)
        assert [each for each in left if processes.is_alive(each)] == []


def test_a_second_start_says_that_one_is_running(server, data, eventually):
    with server() as first:
        wait_ready(first, eventually)
        second = subprocess.run(
            [sys.executable, "-m", "deploy.server", "--data", data],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (second.returncode, second.stderr.count("\n")) == (1, 1)
        assert f"already running on {data}, as process {first.pid}" in second.stderr


@pytest.mark.parametrize(
    ("lines", "settings", "sentence"),
    [
        ({"release": "false"}, {}, "the migration failed with code 1"),
        ({"web": "sleep 602", "worker": "sh -c 'exit 3'"}, {}, "worker.1 ended before it was ready"),
        ({}, {"PORT": "notaport"}, "PORT: "),
        ({}, {"PUNCTUAL_NONSENSE": "1"}, "PUNCTUAL_NONSENSE: there is no such setting"),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_nothing(server, data, lines, settings, sentence):
    with server(lines, **settings) as process:
        assert process.wait(30) == 1
        assert process.says().splitlines()[-1].startswith(f"punctual: {sentence}")
        assert "Traceback" not in process.says()
    assert running(data) == []


def test_a_port_that_is_asked_for_and_taken_is_an_error(server, data):
    with processes.socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with server(PORT=str(port)) as process:
            assert process.wait(30) == 1
            assert f"PORT: {port} of 127.0.0.1 is in use" in process.says()
