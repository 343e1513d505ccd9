"""A package index (PEP 503, PEP 700) on the loopback: a folder of distributions, and ways to misbehave."""

import base64
import contextlib
import email
import hashlib
import html
import json
import socket
import socketserver
import sys
import tarfile
import threading
import zipfile
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from support.wheels import make_sdist, make_wheel, normalized

# A test that forgets to release a hold fails; it does not hang.
LONGEST_HOLD = 120


class SimpleIndex:
    """Serves `folder` while it is entered; what is added to the folder shows at once."""

    def __init__(
        self, folder: Path, *, user: str | None = None, password: str = "", hashes: bool = True
    ) -> None:
        """`hashes`: whether links say the SHA-256 of what they lead to; some indexes do not.

        `immutable`, to be set: whether files are said never to change, so that nobody asks for one twice.
        `pages_fresh_for`, to be set: seconds for which pages may be believed without asking again.
        `uploads`, to be filled: when each file, by its name, was uploaded, such as 2026-01-31T00:00:00Z. Pages
        are JSON then, the only form that tells this, and sizes. `files_at`, to be set: the beginning of an address
        that files are said to be at instead of this server's own.
        """
        self.folder = folder
        self.hashes = hashes
        self.immutable = True
        self.pages_fresh_for = 0
        self.uploads: dict[str, str] = {}
        self.files_at: str | None = None
        self.fail_with: int | None = None
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._authorization = None if user is None else f"Basic {token}"
        # Appending to a list and copying it are atomic.
        self._requests: list[str] = []
        self._holds: list[tuple[str | None, str | None, threading.Event]] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> "SimpleIndex":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for _project, _kind, event in self._holds:
            event.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The address to give to uv; credentials are never part of it."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/simple"

    @property
    def requests(self) -> list[str]:
        """The paths that were asked for, also those not answered yet, in order of arrival."""
        return self._requests.copy()

    def add_wheel(self, name: str, version: str = "1.0", **details: Any) -> Path:
        return make_wheel(self.folder, name, version, **details)

    def add_sdist(self, name: str, version: str = "1.0", **details: Any) -> Path:
        return make_sdist(self.folder, name, version, **details)

    def remove(self, filename: str) -> None:
        (self.folder / filename).unlink()

    def hold(self, project: str | None = None, *, kind: str | None = None) -> threading.Event:
        """Let every answer, or those for one project, wait until the event is set.

        `kind`: only answers whose path begins so: its "files", its page ("simple"), or what it does not have.
        """
        event = threading.Event()
        self._holds.append((project and normalized(project), kind, event))
        return event

    def answer(self, path: str, authorization: str | None) -> tuple[int, bytes]:
        """The status and the body for one request."""
        kind, _, name = unquote(urlsplit(path).path).strip("/").partition("/")
        project = normalized(name) if kind == "simple" else _project(name)
        self._requests.append(path)
        for held, of_kind, event in self._holds.copy():
            if held in (None, project) and of_kind in (None, kind):
                event.wait(LONGEST_HOLD)
        if self.fail_with is not None:
            return self.fail_with, b""
        if self._authorization not in (None, authorization):
            return HTTPStatus.UNAUTHORIZED, b""
        files = sorted([*self.folder.glob("[!.]*.whl"), *self.folder.glob("[!.]*.tar.gz")])
        # What is sent is chosen from the listing, so that no name can lead out of the folder.
        if kind == "files":
            bodies = [file.read_bytes() for file in files if file.name == name]
        elif kind == "simple" and name:
            found = [file for file in files if _project(file.name) == project]
            if self.uploads:
                bodies = [self._page_in_json(name, found)] if found else []
            else:
                bodies = _page([_link(file, self.files_at, hashes=self.hashes) for file in found])
        elif kind == "simple":
            projects = {_project(file.name) for file in files}
            bodies = _page([f'<a href="{each}/">{each}</a>' for each in projects])
        else:
            bodies = []
        return (HTTPStatus.OK, bodies[0]) if bodies else (HTTPStatus.NOT_FOUND, b"")

    def _page_in_json(self, name: str, files: list[Path]) -> bytes:
        listed: list[dict[str, Any]] = []
        for file in files:
            entry: dict[str, Any] = {
                "filename": file.name,
                "url": f"{self.files_at or '../..'}/files/{quote(file.name)}",
                "hashes": {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()} if self.hashes else {},
                "size": file.stat().st_size,
            }
            if uploaded := self.uploads.get(file.name):
                entry["upload-time"] = uploaded
            with contextlib.suppress(Exception):
                if python := email.message_from_bytes(_metadata(file))["Requires-Python"]:
                    entry["requires-python"] = python
            listed.append(entry)
        return json.dumps({"meta": {"api-version": "1.1"}, "name": name, "files": listed}).encode()


class _Server(socketserver.ThreadingTCPServer):
    # uv opens up to fifty connections at once.
    request_queue_size = 128

    def __init__(self, index: SimpleIndex) -> None:
        self.index = index
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        # It waits for the threads, and those wait for a next request on a connection kept alive.
        for connection in self._connections.copy():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that is killed while it waits is what some tests are about.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    # Head and body are two writes; together with delayed acknowledgements this would cost 40 ms.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        status, body = self.server.index.answer(self.path, self.headers["Authorization"])
        file = status == HTTPStatus.OK and self.path.startswith("/files/")
        self.send_response(status)
        page = "text/html; charset=utf-8"
        if self.server.index.uploads:
            page = "application/vnd.pypi.simple.v1+json"
        self.send_header("Content-Type", "application/octet-stream" if file else page)
        self.send_header("Content-Length", str(len(body)))
        # A file of a given name never changes on a real index; the pages do.
        kept = file and self.server.index.immutable
        fresh = f"max-age={self.server.index.pages_fresh_for}"
        self.send_header(
            "Cache-Control", "max-age=365000000, immutable" if kept else fresh if not file else "no-cache"
        )
        if status == HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", 'Basic realm="index"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _project(filename: str) -> str:
    return normalized(filename.split("-", 1)[0])


def _page(links: list[str]) -> list[bytes]:
    lines = ["<!DOCTYPE html><html><body>", *sorted(links), "</body></html>"]
    return ["\n".join(lines).encode()] if links else []


def _link(file: Path, at: str | None, *, hashes: bool) -> str:
    details = f"#sha256={hashlib.sha256(file.read_bytes()).hexdigest()}" if hashes else ""
    # A damaged file says nothing of Python, and is served all the same.
    with contextlib.suppress(Exception):
        if python := email.message_from_bytes(_metadata(file))["Requires-Python"]:
            details += f'" data-requires-python="{html.escape(python)}'
    return f'<a href="{at or "../.."}/files/{quote(file.name)}{details}">{file.name}</a>'


def _metadata(file: Path) -> bytes:
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            return wheel.read("-".join(file.name.split("-")[:2]) + ".dist-info/METADATA")
    with tarfile.open(file) as sdist:
        member = sdist.extractfile(file.name.removesuffix(".tar.gz") + "/PKG-INFO")
        return member.read() if member else b""
