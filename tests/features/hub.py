"""A model hub on this machine, answering as the real one does: licence gates, missing models, bad days included."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GRANTED, STRANGER, NARROW, EXPIRED = "hf_granted", "hf_stranger", "hf_narrow", "hf_expired"  # tokens


class Hub:
    """Repositories {name: {file: bytes}}, of which `gated` ask for the token GRANTED; `asked`: (method, path, token).

    broken: an HTTP status that is given to everyone instead, 0 = none.
    """

    def __init__(self, repositories: dict[str, dict[str, bytes]], gated: tuple[str, ...] = ()):
        self.repositories, self.gated, self.broken, self.asked = repositories, gated, 0, []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        """From now on nobody answers at this address."""
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) for /ORG/NAME/resolve/REVISION/FILE, with the error codes of the real hub."""
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if self.broken:
            return self.broken, {}, b""
        if token == EXPIRED:
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""
        if name not in self.repositories:
            return (404 if token else 401), {"X-Error-Code": "RepoNotFound"}, b""
        if name in self.gated and token == NARROW:
            return 403, {"X-Error-Message": "Please enable access to public gated repositories"}, b""
        if name in self.gated and token != GRANTED:
            return (403 if token else 401), {"X-Error-Code": "GatedRepo"}, b""
        if revision != "main":
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if file not in self.repositories[name]:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        body = self.repositories[name][file]
        return 200, {"ETag": f'"{file}-{len(body)}"', "X-Repo-Commit": "0" * 40}, body

    def _handler(hub):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
                hub.asked.append((self.command, self.path, token))
                status, headers, body = hub.answer(self.path, token)
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_):
                """Nothing is printed."""

        return Handler
