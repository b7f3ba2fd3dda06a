"""A mail server of the tests' own, and a receiver of webhooks: both real, on this machine."""

import socket
import threading
from contextlib import contextmanager
from email import message_from_bytes
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult


class Mailbox:
    """Keeps the mails that it takes; before that it answers each recipient with what stands in `refusals`."""

    def __init__(self):
        self.mails, self.refusals, self.logins = [], [], []

    async def handle_RCPT(self, _server, _session, envelope, address, options):  # noqa: N802 - the library's name
        if self.refusals:
            return self.refusals.pop(0)
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 OK"

    async def handle_DATA(self, _server, _session, envelope):  # noqa: N802
        self.mails.append((envelope.rcpt_tos, message_from_bytes(envelope.content, policy=default)))
        return "250 OK"

    def authenticate(self, _server, _session, _envelope, _mechanism, login):
        self.logins.append((login.login, login.password))
        return AuthResult(success=login.password == b"s3cret", handled=False)


@contextmanager
def serving(tls=None, *, at_once=False):
    """A mail server on a free port; with the context `tls` it speaks TLS, from the first byte or after STARTTLS."""
    box = Mailbox()
    with socket.create_server(("127.0.0.1", 0)) as found:
        box.port = found.getsockname()[1]
    options = {"ssl_context": tls} if at_once else {"tls_context": tls, "require_starttls": tls is not None}
    if tls:
        options |= {"authenticator": box.authenticate, "auth_required": not at_once, "auth_require_tls": not at_once}
    controller = Controller(box, hostname="127.0.0.1", port=box.port, **options)
    controller.start()
    try:
        yield box
    finally:
        controller.stop()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((self.path, httpx.Headers(dict(self.headers)), body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 204)
        self.end_headers()
        self.wfile.write(self.path.encode())  # as many a server says what it did not find

    def log_message(self, *_):
        pass


@contextmanager
def sink():
    """A receiver of webhooks that keeps what it was sent, and answers with what stands in `statuses`, then with 204."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.posts, server.statuses = [], []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
