"""HTTP on loopback: metrics, health, the index, a page and its logs. Answers from memory, never from the NAS.

Nothing can be changed here; the one thing that may be asked for is a look at the specs. What the page shows of the NAS
is read in threads of its own with a time limit, see looking.py.
"""

import contextlib
import hmac
import ipaddress
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import make_wsgi_app

from envfabric.core.errors import ConfigError
from envfabric.index.document import Index, to_json
from envfabric.service.looking import Looking, NoAnswer
from envfabric.service.page import POLICY, Page
from envfabric.service.watchdog import Wait
from envfabric.store.root import Root, now
from envfabric.telemetry.metrics import Metrics

_MOST_BODY = 32 * 1024 * 1024
"""Bytes of a request's body that are read, to be thrown away: a push event of a git host has up to 25 MB."""
LOOP_BOUND = 60.0
"""Seconds without a round after which the loop no longer counts as alive."""


@dataclass(slots=True)
class Shown:
    """What the server may show; the loop's owner keeps it up to date."""

    root: Root
    metrics: Metrics
    index: Callable[[], Index | None]
    heartbeat: Callable[[], float]
    reconcile: Callable[[], None] = lambda: None
    """Asks for a fetch and a look at the specs, and returns at once."""
    token: str | None = field(default=None, repr=False)
    """What a request for that has to carry; without one it is taken from this host only."""
    wait: Callable[[], Wait | None] = lambda: None
    """What the loop has declared to be away for, see watchdog.py."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64

    def server_bind(self) -> None:
        # WSGIServer would ask DNS for this host's name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    timeout = 30
    """Seconds for which a connection may say nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not worth a log line."""


class HttpServer:
    """The server, from construction until `close`."""

    def __init__(self, host: str, port: int, shown: Shown) -> None:
        """Binds at once. Raises `ConfigError` where the address is taken or not this host's."""
        self._shown = shown
        self._page, self._looking = Page(), Looking(shown.root)
        self._metrics_app = make_wsgi_app(shown.metrics.registry)
        try:
            kind = _Server6 if ":" in host else _Server
            self._server = make_server(host, port, self._answer, kind, _Quiet)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"can't listen on {host}:{port}: {getattr(error, 'strerror', None) or error}. Choose another "
                "address with --listen."
            ) from error
        self.port = self._server.server_port
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="http", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the server and waits for its thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        method = environ.get("REQUEST_METHOD")
        if method not in {"GET", "HEAD"}:
            # Before any answer, a refusal too: the client would see a broken connection instead of it.
            _drop_body(environ)
        if environ.get("PATH_INFO") == "/reconcile":
            if method != "POST":
                return _reply(start, "405 Method Not Allowed", "only POST\n", allow="POST")
            return self._reconcile(environ, start)
        if method == "HEAD":
            return self._head(environ, start)
        if method != "GET":
            return _reply(start, "405 Method Not Allowed", "only GET\n", allow="GET, HEAD")
        return self._get(environ, start)

    def _reconcile(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        """Asks for a look, where the one who asks may do so."""
        if environ.get("HTTP_ORIGIN"):
            # A page in the browser of somebody on this host; a webhook and curl send none.
            return _reply(start, "403 Forbidden", "not from a browser's page\n")
        if self._shown.token is not None:
            # From everybody: through a proxy the whole world comes from loopback.
            given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1", "replace")
            wanted = b"Bearer " + self._shown.token.encode()
            if not hmac.compare_digest(given, wanted):
                return _reply(
                    start, "401 Unauthorized", "Authorization: Bearer <reconcile_token> is needed\n"
                )
        elif not is_near(environ):
            return _reply(
                start, "403 Forbidden", "only from this host, unless reconcile_token is set in the settings\n"
            )
        self._shown.reconcile()
        return _reply(start, "202 Accepted", "a fetch and a look are under way\n")

    def _head(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        """GET's status and headers, with the length of what it would send, and nothing after them."""
        told: list[tuple[str, list[tuple[str, str]]]] = []

        def note(status: str, headers: list[tuple[str, str]], *_: Any) -> Callable[[bytes], object]:
            told.append((status, headers))
            return lambda _: None

        length = sum(map(len, self._get({**environ, "REQUEST_METHOD": "GET"}, note)))
        status, headers = told[0]
        plain = [pair for pair in headers if pair[0].lower() != "content-length"]
        start(status, [*plain, ("Content-Length", str(length))])
        return []

    def _get(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            body: Iterable[bytes] = self._metrics_app(environ, start)
            return body
        index = self._shown.index()
        if path == "/healthz":
            alive, told = health(self._shown.heartbeat(), self._shown.wait())
            return _reply(start, "200 OK" if alive else "503 Service Unavailable", told)
        if path == "/readyz":
            text = f"sequence {index.sequence}\n" if index else "nothing is published yet\n"
            return _reply(start, "200 OK" if index else "503 Service Unavailable", text)
        if path == "/index.json" and index:
            return _reply(start, "200 OK", to_json(index, self._shown.root), "application/json")
        if path in {"/", "/rows.json"}:
            return self._page_of(index, environ, start, rows=path == "/rows.json")
        if path.startswith("/logs/"):
            return self._log(path.removeprefix("/logs/"), index, start)
        return _reply(start, "404 Not Found", "not here\n")

    def _page_of(
        self, index: Index | None, environ: WSGIEnvironment, start: StartResponse, *, rows: bool
    ) -> Iterable[bytes]:
        packed = accepts_gzip(environ.get("HTTP_ACCEPT_ENCODING", ""))
        sizes = self._looking.sizes(index) if index else {}
        writing = self._shown.metrics.registry.get_sample_value("envfabric_writer") == 1
        known = environ.get("HTTP_IF_NONE_MATCH")
        data, tag = self._page.get(index, sizes, writing=writing, packed=packed, rows=rows, known=known)
        more = [("ETag", tag), ("Vary", "Accept-Encoding")]
        if data is None:
            return _reply(start, "304 Not Modified", b"", policy=POLICY, more=more)
        more += [("Content-Encoding", "gzip")] if packed else []
        kind = "application/json" if rows else "text/html; charset=utf-8"
        return _reply(start, "200 OK", data, kind, policy=POLICY, more=more)

    def _log(self, asked: str, index: Index | None, start: StartResponse) -> Iterable[bytes]:
        kind, _, name = asked.partition("/")
        reads = {"failures": self._looking.failure, "builds": self._looking.build}
        if kind not in reads:
            return _reply(start, "404 Not Found", "not here\n")
        try:
            return _reply(start, "200 OK", reads[kind](name, index))
        except NoAnswer as error:
            return _reply(start, "503 Service Unavailable" if error.passing else "404 Not Found", str(error))


def health(heartbeat: float, wait: Wait | None) -> tuple[bool, str]:
    """Whether the loop is alive, and what is told of it; `heartbeat` in monotonic seconds, see watchdog.py."""
    clock = time.monotonic()
    if wait is None:
        age = clock - heartbeat
        return age < LOOP_BOUND, f"last round {age:.1f} s ago\n"
    # A probe that hears only that all is well would hide a NAS that is away for a quarter of an hour.
    began, until = (now(one - clock)[:-5] + "Z" for one in (wait.began, wait.until))
    told = f"last round {clock - wait.began:.1f} s ago: {wait.what}; since {began}, allowed until {until}\n"
    return clock < wait.until, told


def accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding names gzip, and not with a weight of nothing."""
    for part in header.lower().split(","):
        name, *details = (one.strip() for one in part.split(";"))
        if name == "gzip":
            return not any(one.replace(" ", "").rstrip("0.") == "q=" for one in details)
    return False


def is_near(environ: WSGIEnvironment) -> bool:
    """Whether a request was made on this host, and not handed on by a proxy on it."""
    if environ.get("HTTP_X_FORWARDED_FOR") or environ.get("HTTP_FORWARDED"):
        return False
    try:
        peer = ipaddress.ip_address(environ.get("REMOTE_ADDR", "").partition("%")[0])
    except ValueError:
        return False
    return (getattr(peer, "ipv4_mapped", None) or peer).is_loopback


def _drop_body(environ: WSGIEnvironment) -> None:
    """Reads what came with a request: a connection that is closed over unread bytes loses the answer, too."""
    try:
        left = min(int(environ.get("CONTENT_LENGTH") or 0), _MOST_BODY)
    except ValueError:
        return
    # One that sends less than it said, or nothing for long, hears its answer, or is gone.
    with contextlib.suppress(OSError):
        while left > 0 and (part := environ["wsgi.input"].read(min(left, 1 << 16))):
            left -= len(part)


def _reply(
    start: StartResponse,
    status: str,
    body: str | bytes,
    kind: str = "text/plain; charset=utf-8",
    allow: str | None = None,
    policy: str = "default-src 'none'; frame-ancestors 'none'",
    more: Iterable[tuple[str, str]] = (),
) -> list[bytes]:
    data = body.encode() if isinstance(body, str) else body
    start(
        status,
        [
            *([("Allow", allow)] if allow else []),
            *([("WWW-Authenticate", "Bearer")] if status.startswith("401") else []),
            ("Content-Type", kind),
            ("Content-Length", str(len(data))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Content-Security-Policy", policy),
            ("Referrer-Policy", "no-referrer"),
            *more,
        ],
    )
    return [data]
