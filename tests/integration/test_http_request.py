"""`http.request` against a real server on this machine, with the setting on and off."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from app import settings
from workers.targets import http
from workers.targets.http import AddressRefused, UnexpectedStatus

pytestmark = pytest.mark.usefixtures("migrated")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers)))
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/")
            self.end_headers()
            return
        self.send_response(503 if self.path == "/busy" else 200)
        self.end_headers()
        self.wfile.write(b"x" * (3 * http.MAX_READ if self.path == "/large" else 5))

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.seen = []
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def url(server):
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture(params=["on"])
def allowed(request, monkeypatch):
    monkeypatch.setenv("PUNCTUAL_HTTP_ALLOW_PRIVATE", request.param)
    settings.load.cache_clear()
    yield
    monkeypatch.undo()
    settings.load.cache_clear()


def call(url, **kwargs):
    """Calls the target as a worker does for the run `the-run`."""
    http.request.push_request(id="the-run")
    try:
        return http.request.run(url, **kwargs)
    finally:
        http.request.pop_request()


@pytest.mark.parametrize("allowed", ["off"], indirect=True)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "127.1", "2130706433", "0x7f.1"])
def test_no_spelling_of_a_private_address_is_connected_to(allowed, server, host):
    with pytest.raises((AddressRefused, httpx.ConnectError, httpx.InvalidURL)):
        call(f"http://{host}:{server.server_address[1]}/")
    assert server.seen == []


def test_a_private_address_is_called_where_the_setting_allows_it(allowed, server, url):
    assert call(f"{url}/path")["status"] == 200
    assert [path for path, _ in server.seen] == ["/path"]


def test_a_status_that_is_not_expected_fails(allowed, url):
    with pytest.raises(UnexpectedStatus, match="answered 503"):
        call(f"{url}/busy")
    assert call(f"{url}/busy", expect=[503])["status"] == 503


def test_a_redirect_is_not_followed(allowed, server, url):
    with pytest.raises(UnexpectedStatus):
        call(f"{url}/redirect")
    assert [path for path, _ in server.seen] == ["/redirect"]


def test_only_the_start_of_a_large_body_is_kept(allowed, url):
    assert len(call(f"{url}/large")["body"]) == http.MAX_BODY


def test_headers_and_a_json_body_are_sent(allowed, server, url):
    call(url, method="POST", headers={"X-Mine": "1"}, json={"a": 1})
    [(_, headers)] = server.seen
    assert headers["Idempotency-Key"] == "the-run"
    assert (headers["X-Mine"], headers["Content-Type"]) == ("1", "application/json")
