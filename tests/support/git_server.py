"""A git host on the loopback: `git http-backend`, the real one, behind a small HTTP server that can misbehave."""

import base64
import contextlib
import os
import socketserver
import subprocess
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

# A test that forgets to release a hold fails; it does not hang.
_LONGEST_HOLD = 120


class GitServer:
    """Serves the bare repositories below `folder` while it is entered, and on the same port after `up`."""

    def __init__(
        self,
        folder: Path,
        *,
        user: str | None = None,
        password: str = "",
        filters: bool = True,
        old: bool = False,
    ) -> None:
        """With `user`, basic authentication is demanded. `filters`: whether partial clones are served; `old`: whether
        only the first version of git's protocol is spoken, which gives no object by its id."""
        self.folder = folder
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        self.authorization = None if user is None else f"Basic {token}"
        self.filters = filters
        self.old = old
        self.requests: list[str] = []
        """The paths that were asked for, also those not answered yet."""
        self._hold: threading.Event | None = None
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self.port = 0

    def __enter__(self) -> "GitServer":
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self.down()

    def url(self, name: str) -> str:
        """The address of one repository, without credentials."""
        return f"http://127.0.0.1:{self.port}/{name}"

    def up(self) -> None:
        """Begins to listen: at first on a free port, later on the same."""
        self._server = _Server(self, self.port)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def down(self) -> None:
        """Refuses connections from now on."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = self._thread = None

    def hold(self) -> None:
        """Lets every answer wait from now on, the connection open."""
        self._hold = threading.Event()

    def release(self) -> None:
        """Answers again, also what waited."""
        if self._hold is not None:
            self._hold.set()
            self._hold = None

    def wait(self) -> None:
        """Called by each request before it is answered."""
        if self._hold is not None:
            self._hold.wait(_LONGEST_HOLD)

    def environment(self) -> dict[str, str]:
        """What `git http-backend` gets from its server, besides the request."""
        settings = {"safe.directory": "*", "http.uploadpack": "true"}
        settings["uploadpack.allowFilter"] = str(self.filters).lower()
        found = {"PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(self.folder), "GIT_HTTP_EXPORT_ALL": "1"}
        found |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        found["GIT_CONFIG_COUNT"] = str(len(settings))
        for number, (key, value) in enumerate(settings.items()):
            found |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        return found


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, owner: GitServer, port: int) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was ended in the middle is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""

    def _answer(self) -> None:
        owner = self.server.owner
        parts = urlsplit(self.path)
        owner.requests.append(parts.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        owner.wait()
        if owner.authorization is not None and self.headers.get("Authorization") != owner.authorization:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="specs"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        env = owner.environment() | {
            "REQUEST_METHOD": self.command,
            "PATH_INFO": unquote(parts.path),
            "QUERY_STRING": parts.query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "REMOTE_ADDR": self.client_address[0],
        }
        if not owner.old:
            env["GIT_PROTOCOL"] = self.headers.get("Git-Protocol", "")
        done = subprocess.run(["git", "http-backend"], env=env, input=body, capture_output=True, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        status, headers = 200, []
        for line in head.decode().split("\r\n"):
            name, _, value = line.partition(": ")
            if name.lower() == "status":
                status = int(value.split()[0])
            elif name:
                headers.append((name, value))
        with contextlib.suppress(OSError):
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
