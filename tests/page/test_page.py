"""The page with ten thousand environments, in a real browser."""

import gzip
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from envfabric.core.errors import hide
from envfabric.index.document import Entry, Index
from envfabric.service import looking
from envfabric.service.http import HttpServer, Shown
from envfabric.service.page import rows_of
from envfabric.store.root import Root
from envfabric.telemetry.metrics import Metrics
from page.many import CLOSURES, HTML, NEEDLE, many, root_of

Open = Callable[..., Page]
COUNT = 10_000
ROWS = "#table tbody tr[data-n]"


@dataclass
class Served:
    """A server, and what it shows."""

    root: Root
    index: Index
    metrics: Metrics
    url: str = ""

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """Status and body."""
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(root_of(tmp_path_factory.mktemp("fabric")), many(COUNT), Metrics())
    shown = Shown(served.root, served.metrics, lambda: served.index, time.monotonic)
    with HttpServer("127.0.0.1", 0, shown) as server:
        served.url = server.url
        yield served


@pytest.fixture
def served(scene: Served) -> Iterator[Served]:
    """The server; an index that a test changes is put back."""
    index = scene.index
    yield scene
    scene.index = index


def failing(served: Served) -> str:
    """The first environment that failed."""
    return min(one for one, entry in served.index.entries.items() if entry.state == "failed")


def test_table_of_all(served: Served, visit: Open) -> None:
    """The page tells the revision, its age, the role, problems and each state's count; of the rows few are drawn."""
    page = visit(served.url)
    expect(page.locator("#found")).to_have_text(f"{COUNT + 1} environments")
    told = page.locator("header").inner_text()
    assert all(one in told for one in ("c" * 40, "4217", "under way", "ago", "standby"))
    counts = Counter(one.state for one in served.index.entries.values())
    for state, count in counts.items():
        assert page.locator(f"button[data-state={state}]").inner_text().split() == [state, str(count)]
    assert page.locator(".problems").inner_text().startswith("1 problem in")
    assert HTML in page.locator(".problems").inner_text()
    assert 10 < page.locator(ROWS).count() < 100
    assert page.locator("#table").get_attribute("aria-rowcount") == str(COUNT + 2)
    served.metrics.writer.set(1)
    page.reload()
    assert page.locator(".role").inner_text() == "writer"
    served.metrics.writer.set(0)


def test_search_as_you_type(served: Served, visit: Open) -> None:
    """Words are found in ids and errors, all of them; what others wrote into an error is text, in row and details."""
    page = visit(served.url)
    page.get_by_label("Search").press_sequentially(f"{NEEDLE} ZZ/")
    expect(page.locator("#found")).to_have_text(f"1 of {COUNT + 1} environments")
    row = page.locator(ROWS)
    assert row.locator("th").inner_text() == "zz/last"
    assert f"{NEEDLE} {HTML}" in row.inner_text()
    row.click()
    assert f"{NEEDLE} {HTML}" in page.locator("#details").inner_text()
    assert page.locator("#table img, #details img, #table script").count() == 0
    page.keyboard.press("Escape")
    page.get_by_label("Search").fill("no such thing")
    expect(page.locator("#found")).to_have_text(f"0 of {COUNT + 1} environments")


def test_sort_and_filter(served: Served, visit: Open) -> None:
    """A title sorts by its column, once more the other way, and tells so; a state's count shows that state alone."""
    page = visit(served.url)
    entries = served.index.entries
    page.get_by_role("button", name="failed").click()
    failed = [one for one, entry in entries.items() if entry.state == "failed"]
    expect(page.locator("#found")).to_have_text(f"{len(failed)} of {COUNT + 1} environments")
    assert set(page.locator(f"{ROWS} .state").all_inner_texts()) == {"failed"}
    assert page.locator("button[data-state=failed]").get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="failed").click()
    page.get_by_role("button", name="Age").click()
    serving = {one: entry.built_at or "" for one, entry in entries.items() if entry.serving}
    assert page.locator(f"{ROWS} th").first.inner_text() == max(serving, key=serving.__getitem__)
    assert page.get_by_role("columnheader", name="Age").get_attribute("aria-sort") == "ascending"
    page.get_by_role("button", name="Age").click()
    assert page.locator(f"{ROWS} th").first.inner_text() == min(serving, key=serving.__getitem__)
    assert page.get_by_role("columnheader", name="Age").get_attribute("aria-sort") == "descending"
    assert page.get_by_role("columnheader", name="State").get_attribute("aria-sort") == "none"
    assert page.locator(ROWS).first.locator("td.number").nth(1).inner_text() == "13.0 MiB"
    # Of one reason by id, as people count; what has no error comes last, whichever way.
    reasons = {one: entry.error.reason for one, entry in entries.items() if entry.error}
    for last in (min, max):
        page.get_by_role("button", name="Error").click()
        shown = last(reasons.values())
        ids = [one for one, reason in reasons.items() if reason == shown]
        ids.sort(key=lambda one: [int(part) for part in re.findall(r"\d+", one)] or [COUNT])
        assert page.locator(f"{ROWS} th").all_inner_texts()[:10] == ids[:10]


def test_sizes_add_up(served: Served) -> None:
    """Each environment has its part of what its closure shares with others, and of the closure with other specs."""
    index = many(80)
    sizes = looking.count_sizes(served.root)
    rows = rows_of(index, sizes)
    used = Counter(one.serving for one in index.entries.values() if one.serving)
    assert max(used.values()) > 1
    for row in rows:
        if row["closure"] is None:
            assert row["size"] is row["saved"] is None
        else:
            share = (10 / CLOSURES + 3) / used[row["closure"]]
            assert (row["size"], row["saved"]) == (13 << 20, pytest.approx((13 - share) * (1 << 20), abs=1))


AGAIN = 300_000
"""Milliseconds within which an open page asks once more, however long the last answer took."""
PLACE = (
    "row => row.getBoundingClientRect().top - document.querySelector('#scroll').getBoundingClientRect().top"
)


def test_what_is_published_comes_by_itself(served: Served, visit: Open) -> None:
    """An open page takes over what was published since; words, order and the row that one is on stay."""
    served.index = first = many(600)
    page = visit(served.url, clock=True)
    page.get_by_label("Search").fill("flow-00")
    page.get_by_role("button", name="Gen").click()
    page.get_by_label("Search").press("ArrowDown")
    for _ in range(6):
        page.keyboard.press("PageDown")
    here = page.locator(f"{ROWS}:focus")
    name, place = here.locator("th").inner_text(), here.evaluate(PLACE)
    row = int(here.get_attribute("data-n") or 0)
    # Ten more come before it, two go, its own state is another, and so is all that stands above the table.
    entries = dict(first.entries)
    for n in range(10):
        entries[f"flow-0000/more-{n}"] = Entry("ready", "t", "d" * 40, serving="0" * 64, generation=0)
    for gone in [one for one, entry in entries.items() if entry.generation == 1][:2]:
        del entries[gone]
    entries[name] = replace(entries[name], state="building")
    served.index = Index("d" * 40, 4218, first.published_at, entries)
    page.clock.fast_forward(AGAIN)
    expect(page.locator("header")).to_contain_text("sequence 4218")
    assert page.locator(".problems").count() == 0
    assert page.get_by_label("Search").input_value() == "flow-00"
    assert page.get_by_role("columnheader", name="Gen").get_attribute("aria-sort") == "ascending"
    assert here.locator("th").inner_text() == name
    assert here.get_attribute("data-n") == str(row + 8)
    assert here.evaluate(PLACE) == place
    assert here.locator(".state").inner_text() == "building"
    expect(page.locator("#found")).to_have_text(f"608 of {len(entries)} environments")
    counts = Counter(one.state for one in entries.values())
    assert page.locator("button[data-state=ready] b").inner_text() == str(counts["ready"])
    # Nothing new: it is told so without the rows, and the page says that it heard.
    moment = page.locator("#asof").inner_text()
    with page.expect_response("**/rows.json") as heard:
        page.clock.fast_forward(AGAIN)
    assert heard.value.status == 304
    expect(page.locator("#asof")).not_to_have_text(moment)
    expect(page.locator("#asof")).to_have_text(re.compile(r"as of \d\d:\d\d:\d\d"))
    page.evaluate("window.asked = window.fetch; window.fetch = () => Promise.reject(new Error('away')); 0")
    page.clock.fast_forward(AGAIN)
    expect(page.locator("#asof")).to_have_text(re.compile(r"no answer since \d\d:\d\d:\d\d"))
    # The daemon was upgraded: what it sends is for another script.
    page.evaluate("window.fetch = window.asked; 0")
    page.route("**/rows.json", lambda route: route.fulfill(json={"script": "another", "tag": "x"}))
    with page.expect_event("load"):
        page.clock.fast_forward(AGAIN)
    assert page.evaluate("typeof window.asked") == "undefined"


def test_by_keyboard(served: Served, visit: Open) -> None:
    """Without a mouse: / searches, arrows go through the rows, Enter opens one, Escape goes back to where one was."""
    page = visit(served.url)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("flow-0001")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    here = page.locator(f"{ROWS}:focus")
    assert here.get_attribute("data-n") == "1"
    assert here.evaluate("row => getComputedStyle(row).outlineStyle") == "solid"
    name = here.locator("th").inner_text()
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog", name=name).is_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#details")).to_be_hidden()
    expect(here).to_have_attribute("data-n", "1")
    page.keyboard.press("Escape")
    expect(page.locator("#found")).to_have_text(f"{COUNT + 1} environments")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("End")
    expect(here).to_have_attribute("data-n", str(COUNT))
    assert here.evaluate("row => row.getBoundingClientRect().bottom <= innerHeight")
    page.keyboard.press("Home")
    expect(here).to_have_attribute("data-n", "0")
    # By Tab from the top: search, five states, the titles, and then one row, not ten thousand.
    page.evaluate("document.activeElement.blur(); document.querySelector('#search').focus()")
    for _ in range(5 + 11 + 1):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('tbody') !== null")


LUMINANCE = """
element => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((one) => one / 255)
    .map((one) => (one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
    .reduce((sum, one, n) => sum + one * [0.2126, 0.7152, 0.0722][n], 0);
  let behind = element;
  while (behind && parse(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(parse).map(light);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_in_light_and_dark(served: Served, visit: Open, scheme: str) -> None:
    """In either scheme the page is of that scheme, and every kind of text has the contrast of WCAG AA."""
    page = visit(served.url, color_scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 23, 26)") is (scheme == "dark")
    kinds = [
        "h1",
        ".told span",
        ".role",
        ".problems summary",
        "#found",
        "#asof",
        ".hint",
        "thead button",
        f"{ROWS} a",
    ]
    kinds += [f"button[data-state={one}]" for one in ("ready", "stale", "failed", "building", "pending")]
    for kind in kinds:
        assert page.locator(kind).first.evaluate(LUMINANCE) >= 4.5, kind


def test_without_javascript(served: Served, visit: Open) -> None:
    """Where no script runs every environment stands in a plain table, with its error and its logs."""
    served.index = many(count := 200)
    page = visit(served.url, java_script_enabled=False)
    rows = page.locator("table.plain tbody tr")
    assert rows.count() == count + 1
    assert f"build-failed: {NEEDLE} {HTML}" in rows.last.inner_text()
    assert page.locator("#app").is_hidden()
    assert rows.last.get_by_role("link", name="failure").get_attribute("href") == "logs/failures/zz/last"


def test_log_opens(served: Served, visit: Open) -> None:
    """The link of a failed environment shows its log as text; no secret and no markup comes through."""
    spec_id = failing(served)
    log = served.root.failures / f"{spec_id}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    hide("a-hidden-secret")
    log.write_text(f"it failed {HTML}\nhttps://me:password@index.example/ a-hidden-secret\n")
    page = visit(served.url)
    page.get_by_label("Search").fill(spec_id)
    page.locator(ROWS).first.get_by_role("link", name="failure").click()
    page.wait_for_url("**/logs/failures/**")
    text = page.locator("body").inner_text()
    assert f"it failed {HTML}" in text
    assert "https://***@index.example/ ***" in text
    assert page.locator("img").count() == 0


def test_logs_are_of_the_index_and_bounded(served: Served, tmp_path: Path) -> None:
    """A log is read for an environment of the index only, is no link or pipe, and of a long one the ends are shown."""
    name = next(one.serving for one in served.index.entries.values() if one.serving)
    log = served.root.closure(str(name)) / "build.log"
    assert served.get(f"/logs/builds/{name}")[0] == 404
    log.write_text("begin\n" + "x" * 3_000_000 + "\nend\n")
    status, body = served.get(f"/logs/builds/{name}")
    assert status == 200
    assert body.startswith(b"begin\n")
    assert body.endswith(b"\nend\n")
    assert b"bytes left out" in body
    assert len(body) < 600_000
    log.unlink()
    os.mkfifo(log)
    assert served.get(f"/logs/builds/{name}")[0] == 404
    log.unlink()
    secret = tmp_path / "secret"
    secret.write_text("secret")
    log.symlink_to(secret)
    status, body = served.get(f"/logs/builds/{name}")
    assert status == 503
    assert b"secret" not in body
    log.unlink()
    (served.root.failures / "of").mkdir(parents=True, exist_ok=True)
    (served.root.failures / "of" / "nobody.log").write_text("secret")
    for path in (
        "failures/of/nobody",
        "failures/../../secret",
        "failures/%2e%2e/secret",
        "builds/..",
        "builds/",
        "other/x",
        "",
    ):
        assert served.get(f"/logs/{path}")[0] == 404, path


@pytest.mark.parametrize("part", ["first", "last"])
def test_a_cut_shows_no_half_of_a_credential(served: Served, part: str) -> None:
    """Wherever the cut of a long log falls in one, nothing of it is shown, not even of a line without an end."""
    name = next(one.serving for one in served.index.entries.values() if one.serving)
    log = served.root.closure(str(name)) / "build.log"
    hide(secret := "ZQ" * 600)
    url = f"https://{'QZ' * 600}@index.example/"
    size = looking._FIRST + looking._LAST + 5 * looking._MARGIN
    where = looking._FIRST if part == "first" else size - looking._LAST - looking._MARGIN
    cuts = (where, where + looking._MARGIN)
    for text in (secret, url):
        for at in (cut - back for cut in cuts for back in range(-1, len(text) + 2, 240)):
            log.write_bytes((b"x" * at + text.encode()).ljust(size, b"y"))
            shown = looking.read_log(log)
            assert "QZQ" not in shown
            assert "bytes left out" in shown
            assert len(shown) > looking._FIRST + looking._LAST - 3000
    log.write_text(f"short {secret} {url}")
    assert looking.read_log(log) == "short *** https://***@index.example/"
    log.unlink()


def test_a_hung_nas_holds_up_one_log(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the NAS hangs a log says so in time, more of them at once, and everything else answers as ever."""
    back, begun = threading.Event(), threading.Semaphore(0)

    def hang(path: Path) -> str:
        begun.release()
        back.wait(120)
        return "log"

    monkeypatch.setattr(looking, "read_log", hang)
    address = f"/logs/failures/{failing(served)}"
    answers: list[int] = []

    def ask() -> None:
        answers.append(served.get(address)[0])

    threads = [threading.Thread(target=ask) for _ in range(looking.READS)]
    try:
        for thread in threads:
            thread.start()
        for _ in threads:
            assert begun.acquire(timeout=60)
        # No thread is left for it: it is told without waiting for one.
        assert served.get(address) == (
            503,
            b"ROOT does not answer within 5 s: is the NAS there? Try again later.\n",
        )
        assert served.get("/")[0] == 200
        assert served.get("/healthz")[0] == 200
        for thread in threads:
            thread.join(60)
        assert answers == [503] * looking.READS
    finally:
        back.set()


def test_packed_and_made_once(served: Served) -> None:
    """The page goes packed to who can unpack it, is the same for all until something is published, and then another."""
    plain = served.get("/")[1]
    packed = served.get("/", **{"Accept-Encoding": "gzip"})[1]
    assert gzip.decompress(packed) == plain == served.get("/")[1]
    assert len(packed) < len(plain) / 5
    # Whoever has it is told so, by the same tag for the page and for what an open one asks.
    tag = re.search(r'"tag":"(W/[^,]+)","', plain.decode())
    known = {"If-None-Match": tag[1].replace('\\"', '"')} if tag else {}
    assert served.get("/rows.json", **known) == served.get("/", **known) == (304, b"")
    assert len(json.loads(served.get("/rows.json")[1])["rows"]) == COUNT + 1
    served.index = Index("d" * 40, 4218, served.index.published_at, {})
    assert b"sequence 4218" in served.get("/")[1]
    status, rows = served.get("/rows.json", **known)
    assert (status, json.loads(rows)["rows"]) == (200, [])


def test_sizes_do_not_wait_for_the_nas(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count of sizes that hangs costs the page its sizes and nothing else, and only one thread ever waits."""
    back = threading.Event()
    counts: list[Root] = []

    def hang(root: Root) -> dict[str, looking.Size]:
        counts.append(root)
        back.wait(120)
        return {}

    monkeypatch.setattr(looking, "count_sizes", hang)
    mine = looking.Looking(served.root)
    try:
        assert mine.sizes(served.index) == {}
        assert mine.sizes(many(3)) == {}
        assert len(counts) == 1
    finally:
        back.set()
