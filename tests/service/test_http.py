"""HTTP: what each address answers, before and after something is published, and to whom."""

import contextlib
import http.client
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from envfabric.core.errors import ConfigError, Reason
from envfabric.index.document import Entry, Failure, Index, to_json
from envfabric.service.http import LOOP_BOUND, HttpServer, Shown, accepts_gzip, is_near
from envfabric.service.page import page
from envfabric.service.settings import Settings, address
from envfabric.service.watchdog import Wait
from envfabric.specs.tree import Problem
from envfabric.store.root import Root
from envfabric.telemetry.metrics import Metrics

ROOT = Root(Path("/nowhere/nas"))
HTML = "<script>alert('x')</script>&\""
FAILURE = Failure(Reason.BUILD_FAILED, f"wheel {HTML}", f"/nas/{HTML}.log", "c", "2025-01-01T00:00:00.000Z")
INDEX = Index(
    revision="c" * 40,
    sequence=7,
    published_at="2025-01-01T00:00:00.000Z",
    entries={
        "wf/a": Entry("ready", "t", "c", serving="d1", generation=3, python_version="3.11.7"),
        "wf/b": Entry("failed", "t", "c", error=FAILURE),
    },
    problems=(Problem(f"x{HTML}/pyproject.toml", Reason.INVALID_SPEC, f"no id {HTML}"),),
)


@dataclass
class Served:
    """A server, and what it shows, to be changed by a test."""

    metrics: Metrics = field(default_factory=Metrics)
    index: Index | None = INDEX
    heartbeat: Callable[[], float] = time.monotonic
    wait: Wait | None = None
    server: HttpServer = field(init=False)

    def __post_init__(self) -> None:
        shown = Shown(
            ROOT, self.metrics, lambda: self.index, lambda: self.heartbeat(), wait=lambda: self.wait
        )
        self.server = HttpServer("127.0.0.1", 0, shown)

    def ask(self, path: str, method: str = "GET") -> tuple[int, dict[str, str], str]:
        """Status, headers by name in lower case, and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, headers, answer.read().decode()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    served = Served()
    with served.server:
        yield served


@pytest.fixture
def served(server: Served) -> Served:
    """The server, showing an index and a loop that is alive."""
    server.index = INDEX
    server.heartbeat = time.monotonic
    server.wait = None
    return server


def can_connect(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def test_index_is_what_is_published(served: Served) -> None:
    """/index.json gives the same bytes as the file, without asking the NAS."""
    status, headers, body = served.ask("/index.json")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert body.encode() == to_json(INDEX, ROOT)
    assert json.loads(body)["sequence"] == 7


def test_metrics_are_parsed(served: Served) -> None:
    """/metrics is what a Prometheus reads, with the values of now."""
    served.metrics.builds.inc(5)
    status, headers, body = served.ask("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
        if not sample.labels
    }
    assert samples["envfabric_builds_total"] == 5


@pytest.mark.parametrize(
    ("age", "status"), [(0.0, 200), (LOOP_BOUND - 5, 200), (LOOP_BOUND + 5, 503), (86400.0, 503)]
)
def test_health_is_the_loops(served: Served, age: float, status: int) -> None:
    """/healthz is fine as long as the loop went round within its bound, published or not."""
    served.heartbeat = lambda: time.monotonic() - age
    for index in (INDEX, None):
        served.index = index
        assert served.ask("/healthz")[0] == status


def test_health_tells_what_the_loop_waits_for(served: Served) -> None:
    """A wait that was declared is fine up to its end, and told with its times: a NAS that is away is not hidden."""
    clock = time.monotonic()
    served.wait = Wait("opening /mnt/nas", clock - 300, clock + 600)
    status, _, body = served.ask("/healthz")
    assert status == 200
    found = re.fullmatch(
        r"last round 30\d\.\d s ago: opening /mnt/nas; since (\S+Z), allowed until (\S+Z)\n", body
    )
    assert found
    since, until = map(datetime.fromisoformat, found.groups())
    assert abs((until - since).total_seconds() - 900) <= 1
    assert since < datetime.now(UTC) < until
    served.wait = Wait("opening /mnt/nas", clock - 901, clock - 1)
    status, _, body = served.ask("/healthz")
    assert status == 503
    assert "opening /mnt/nas" in body


def test_ready_once_something_is_published(served: Served) -> None:
    """/readyz and /index.json have nothing before the first publication, and the index from then on."""
    served.index = None
    assert served.ask("/readyz")[0] == 503
    assert served.ask("/index.json")[0] == 404
    assert "nothing is published yet" in served.ask("/")[2]
    assert served.ask("/")[0] == 200
    served.index = INDEX
    assert served.ask("/readyz")[::2] == (200, "sequence 7\n")
    assert served.ask("/index.json")[0] == 200


@pytest.mark.parametrize("path", ["/index", "/metrics/", "/../etc/passwd", "/%2e%2e/", "/store"])
def test_other_paths_are_not_found(served: Served, path: str) -> None:
    """Nothing but the listed paths is served, and no file at all."""
    assert served.ask(path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
@pytest.mark.parametrize("path", ["/", "/metrics", "/index.json", "/logs/failures/wf/b", "/nowhere"])
def test_only_reading_is_allowed(served: Served, path: str, method: str) -> None:
    """Nothing can be changed by HTTP: every other method is refused, on every path."""
    assert served.ask(path, method)[0] == 405


@pytest.mark.parametrize("path", ["/", "/rows.json", "/index.json", "/healthz", "/readyz", "/nowhere"])
def test_head_answers_like_get(served: Served, path: str) -> None:
    """HEAD has the status and the headers of GET."""
    status, headers, _ = served.ask(path)
    head_status, head_headers, _ = served.ask(path, "HEAD")
    assert head_status == status
    kept = ("content-type", "cache-control", "x-content-type-options", "content-security-policy")
    assert {name: head_headers[name] for name in kept} == {name: headers[name] for name in kept}


@pytest.mark.parametrize(
    "path", ["/", "/rows.json", "/index.json", "/healthz", "/readyz", "/metrics", "/nowhere"]
)
@pytest.mark.parametrize("published", [True, False])
def test_head_is_get_without_its_body(served: Served, path: str, published: bool) -> None:
    """HEAD of every address has GET's status and headers, and not a byte after them."""
    served.index = INDEX if published else None
    served.heartbeat = lambda: 0.0
    get, head = (raw_answer(served, method, path) for method in ("GET", "HEAD"))
    assert head[0] == get[0]
    # The metrics say no length of themselves: the server counts what it sends.
    varying = {"date"} | ({"content-length"} if path in ("/metrics", "/healthz") else set())
    assert {one: head[1][one] for one in head[1].keys() - varying} == {
        one: get[1][one] for one in get[1].keys() - varying
    }
    assert get[2] != b""
    assert head[2] == b""


def raw_answer(served: Served, method: str, path: str) -> tuple[str, dict[str, str], bytes]:
    """Status line, headers by name in lower case, and all that follows until the server hangs up."""
    with socket.create_connection(("127.0.0.1", served.server.port), timeout=60) as connection:
        connection.sendall(f"{method} {path} HTTP/1.0\r\n\r\n".encode())
        raw = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return status, {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}, body


@pytest.mark.parametrize("path", ["/", "/rows.json", "/index.json", "/healthz", "/readyz"])
def test_answers_are_not_kept_or_guessed(served: Served, path: str) -> None:
    """No answer is cached, its type is not guessed, and nothing on a page may run."""
    headers = served.ask(path)[1]
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"].startswith("default-src 'none'")


def test_page_shows_every_environment(served: Served) -> None:
    """The page has each id with its state, generation and closure, each error with its log, each problem."""
    status, headers, body = served.ask("/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    for text in ("wf/a", "ready", "<td>3</td>", "3.11.7", "d1", "wf/b", "failed", "build-failed", "no id"):
        assert text in body
    assert "sequence 7" in body
    assert "c" * 40 in body


def test_page_escapes_what_others_wrote() -> None:
    """Errors, log paths, problems, ids and the revision can't bring markup into the page."""
    entries = {f"wf/{HTML}": INDEX.entries["wf/b"]}
    text = page(Index(HTML, 1, "", entries, INDEX.problems))
    # Its own data and its own script: no third one.
    assert text.count("<script") == 2
    assert text.count("</script") == 2
    assert text.count("&lt;script&gt;") == 5
    assert "<script>alert" not in text


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("", False),
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000, br", False),
        ("x-gzip", False),
    ],
)
def test_who_gets_gzip(header: str, accepted: bool) -> None:
    """The page is packed for those who say that they can unpack it."""
    assert accepts_gzip(header) is accepted


def test_taken_port_is_wrong_configuration(served: Served) -> None:
    """A second server on the same port is a ConfigError that names the address and the flag."""
    shown = Shown(ROOT, Metrics(), lambda: None, time.monotonic)
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{served.server.port}.*--listen"):
        HttpServer("127.0.0.1", served.server.port, shown)
    assert served.ask("/healthz")[0] == 200


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 0), ("127.0.0.1", 99999), ("no host", 0)])
def test_impossible_address_is_wrong_configuration(host: str, port: int) -> None:
    """An address that is not this host's, or no address, is a ConfigError."""
    with pytest.raises(ConfigError, match="can't listen on"):
        HttpServer(host, port, Shown(ROOT, Metrics(), lambda: None, time.monotonic))


def test_default_is_loopback_only() -> None:
    """With the default host the server is reached at 127.0.0.1, and at no other address of this host."""
    host, _ = address(str(Settings.model_fields["listen"].default))
    with HttpServer(host, 0, Shown(ROOT, Metrics(), lambda: None, time.monotonic)) as server:
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert can_connect("127.0.0.1", server.port)
        assert not can_connect("127.0.0.2", server.port)


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def test_ipv6_address_is_served() -> None:
    """[::1] works and the URL has brackets; on a host without IPv6 it is a wrong setting."""
    shown = Shown(ROOT, Metrics(), lambda: None, time.monotonic)
    if not has_ipv6():
        with pytest.raises(ConfigError, match="--listen"):
            HttpServer("::1", 0, shown)
        return
    with HttpServer("::1", 0, shown) as server:
        assert server.url == f"http://[::1]:{server.port}"
        assert can_connect("::1", server.port)


def test_closed_server_is_gone() -> None:
    """After close nobody listens, and the port can be taken again at once."""
    served = Served()
    served.ask("/healthz")
    served.server.close()
    assert not can_connect("127.0.0.1", served.server.port)
    HttpServer("127.0.0.1", served.server.port, Shown(ROOT, Metrics(), lambda: None, time.monotonic)).close()


def test_silent_client_keeps_nobody_waiting(served: Served) -> None:
    """A connection that says nothing does not hold up the others."""
    with socket.create_connection(("127.0.0.1", served.server.port)):
        assert served.ask("/readyz")[0] == 200


Asked = Callable[..., int]


@pytest.fixture
def asking() -> Iterator[Callable[[str | None], tuple[list[None], Asked]]]:
    """Makes servers that note each request for a look, and gives what asks them: headers to status."""
    with contextlib.ExitStack() as stack:

        def make(token: str | None) -> tuple[list[None], Asked]:
            looks: list[None] = []
            shown = Shown(ROOT, Metrics(), lambda: None, time.monotonic, lambda: looks.append(None), token)
            server = stack.enter_context(HttpServer("127.0.0.1", 0, shown))

            def ask(method: str = "POST", body: bytes = b"", **headers: str) -> int:
                connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
                named = {name.replace("_", "-"): value for name, value in headers.items()}
                connection.request(method, "/reconcile", body, named)
                status = connection.getresponse().status
                connection.close()
                return status

            return looks, ask

        yield make


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_a_look_is_asked_for_by_post(served: Served, method: str) -> None:
    """A link or a crawler asks for nothing: every other method is refused, with the one that is right."""
    status, headers, _ = served.ask("/reconcile", method)
    assert (status, headers["allow"]) == (405, "POST")
    assert served.ask("/metrics", "DELETE")[1]["allow"] == "GET, HEAD"


def test_a_look_from_this_host(asking: Callable[[str | None], tuple[list[None], Asked]]) -> None:
    """Without a token this host is heard, and neither a page in its browser nor who comes through its proxy."""
    looks, ask = asking(None)
    assert ask(Origin="http://127.0.0.1:9466") == 403
    assert ask(X_Forwarded_For="192.0.2.1") == 403
    assert ask(Forwarded="for=192.0.2.1") == 403
    assert looks == []
    assert ask() == 202
    assert ask(body=b"x" * 3_000_000) == 202
    assert len(looks) == 2


def test_a_refusal_is_heard_after_a_large_body(
    asking: Callable[[str | None], tuple[list[None], Asked]],
) -> None:
    """Whoever sends a push event of many megabytes hears why it is refused, and no broken connection."""
    body = b"x" * 8_000_000
    looks, ask = asking("right-token")
    assert ask(body=body) == 401
    assert ask(body=body, Origin="https://page.example") == 403
    assert ask("PUT", body=body) == 405
    assert asking(None)[1](body=body, X_Forwarded_For="192.0.2.1") == 403
    assert looks == []


def test_a_look_with_a_token(asking: Callable[[str | None], tuple[list[None], Asked]]) -> None:
    """With a token it is the one thing that counts, from this host, too."""
    looks, ask = asking("right-token")
    wrong = ["", "Bearer", "Bearer wrong-token", "Basic right-token", "right-token", "Bearer right-tokén"]
    assert [ask(Authorization=one) for one in wrong] == [401] * len(wrong)
    assert ask() == 401
    assert ask(Authorization="Bearer right-token", Origin="https://page.example") == 403
    assert looks == []
    assert ask(Authorization="Bearer right-token", X_Forwarded_For="192.0.2.1") == 202
    assert len(looks) == 1


@pytest.mark.parametrize(
    ("peer", "near"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:192.0.2.1", False),
        ("192.0.2.1", False),
        ("fe80::1%eth0", False),
        ("", False),
        ("host", False),
    ],
)
def test_which_peers_are_this_host(peer: str, near: bool) -> None:
    """Loopback of either family, also as a dual-stack socket names it."""
    assert is_near({"REMOTE_ADDR": peer}) is near
