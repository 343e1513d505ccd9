"""The page at `/`: every environment of the published index, as one document without any outside asset.

Rendered once for each publication, with the rows as data for page.js, which draws those in view and asks for newer ones
at `/rows.json`, and as a plain table for readers without JavaScript. What others wrote (ids, messages, paths) goes in
escaped, and the page's policy lets nothing run but the one script that lies beside this module. Works on what it is
given: never touches the NAS.
"""

import base64
import gzip
import hashlib
import html
import importlib.resources
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from envfabric.index.document import Entry, Index
from envfabric.service.looking import Size
from envfabric.telemetry.metrics import STATES

_HERE = importlib.resources.files(__package__)
_SCRIPT = (_HERE / "page.js").read_text("utf-8")
_STYLE = (_HERE / "page.css").read_text("utf-8")
_MOST_PROBLEMS = 1000
"""Problems that are listed; index.json has all."""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {_hash(_STYLE)}; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the page: no other script or style, no request to another server, no frame around it."""


@dataclass(slots=True)
class _Rendered:
    index: Index | None
    sizes: Mapping[str, Size]
    writing: bool
    tag: str
    texts: dict[tuple[bool, bool], bytes] = field(default_factory=dict)
    """What was asked for so far: by whether it is the rows alone, and whether it is packed."""


class Page:
    """The page as it was rendered last. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: _Rendered | None = None
        # Another process's tags are others: what they name is not the same.
        self._born, self._number = time.time_ns(), 0

    def get(
        self,
        index: Index | None,
        sizes: Mapping[str, Size],
        *,
        writing: bool,
        packed: bool,
        rows: bool = False,
        known: str | None = None,
    ) -> tuple[bytes | None, str]:
        """The document, or with `rows` what page.js takes over from a newer one, `packed` by gzip or not; and its tag.

        None for whoever has what is `known` by that tag.
        """
        # Ten thousand rows take a second: whoever asks meanwhile waits for that one, and makes no other.
        with self._lock:
            last = self._last
            if last is None or (last.index, last.sizes, last.writing) != (index, sizes, writing):
                self._number += 1
                last = self._last = _Rendered(index, sizes, writing, f'W/"{self._born:x}-{self._number}"')
            if known == last.tag:
                return None, last.tag
            if (rows, False) not in last.texts:
                render = fresh if rows else page
                last.texts[rows, False] = render(index, sizes, writing=writing, tag=last.tag).encode()
            if packed and (rows, True) not in last.texts:
                last.texts[rows, True] = gzip.compress(last.texts[rows, False], 5, mtime=0)
            return last.texts[rows, packed], last.tag


def fresh(index: Index | None, sizes: Mapping[str, Size], *, writing: bool, tag: str) -> str:
    """What a page that is open takes over, as JSON: the rows, and the parts of the document above them."""
    rows = rows_of(index, sizes) if index else []
    return _data(rows, tag, told=_told(index, writing=writing), problems=_problems(index))


def _data(rows: list[dict[str, Any]], tag: str, **more: str) -> str:
    columns = list(rows[0]) if rows else []
    # A page whose script is of another release loads itself anew.
    told = {"tag": tag, "script": _hash(_SCRIPT), "columns": columns, **more}
    return json.dumps({**told, "rows": [list(row.values()) for row in rows]}, separators=(",", ":"))


def page(
    index: Index | None, sizes: Mapping[str, Size] | None = None, *, writing: bool = True, tag: str = ""
) -> str:
    """The document's text; its rows are known by `tag`."""
    rows = rows_of(index, sizes or {}) if index else []
    counts = Counter(row["state"] for row in rows)
    states = {state: counts[state] for state in STATES}
    data = _data(rows, tag)
    # It stands in a script element: nothing in it may look like that element's end.
    safe = data.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Environment Fabric</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">',
            f"<style>{_STYLE}</style></head><body>",
            "<header><h1>Environment Fabric</h1>",
            _told(index, writing=writing),
            "</header><main>",
            _problems(index),
            _frame(states, len(rows)),
            f"<noscript>{_plain(rows)}</noscript>",
            "</main>",
            f'<script type="application/json" id="data">{safe}</script><script>{_SCRIPT}</script>',
            "</body></html>\n",
        ]
    )


def rows_of(index: Index, sizes: Mapping[str, Size]) -> list[dict[str, Any]]:
    """What is shown of each environment, by id."""
    serving = Counter(one.serving for one in index.entries.values())
    return [
        _row(spec_id, entry, sizes.get(entry.serving or ""), serving[entry.serving])
        for spec_id, entry in sorted(index.entries.items())
    ]


def _row(spec_id: str, entry: Entry, size: Size | None, specs: int) -> dict[str, Any]:
    error = entry.error
    return {
        "id": spec_id,
        "state": entry.state,
        "marks": ", ".join(word for word in ("pinned", "suspended") if getattr(entry, word)),
        "generation": entry.generation,
        "python": entry.python_version,
        "ray": entry.ray_version,
        "size": size.alone if size else None,
        # Each spec that serves the closure has its part of what the closure takes.
        "saved": round(size.alone - size.share / specs) if size else None,
        "built": entry.built_at if entry.serving else None,
        "commit": entry.commit,
        "closure": entry.serving,
        "reason": error.reason.value if error else None,
        "message": error.message if error else None,
        "at": error.at if error else None,
        "retry": error.retry_at if error else None,
        "failure_log": f"logs/failures/{quote(spec_id)}" if error and error.log else None,
        "build_log": f"logs/builds/{quote(entry.serving)}" if entry.serving else None,
        "path": error.log if error else None,
    }


def bytes_text(count: float | None) -> str:
    """A number of bytes for people; the script has the same rule."""
    if count is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _told(index: Index | None, *, writing: bool) -> str:
    role = "writer" if writing else "standby"
    if index is None:
        return f'<p class="told"><span>nothing is published yet</span><span class="role">{role}</span></p>'
    at = html.escape(index.published_at)
    return (
        f'<p class="told"><span>revision <code>{html.escape(str(index.revision))}</code></span>'
        f"<span>sequence {index.sequence}</span>"
        f"<span>{'complete' if index.complete else 'under way'}</span>"
        f'<span>published <time id="published" datetime="{at}">{at}</time></span>'
        f'<span class="role" title="This daemon {"writes to" if writing else "stands by for"} ROOT">{role}</span></p>'
    )


def _problems(index: Index | None) -> str:
    if index is None or not index.problems:
        return ""
    shown = index.problems[:_MOST_PROBLEMS]
    items = "".join(
        f"<li><code>{html.escape(one.path)}</code> <b>{html.escape(one.reason.value)}</b> "
        f"{html.escape(one.message)}</li>"
        for one in shown
    )
    left = len(index.problems) - len(shown)
    told = "1 problem" if len(index.problems) == 1 else f"{len(index.problems)} problems"
    more = f"<li>and {left} more: index.json has all</li>" if left else ""
    return (
        f'<details class="problems"{" open" if len(shown) <= 5 else ""}>'
        f"<summary>{told} in the repository</summary><ul>{items}{more}</ul></details>"
    )


def _frame(states: Mapping[str, int], total: int) -> str:
    """What the script fills in; hidden until it runs."""
    buttons = "".join(
        f'<button type="button" class="state {state}" data-state="{state}" aria-pressed="false">'
        f"{state} <b>{count}</b></button>"
        for state, count in states.items()
    )
    return (
        '<div id="app" hidden><div class="bar"><label class="search">Search <input type="search" id="search" '
        'autocomplete="off" spellcheck="false" aria-keyshortcuts="/" placeholder="id, error, commit …  ( / )"></label>'
        f'<div role="group" aria-label="Show only these states">{buttons}</div>'
        f'<span id="found" role="status">{total} environments</span><span id="asof"></span></div>'
        '<div id="scroll"><table id="table" role="grid" aria-label="Environments"><thead><tr></tr></thead>'
        "<tbody></tbody></table></div>"
        '<p class="hint">Keys: / search, ↑ ↓ Home End rows, Enter details, Esc back</p></div>'
        '<dialog id="details" aria-labelledby="details-id"><form method="dialog"><h2 id="details-id"></h2>'
        '<button id="close" aria-label="Close">✕</button></form><dl></dl></dialog>'
    )


def _plain(rows: list[dict[str, Any]]) -> str:
    head = (
        "Environment",
        "State",
        "Gen",
        "Python",
        "Ray",
        "Size",
        "Saved",
        "Built",
        "Commit",
        "Error",
        "Logs",
    )
    cells = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join(map(_plain_row, rows))
    return (
        '<p>Without JavaScript: all environments, by id. Search with the browser.</p><table class="plain">'
        f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
    )


def _plain_row(row: Mapping[str, Any]) -> str:
    told = f"{row['reason']}: {row['message']}" if row["reason"] else ""
    shown = (
        f"{row['state']} ({row['marks']})" if row["marks"] else row["state"],
        row["generation"],
        row["python"],
        row["ray"],
        bytes_text(row["size"]),
        bytes_text(row["saved"]),
        (row["built"] or "")[:16],
        row["commit"][:12],
        told,
    )
    links = " ".join(
        f'<a href="{row[name]}">{text}</a>'
        for name, text in (("failure_log", "failure"), ("build_log", "build"))
        if row[name]
    )
    cells = "".join(f"<td>{html.escape(str(one if one is not None else ''))}</td>" for one in shown)
    return f'<tr><th scope="row">{html.escape(row["id"])}</th>{cells}<td>{links}</td></tr>\n'
