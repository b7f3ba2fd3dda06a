"""A server of HTTP that answers as a test has written down, and keeps what it was asked."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit


class Script:
    """Per call, as `GET /runs/1`, the answers in their order; the last one is given again and again.

    An answer is JSON, or a function that makes it of the request; a tuple has status, JSON or text, and headers.
    """

    def __init__(self, answers):
        self.answers = {call: list(given) if isinstance(given, list) else [given] for call, given in answers.items()}
        self.requests = []

    def answer(self, request):
        self.requests.append(request)
        given = self.answers.get(f"{request['method']} {request['path']}")
        if given is None:
            return 404, {"code": "not_found", "status": 404, "message": "There is nothing here.", "errors": {}}, {}
        found = given.pop(0) if len(given) > 1 else given[0]
        found = found(request) if callable(found) else found
        return found if isinstance(found, tuple) else (200, found, {})

    def of(self, path):
        return [request for request in self.requests if request["path"] == path]


@contextmanager
def serving(script, base="/api/v1"):
    """Serves the script on this machine; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self):
            split = urlsplit(self.path)
            raw = self.rfile.read(int(self.headers["Content-Length"] or 0))
            status, body, headers = script.answer(
                {
                    "method": self.command,
                    "path": split.path.removeprefix(base),
                    "query": dict(parse_qsl(split.query)),
                    "headers": dict(self.headers),
                    "body": json.loads(raw) if raw else None,
                }
            )
            text = body if isinstance(body, str) else json.dumps(body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_PATCH = do_DELETE = handle_one  # noqa: N815 - the server's own names

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
