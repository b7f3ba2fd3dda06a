"""`http.request` against real servers on this machine, with the setting on and off."""

import base64
import gzip
import json
import socket
import ssl
import subprocess
import threading
import time
import tracemalloc
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from workers.targets import gate, http
from workers.targets.gate import AddressRefused, UrlRefused
from workers.targets.http import UnexpectedStatus

pytestmark = pytest.mark.usefixtures("migrated")

PUBLIC = "93.184.216.34"
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OLD_SECRET = "whsec_" + base64.b64encode(bytes(24)).decode()

HOSTS = (Path(__file__).parent / "hostile_hosts.txt").read_text().split()
FORMS = [
    "http://user:word@127.0.0.1:{port}/",
    "http://example.com@127.0.0.1:{port}/",
    "http://example.com:80@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@example.com/",
    "http://127.0.0.1:{port}#@example.com/",
    "http://127.0.0.1:{port}?@example.com/",
    "http:127.0.0.1:{port}/",
    "http:/127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "http:\\\\127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "127.0.0.1:{port}/",
    "ftp://127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/_GET",
    "file://127.0.0.1/etc/passwd",
    "HTTP://127.0.0.1:{port}/",
    "https://127.0.0.1:{port}/",
    "https://localhost:{port}/",
    " http://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/\r\nHost: example.com",
    "http://127.0.0.1:{port}\t/",
    "http://127.0.0.1\0.example.com:{port}/",
]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.path, httpx.Headers(dict(self.headers)), body))
        answer = self.server.answers.get(self.path, b"HTTP/1.0 200 OK\r\n\r\nxxxxx")
        for part in [answer] if isinstance(answer, bytes) else answer:
            self.wfile.write(part)
            self.wfile.flush()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """Keeps what it was asked; a client that goes in the middle of an answer is no error here."""

    daemon_threads = True

    def handle_error(self, *_):
        pass


@pytest.fixture
def server():
    made = Server(("127.0.0.1", 0), Handler)
    made.seen, made.answers = [], {}
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def url(server):
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def allowed(configure):
    configure(PUNCTUAL_HTTP_ALLOW_PRIVATE="on")


class Listener:
    """Listens on every address of this machine, and says whether anybody came."""

    def __init__(self):
        self.socket = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        self.socket.setblocking(False)
        self.port = self.socket.getsockname()[1]

    @property
    def visitors(self):
        found = []
        while True:
            try:
                connection, peer = self.socket.accept()
            except BlockingIOError:
                return found
            connection.close()
            found.append(peer)


@pytest.fixture
def listener():
    made = Listener()
    yield made
    made.socket.close()


@pytest.fixture
def resolver(monkeypatch):
    """Names that answer otherwise each time: every look-up takes the next of the given lists of addresses."""
    system = socket.getaddrinfo
    answers, asked = {}, []

    def getaddrinfo(host, port, *args, **kwargs):
        if host not in answers:
            return system(host, port, *args, **kwargs)
        asked.append(host)
        addresses = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
        if callable(addresses):
            return addresses()
        return [found for address in addresses for found in system(address, port, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return answers, asked


def call(url, **kwargs):
    """Calls the target as a worker does for the run `the-run`."""
    http.request.push_request(id="the-run")
    try:
        return http.request.run(url, **kwargs)
    finally:
        http.request.pop_request()


def test_the_listener_notices_who_comes(listener, configure):
    configure(PUNCTUAL_HTTP_ALLOW_PRIVATE="on")
    with pytest.raises(TimeoutError):
        call(f"http://127.0.0.1:{listener.port}/", timeout=1)
    assert len(listener.visitors) == 1


@pytest.mark.parametrize("form", [f"http://{host}:{{port}}/" for host in HOSTS] + FORMS)
def test_no_spelling_of_an_internal_address_is_connected_to(listener, form):
    with pytest.raises((UrlRefused, httpx.ConnectError, TimeoutError)):
        call(form.format(port=listener.port), timeout=2)
    assert listener.visitors == []


def test_there_are_sixty_hostile_urls_and_more():
    assert len({*HOSTS, *FORMS}) >= 60


@pytest.mark.parametrize("proxy", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_of_the_environment_is_not_used(listener, resolver, monkeypatch, proxy):
    resolver[0]["name.example"] = [["10.0.0.1"]]
    monkeypatch.setenv(proxy, f"http://127.0.0.1:{listener.port}")
    with pytest.raises(AddressRefused):
        call("http://name.example/")
    assert listener.visitors == []


def test_one_private_address_among_public_ones_refuses_the_name(listener, resolver):
    resolver[0]["name.example"] = [[PUBLIC, "127.0.0.1"]]
    with pytest.raises(AddressRefused, match=r"127\.0\.0\.1 is not a public address"):
        call(f"http://name.example:{listener.port}/")
    assert listener.visitors == []


def test_a_name_that_changes_its_answer_is_asked_once_and_the_checked_answer_is_used(listener, resolver, monkeypatch):
    """A resolver that first gives a public address, then ours: rebinding."""
    answers, asked = resolver
    answers["name.example"] = [[PUBLIC], ["127.0.0.1"]]
    tried = []

    class Watched(socket.socket):
        def connect(self, address):
            tried.append(address)
            raise ConnectionRefusedError("nobody there")

    monkeypatch.setattr(socket, "socket", Watched)
    with pytest.raises(httpx.ConnectError, match="nobody there"):
        call(f"http://name.example:{listener.port}/")
    assert tried == [(PUBLIC, listener.port)]
    assert asked == ["name.example"]
    assert listener.visitors == []


def test_every_look_up_is_checked_anew(listener, resolver):
    resolver[0]["name.example"] = [["127.0.0.1"], [PUBLIC, "::1"], ["::ffff:127.0.0.1"], ["169.254.169.254"]]
    for _ in range(4):
        with pytest.raises(AddressRefused):
            call(f"http://name.example:{listener.port}/")
    assert listener.visitors == []


def test_an_address_that_another_answers_for_is_refused(server, resolver, monkeypatch, allowed):
    monkeypatch.setattr(socket.socket, "getpeername", lambda _: ("10.0.0.1", 80), raising=False)
    with pytest.raises(AddressRefused, match="answers in place of"):
        call(f"http://127.0.0.1:{server.server_address[1]}/")
    assert server.seen == []


def test_the_next_address_is_tried_where_one_refuses(allowed, server, resolver):
    resolver[0]["name.example"] = [["::1", "127.0.0.2", "127.0.0.1"]]
    assert call(f"http://name.example:{server.server_address[1]}/")["status"] == 200


def test_where_no_address_answers_each_is_named(allowed, resolver):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    resolver[0]["name.example"] = [["127.0.0.1", "127.0.0.2"]]
    with pytest.raises(httpx.ConnectError, match=rf"127\.0\.0\.1 port {port}: .*; 127\.0\.0\.2 port {port}: "):
        call(f"http://name.example:{port}/")


def test_a_name_that_is_not_found_is_named(resolver):
    def fail():
        raise socket.gaierror(-2, "Name or service not known")

    resolver[0]["name.example"] = [fail]
    with pytest.raises(httpx.ConnectError, match=r"name\.example cannot be resolved: .*Name or service not known"):
        call("http://name.example/")


def test_a_look_up_that_does_not_end_is_left_at_the_timeout(resolver):
    release = threading.Event()
    resolver[0]["name.example"] = [lambda: release.wait(30) and []]
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"did not end within 0\.2 s: the look-up of name\.example"):
        call("http://name.example/", timeout=0.2)
    assert time.monotonic() - began < 5
    release.set()


def test_a_private_address_is_called_where_the_setting_allows_it(allowed, server, url):
    assert call(f"{url}/path")["status"] == 200
    assert [path for path, *_ in server.seen] == ["/path"]


def test_a_status_that_is_not_expected_fails(allowed, server, url):
    server.answers["/busy"] = b"HTTP/1.0 503 Busy\r\n\r\nlater"
    with pytest.raises(UnexpectedStatus, match="answered 503: later"):
        call(f"{url}/busy")
    assert call(f"{url}/busy", expect=[503])["status"] == 503


def test_a_redirect_is_not_followed_and_said_to_be_so(allowed, server, url):
    server.answers["/moved"] = b"HTTP/1.0 302 Found\r\nLocation: /elsewhere\r\n\r\n"
    with pytest.raises(UnexpectedStatus, match="answered 302 to /elsewhere, which is not followed"):
        call(f"{url}/moved")
    assert [path for path, *_ in server.seen] == ["/moved"]


def test_only_the_start_of_a_large_body_is_kept(allowed, server, url):
    server.answers["/large"] = b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 3 * http.MAX_READ
    assert len(call(f"{url}/large")["body"]) == http.MAX_BODY


@pytest.mark.parametrize("filling", ["é", "\N{GRINNING FACE}", "\x01"])
def test_a_body_that_swells_as_json_leaves_the_result_whole(allowed, server, url, filling):
    server.answers["/large"] = b"HTTP/1.0 200 OK\r\n\r\n" + filling.encode() * 50_000
    result = call(f"{url}/large")
    assert result["status"] == 200
    assert len(json.dumps(result)) < 64 * 1024
    assert set(result["body"]) == {filling}


def test_headers_without_end_do_not_fill_the_record(allowed, server, url):
    many = b"".join(b"X-%d: %s\r\n" % (n, b"y" * 100) for n in range(400))
    server.answers["/"] = b"HTTP/1.0 200 OK\r\nX-First: 1\r\n" + many + b"\r\n"
    headers = call(f"{url}/")["headers"]
    assert headers["x-first"] == "1"
    assert len(json.dumps(headers)) <= http.MAX_HEADERS + 2


@pytest.mark.parametrize(
    "part",
    [b"x", b"X-Mine: 1\r\n", b"1\r\nx\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"],
    ids=["body", "headers", "chunks", "interim answers"],
)
def test_a_server_that_drips_does_not_outlive_the_timeout(allowed, server, url, part):
    start = {b"x": b"HTTP/1.0 200 OK\r\n\r\n", b"X-Mine: 1\r\n": b"HTTP/1.0 200 OK\r\n"}.get(part, b"")
    if part.startswith(b"1"):
        start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    def drip():
        yield start
        for _ in range(200):
            time.sleep(0.05)
            yield part

    server.answers["/drip"] = drip()
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"did not end within 0\.5 s"):
        call(f"{url}/drip", timeout=0.5)
    assert 0.4 < time.monotonic() - began < 5


def test_a_server_that_takes_the_request_slowly_does_not_outlive_the_timeout(allowed):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="taken too slowly"):
            call(f"http://127.0.0.1:{silent.getsockname()[1]}/", method="POST", body="x" * 30_000_000, timeout=0.5)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("packer", [gzip.compress, zlib.compress])
def test_a_packed_bomb_fills_no_memory(allowed, server, url, packer):
    bomb = packer(bytes(200 * 1024 * 1024))
    name = b"gzip" if packer is gzip.compress else b"deflate"
    server.answers["/bomb"] = b"HTTP/1.0 200 OK\r\nContent-Encoding: " + name + b"\r\n\r\n" + bomb
    tracemalloc.start()
    result = call(f"{url}/bomb")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(result["body"]) == {"\0"}
    assert peak < 16 * 1024 * 1024


def test_a_bomb_in_a_bomb_is_not_unpacked(allowed, server, url):
    bomb = gzip.compress(gzip.compress(bytes(50 * 1024 * 1024)))
    server.answers["/bomb"] = b"HTTP/1.0 200 OK\r\nContent-Encoding: gzip, gzip\r\n\r\n" + bomb
    assert len(call(f"{url}/bomb")["body"]) <= len(bomb)


def test_a_packed_answer_that_was_not_asked_for_is_unpacked(allowed, server, url):
    server.answers["/"] = b"HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress("héllo".encode())
    assert call(f"{url}/")["body"] == "héllo"
    assert server.seen[0][1]["Accept-Encoding"] == "identity"


def test_an_answer_that_is_not_packed_as_it_says_is_told_so(allowed, server, url):
    server.answers["/"] = b"HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\n\r\nplain"
    with pytest.raises(httpx.DecodingError, match="not gzip, as it says"):
        call(f"{url}/")


@pytest.mark.parametrize(
    ("charset", "body"),
    [
        ("iso-8859-1", "é"),
        ("windows-1252", "é"),
        ("utf-16", "é"),
        ("no-such", "\ufffd"),
        ("punycode", "\ufffd"),
        ("hex", "\ufffd"),
    ],
)
def test_a_body_is_read_in_the_charset_that_it_names_where_that_is_one(allowed, server, url, charset, body):
    sent = "é".encode("utf-16" if charset == "utf-16" else "latin-1")
    server.answers["/"] = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain; charset=%s\r\n\r\n" % charset.encode() + sent
    assert call(f"{url}/")["body"] == body


def test_headers_and_a_json_body_are_sent(allowed, server, url):
    call(url, method="POST", headers={"X-Mine": "1", "user-agent": "mine"}, json={"a": "é"})
    [(_, headers, body)] = server.seen
    assert headers["Idempotency-Key"] == "the-run"
    assert (headers["X-Mine"], headers["User-Agent"], headers["Content-Type"]) == ("1", "mine", "application/json")
    assert body == '{"a":"é"}'.encode()
    assert not [name for name in headers if name.startswith("webhook-")]


@pytest.mark.parametrize("given", [{"X": "1\r\nY: 2"}, {"X\r\nY": "1"}, {"X": "1\nY: 2"}, {"X": "\0"}])
def test_a_header_cannot_smuggle_another(allowed, server, url, given):
    with pytest.raises(httpx.LocalProtocolError):
        call(url, headers=given)
    assert server.seen == []


@pytest.mark.parametrize("method", ["GET / HTTP/1.1\r\nX: 1\r\n\r\nGET", "GE T", ""])
def test_a_method_cannot_smuggle_a_request(allowed, server, url, method):
    with pytest.raises(httpx.LocalProtocolError):
        call(url, method=method)
    assert server.seen == []


@pytest.mark.parametrize("given", [{"json": {"a": [1, "é"]}}, {"json": False}, {"body": '{"a": 1}'}])
def test_the_official_library_verifies_what_is_sent(allowed, configure, server, url, given):
    configure(PUNCTUAL_WEBHOOK_SECRET=SECRET)
    for _ in range(2):
        call(url, method="POST", **given)
    (_, first, body), (_, second, _) = server.seen
    assert Webhook(SECRET).verify(body, first) == (json.loads(given["body"]) if "body" in given else given["json"])
    assert first["webhook-id"] == second["webhook-id"] == first["Idempotency-Key"] == "the-run"
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body + b" ", first)


def test_a_request_without_a_body_is_signed_too_and_both_secrets_of_a_rotation_verify(allowed, configure, server, url):
    configure(PUNCTUAL_WEBHOOK_SECRET=f"{SECRET},{OLD_SECRET}")
    call(url)
    [(_, headers, body)] = server.seen
    assert body == b""
    for secret in (SECRET, OLD_SECRET):
        Webhook(secret).verify(body, headers, json_parse=False)


@pytest.fixture
def tls(server, tmp_path):
    """A server with a certificate of its own making; the client trusts it where told to."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", "/CN=name.example", "-addext", "subjectAltName=DNS:name.example"]
    made = subprocess.run([*command, "-keyout", key, "-out", certificate, *names], capture_output=True, check=False)
    if made.returncode:
        pytest.fail(f"openssl made no certificate: {made.stderr.decode()}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return certificate


def test_over_tls_the_certificate_must_be_the_names_and_trusted(allowed, server, resolver, tls, monkeypatch):
    resolver[0].update({"name.example": [["127.0.0.1"]], "other.example": [["127.0.0.1"]]})
    port = server.server_address[1]
    with pytest.raises(httpx.ConnectError, match="self-signed"):
        call(f"https://name.example:{port}/")
    monkeypatch.setattr(gate, "_ssl_context", lambda: ssl.create_default_context(cafile=tls))
    assert call(f"https://name.example:{port}/")["body"] == "xxxxx"
    with pytest.raises(httpx.ConnectError, match="Hostname mismatch"):
        call(f"https://other.example:{port}/")
    assert len(server.seen) == 1


def test_a_handshake_that_does_not_end_is_left_at_the_timeout(allowed):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="TLS handshake took too long"):
            call(f"https://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.3)
        assert time.monotonic() - began < 5
