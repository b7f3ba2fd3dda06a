"""The gateway's very configuration in front of two webs, one of which is killed under load."""

import os
import shutil
import signal
import ssl
import subprocess
import threading
import time
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from stack import KEY
from stores import BROKER, BY_HAND, ROOT, poll

from deploy.processes import free_port

pytestmark = BY_HAND
TEMPLATE = ROOT / "deploy/gateway/punctual.conf.template"
KILLS = int(os.environ.get("KILLS", "1"))
BODY = {"target": "debug.echo", "schedule": {"type": "interval", "every": 3600}}
MAIN = """
daemon off; user root; pid {folder}/pid; error_log stderr warn; worker_processes 1;
events {{ worker_connections 512; }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    include {folder}/punctual.conf;
}}
"""


@pytest.fixture(scope="module")
def stack(make_stack):
    """A stack of two webs and no worker."""
    made = make_stack(BROKER)
    made.env["PUNCTUAL_TRUSTED_PROXIES"] = "1"
    made.ports = {1: made.port, 2: free_port()}
    for number in made.ports:
        start_web(made, number)
    made.start("beat")
    made.start("worker")
    made.wait_ready()
    yield made
    made.stop_all()


def start_web(stack, number):
    stack.start("web", number, PORT=str(stack.ports[number]))
    poll(lambda: answers(f"http://127.0.0.1:{stack.ports[number]}/readyz"), within=60, every=0.1)


def answers(url, **options):
    try:
        return httpx.get(url, timeout=2, **options).is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def gateway(stack, tmp_path_factory):
    """nginx as its image runs it: the template filled in from the environment. Yields its address over TLS, and not."""
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:{ROOT / '.data/nginx/usr/sbin'}")
    if nginx is None:
        pytest.skip("needs nginx: Debian's package has it")
    folder = tmp_path_factory.mktemp("gateway")
    plain, secure = free_port(), free_port()
    make_certificate(folder)
    filled = TEMPLATE.read_text()
    given = {
        "GATEWAY_WEB1": f"127.0.0.1:{stack.ports[1]}",
        "GATEWAY_WEB2": f"127.0.0.1:{stack.ports[2]}",
        "GATEWAY_HTTP": f"127.0.0.1:{plain}",
        "GATEWAY_HTTPS": f"127.0.0.1:{secure}",
        "GATEWAY_TLS": str(folder),
    }
    for name, value in given.items():
        assert f"${{{name}}}" in filled
        filled = filled.replace(f"${{{name}}}", value)
    assert "${GATEWAY" not in filled
    (folder / "punctual.conf").write_text(filled)
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([nginx, "-p", folder, "-c", folder / "nginx.conf"], stderr=log)
    try:
        poll(lambda: answers(f"http://127.0.0.1:{plain}/gateway"), within=20)
        yield f"https://127.0.0.1:{secure}", f"http://127.0.0.1:{plain}", ssl_of(folder)
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(20)


def make_certificate(folder):
    made = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", folder / "key.pem", "-out", folder / "fullchain.pem"]
    subprocess.run([*made.split(), *files], check=True, capture_output=True)


def ssl_of(folder: Path):
    return ssl.create_default_context(cafile=str(folder / "fullchain.pem"))


@pytest.fixture
def client(gateway):
    secure, _, context = gateway
    with httpx.Client(
        base_url=f"{secure}/api/v1", verify=context, headers={"Authorization": f"Bearer {KEY}"}, timeout=15
    ) as made:
        yield made


def test_no_request_that_may_be_tried_again_fails_while_a_web_is_killed(stack, gateway):
    secure, _, context = gateway
    done = threading.Event()
    made, failed, slowest = [], [], [0.0]

    def load(number):
        with httpx.Client(
            base_url=f"{secure}/api/v1", verify=context, headers={"Authorization": f"Bearer {KEY}"}, timeout=15
        ) as client:
            while not done.is_set():
                began = time.monotonic()
                try:
                    if number % 2:
                        client.get("/tasks", params={"limit": 5}).raise_for_status()
                    else:
                        name = f"gateway-{uuid4().hex}"
                        key = {"Idempotency-Key": name}
                        client.post("/tasks", json=BODY | {"name": name}, headers=key).raise_for_status()
                        made.append(name)
                except httpx.HTTPError as exc:
                    failed.append(repr(exc))
                slowest[0] = max(slowest[0], time.monotonic() - began)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    poll(lambda: len(made) > 20, within=30)
    for _ in range(KILLS):
        stack.stop("web", 1, sig=signal.SIGKILL)
        before = len(made)
        poll(lambda before=before: len(made) > before + 30, within=30)
        start_web(stack, 1)
    done.set()
    for thread in threads:
        thread.join(30)
    assert failed == []
    assert len(made) > 100
    there = []
    page = {"next": ""}
    while page["next"] is not None:
        query = {"q": "gateway-", "limit": 200, "after": page["next"]}
        page = stack.api.get("/tasks", params=query).json()
        there += [task["name"] for task in page["items"]]
    assert sorted(there) == sorted(made), "each was made once, by whichever web"
    print(f"{len(made)} tasks through {KILLS} kills, the slowest request took {slowest[0]:.2f} s")


def test_a_web_that_stops_finishes_what_it_has_begun(stack, client, gateway):
    task = client.post("/tasks", json=BODY | {"target": "debug.sleep", "kwargs": {"seconds": 2}}).json()
    run = client.post(f"/tasks/{task['id']}/run").json()
    answers_ = []
    waiting = threading.Thread(target=lambda: answers_.append(client.get(f"/runs/{run['id']}", params={"wait": 20})))
    waiting.start()
    poll(lambda: stack.api.get(f"/runs/{run['id']}").json()["state"] == "running", within=20)
    assert stack.stop("web", 2) == 0
    waiting.join(30)
    assert answers_[0].status_code == httpx.codes.OK
    start_web(stack, 2)


def test_it_speaks_tls_and_keeps_to_itself_what_is_nobodys(gateway, client):
    secure, plain, context = gateway
    moved = httpx.get(f"{plain}/tasks?q=x")
    assert (moved.status_code, moved.headers["Location"]) == (308, f"https://{moved.request.url.host}/tasks?q=x")
    page = httpx.get(f"{secure}/sign-in", verify=context)
    assert page.headers["Strict-Transport-Security"].startswith("max-age=")
    assert httpx.get(f"{secure}/metrics", verify=context).status_code == httpx.codes.NOT_FOUND
    assert "nginx/" not in page.headers["Server"]
    spoofed = client.get("/tasks", headers={"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "http"})
    assert spoofed.status_code == httpx.codes.OK
    assert "Strict-Transport-Security" in spoofed.headers, "the client's own word counts for nothing"
    named = client.get("/tasks", headers={"X-Request-Id": "mine-1"})
    assert named.headers["X-Request-Id"] == "mine-1"


def test_it_limits_size_and_rate(gateway, client):
    large = client.post("/tasks/bulk", content=b" " * (10 * 1024 * 1024))
    assert large.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE
    fits = client.post("/tasks/bulk", json={"items": [BODY | {"description": "x" * 2000}] * 1000})
    assert fits.status_code == httpx.codes.CREATED

    def flood(found):
        secure, _, context = gateway
        with httpx.Client(verify=context) as one:
            found += [one.get(f"{secure}/healthz").status_code for _ in range(150)]

    found = []
    threads = [threading.Thread(target=flood, args=(found,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) <= {200, 429}
    assert found.count(200) >= 200, "a burst passes"
