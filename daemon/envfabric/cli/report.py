"""`report`: pictures of what happened, as one file for a browser, for those who have no Grafana.

Reads the audit trail and the index; needs neither the daemon nor its settings, and writes nothing but the file that it
is asked for. The figures are counted in tallies.py, the pictures drawn in drawing.py.
"""

import html
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from envfabric.cli import drawing
from envfabric.cli.options import AsJson, Config, RootOption
from envfabric.cli.show import bytes_text
from envfabric.cli.tallies import tally
from envfabric.client import index
from envfabric.core.errors import ConfigError
from envfabric.store.files import Files
from envfabric.store.history import all_events
from envfabric.store.root import now, open_root

_STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--text:#1c1f23;--dim:#565d66;--line:#dcdfe3;
--one:#1257b5;--two:#9dbfe8;--good:#2b8a57;--bad:#c2453c;--slow:#8a63c9}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1b1f24;--text:#e6e8ea;--dim:#a3abb5;--line:#343a41;
--one:#86b7ff;--two:#35557f;--good:#57b584;--bad:#ef7d74;--slow:#b597ec}}
body{background:var(--bg);color:var(--text);font:14px/1.45 system-ui,sans-serif;margin:0 auto;max-width:84rem;
padding:1.2rem}
h1{font-size:1.4rem;margin:0}h2{font-size:1.05rem;margin:0 0 .2rem}p{margin:.2rem 0 .6rem;color:var(--dim)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.8rem;margin:1rem 0;
padding:0;list-style:none}
.tiles li,section{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.7rem 1rem}
.tiles b{display:block;font-size:1.35rem}
.all{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,34rem),1fr));gap:1rem}
section{min-width:0}
svg{width:100%;height:auto;display:block}svg text{fill:var(--text);font:11.5px system-ui,sans-serif}
.grid{stroke:var(--line)}.one,.dot.one{fill:var(--one)}.two{fill:var(--two)}.good{fill:var(--good)}
.bad{fill:var(--bad)}.slow{fill:var(--slow)}.line{fill:none;stroke-width:2}.line.one{stroke:var(--one)}
.line.good{stroke:var(--good)}.between{fill:var(--two);opacity:.35}
.key{display:flex;gap:1.2rem;flex-wrap:wrap}.key svg{width:11px;display:inline-block;margin-right:.4em}
details{margin-top:.5rem}summary{cursor:pointer;color:var(--dim)}
.wide{overflow:auto;max-height:22rem}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.15rem .6rem;border-bottom:1px solid var(--line);font-weight:400;overflow-wrap:anywhere}
thead th{font-weight:600}:focus-visible{outline:3px solid var(--one)}
"""


def report(
    *,
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write: HTML with pictures.", metavar="FILE")
    ] = None,
    as_json: AsJson = False,
    root: RootOption = None,
    config: Config = None,
) -> None:
    """Draw what happened: build times, hits, bytes saved, failures by reason, the slowest specs."""
    if out is None and not as_json:
        raise ConfigError(
            "report needs --out FILE (a page with pictures) or --json (the figures); both may be given."
        )
    place = open_root(index.find_root(root, config))
    try:
        published: Mapping[str, Any] | None = index.read_index(place.path)
    except index.NotReady:
        # What failed before anything was published is worth a look, too.
        published = None
    figures = tally(all_events(place), published)
    if out is not None:
        # Whoever has the old one open, or serves it, never sees half a file.
        Files().write_atomic(out, document(figures, str(place.path)).encode(), durable=False)
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        typer.echo(f"{out} is written: {figures['builds']['count']} builds since {figures['since'] or '-'}")


def document(figures: Mapping[str, Any], root: str) -> str:
    """The file's text."""
    since = f"{_minute(figures['since'])} to {_minute(figures['until'])} UTC" if figures["since"] else "empty"
    sections = (_builds, _hits, _saved, _slowest, _failures)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Environment Fabric report</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        f'img-src data:">'
        f"<style>{_STYLE}</style></head><body><header><h1>Environment Fabric: report</h1>"
        f"<p>{html.escape(root)}, audit trail {html.escape(since)}, made {_minute(now())} UTC</p></header>"
        f'<ul class="tiles">{_tiles(figures)}</ul><main class="all">'
        f"{''.join(section(figures) for section in sections)}</main></body></html>\n"
    )


def _tiles(figures: Mapping[str, Any]) -> str:
    published, builds, closures = figures["published"], figures["builds"], figures["closures"]
    last = figures["store"][-1] if figures["store"] else None
    states = published["states"] if published else {}
    told = ", ".join(f"{count} {state}" for state, count in states.items()) or "nothing is published"
    tiles = [
        (str(published["environments"]) if published else "0", f"environments: {told}"),
        (str(builds["count"]), "builds"),
        (_seconds(builds["median_seconds"]), "a build takes (median)"),
        (_share(closures), "of the closures needed were there"),
        (bytes_text(last["saved_bytes"]) if last else "–", "saved on disk by sharing"),
        (str(sum(figures["failures"].values())), "failed tries"),
    ]
    return "".join(f"<li><b>{html.escape(value)}</b>{html.escape(name)}</li>" for value, name in tiles)


def _builds(figures: Mapping[str, Any]) -> str:
    slots = [one for one in figures["slots"] if one["builds"]]
    told = (
        f"{figures['builds']['count']} builds, the longest {_seconds(figures['builds']['longest_seconds'])}"
    )
    every = figures["slots"]
    series = [
        ("two", [one["longest_seconds"] or 0 for one in every]),
        ("one", [one["median_seconds"] or 0 for one in every]),
    ]
    picture = drawing.columns("Build times", told, _labels(every), series, _seconds) if slots else ""
    rows = [
        (one["at"], one["builds"], _seconds(one["median_seconds"]), _seconds(one["longest_seconds"]))
        for one in slots
    ]
    key = (("one", "median"), ("two", "longest"))
    return _section("Build times", told, picture, ("from", "builds", "median", "longest"), rows, key)


def _hits(figures: Mapping[str, Any]) -> str:
    slots, closures = figures["slots"], figures["closures"]
    told = (
        f"{closures['hits']} of {closures['requests']} closures that specs needed were in the store; of the others, "
        "those that several specs wanted at a time were built once"
    )
    series = [("two", [one["requests"] for one in slots]), ("good", [one["hits"] for one in slots])]
    used = [one for one in slots if one["requests"]]
    picture = drawing.columns("Hits", told, _labels(slots), series, _count) if used else ""
    rows = [(one["at"], one["requests"], one["hits"]) for one in used]
    key = (("good", "were in the store"), ("two", "were not"))
    return _section("Hits", told, picture, ("from", "requests", "hits"), rows, key)


def _saved(figures: Mapping[str, Any]) -> str:
    store = figures["store"]
    told = "no account of the store yet"
    picture = ""
    if store:
        last = store[-1]
        told = (
            f"{bytes_text(last['logical_bytes'])} without sharing, {bytes_text(last['physical_bytes'])} on disk in "
            f"{last['closures']} closures: {bytes_text(last['saved_bytes'])} saved"
        )
        series = [
            ("good", [one["logical_bytes"] for one in store]),
            ("one", [one["physical_bytes"] for one in store]),
        ]
        times = [datetime.fromisoformat(one["at"]).timestamp() for one in store]
        labels = [_minute(one["at"])[5:] for one in store]
        picture = drawing.between(
            "Bytes saved over time", told, times, labels, series, lambda n: bytes_text(int(n))
        )
    rows = [
        (
            one["at"],
            *(bytes_text(one[name]) for name in ("logical_bytes", "physical_bytes", "saved_bytes")),
            one["closures"],
        )
        for one in store
    ]
    head = ("at", "without sharing", "on disk", "saved", "closures")
    key = (("good", "without sharing"), ("one", "on disk"), ("two", "saved"))
    return _section("Bytes saved over time", told, picture, head, rows, key)


def _failures(figures: Mapping[str, Any]) -> str:
    rows = list(figures["failures"].items())
    count = sum(number for _, number in rows)
    told = f"{count} {'try' if count == 1 else 'tries'} failed; a spec that is tried again counts again"
    picture = drawing.ranking("Failures by reason", told, rows, "bad", _count) if rows else ""
    return _section("Failures by reason", told, picture, ("reason", "tries"), rows)


def _slowest(figures: Mapping[str, Any]) -> str:
    slowest = figures["slowest"]
    told = "the longest build of each spec; a spec whose closure was there has none"
    pairs = [(one["id"], one["longest_seconds"]) for one in slowest]
    picture = drawing.ranking("Slowest specs", told, pairs, "slow", _seconds) if pairs else ""
    rows = [
        (one["id"], one["builds"], _seconds(one["longest_seconds"]), _seconds(one["last_seconds"]))
        for one in slowest
    ]
    return _section("Slowest specs", told, picture, ("id", "builds", "longest", "last"), rows)


def _section(
    title: str,
    told: str,
    picture: str,
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    key: Sequence[tuple[str, str]] = (),
) -> str:
    dot = '<svg viewBox="0 0 10 10" aria-hidden="true"><rect class="{}" width="10" height="10" rx="2"/></svg>'
    named = "".join(f"<span>{dot.format(name)}{html.escape(text)}</span>" for name, text in key)
    shown = f'<p class="key">{named}</p>{picture}' if picture else "<p>Nothing is in the trail yet.</p>"
    cells = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    table = (
        f'<details><summary>As a table</summary><div class="wide" tabindex="0"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )
    return f"<section><h2>{title}</h2><p>{html.escape(told)}</p>{shown}{table if rows else ''}</section>"


def _labels(slots: Sequence[Mapping[str, Any]]) -> list[str]:
    return [_label(one["at"], one["seconds"]) for one in slots]


def _label(at: str, seconds: int) -> str:
    if seconds < 60:
        return at[11:19]
    return _minute(at)[5:] if seconds < 86400 else at[:10]


def _seconds(count: float | None) -> str:
    if count is None:
        return "–"
    if count < 120:
        return f"{count:.2g} s" if 0 < count < 10 else f"{count:.0f} s"
    return f"{count / 60:.0f} min"


def _count(count: float) -> str:
    return f"{count:g}"


def _share(closures: Mapping[str, int]) -> str:
    if not closures["requests"]:
        return "–"
    return f"{100 * closures['hits'] / closures['requests']:.0f} %"


def _minute(at: str) -> str:
    return at[:16].replace("T", " ")
