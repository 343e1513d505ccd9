"""Tables and JSON of what is published, for terminals and for pipes."""

import json
from collections.abc import Mapping
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from envfabric.client.index import environment
from envfabric.index.document import Index, to_json
from envfabric.store.root import Root

_COLOURS = {"ready": "green", "stale": "yellow", "failed": "red", "building": "blue", "pending": "blue"}


def summary(index: Index, root: Root) -> None:
    """What a one-shot run came to."""
    status(json.loads(to_json(index, root)), None, as_json=False)
    typer.echo(f"index: {root.index}")


def status(index: Mapping[str, Any], spec_id: str | None, *, as_json: bool) -> None:
    """The published index, or one id of it. Raises `UnknownEnvironment`."""
    entry = environment(index, spec_id) if spec_id else None
    if as_json:
        typer.echo(json.dumps(index if entry is None else entry, indent=2))
    elif entry is None:
        _table(index)
    else:
        _details(index, str(spec_id), entry)


def console() -> Console:
    """Where tables go: as wide as they are in a pipe."""
    found = Console(highlight=False, soft_wrap=True)
    if not found.is_terminal:
        # In a pipe every row is one whole line.
        found = Console(highlight=False, soft_wrap=True, width=10_000)
    return found


def bytes_text(count: int) -> str:
    """A number of bytes for people."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _table(index: Mapping[str, Any]) -> None:
    out = console()
    table = Table("ID", "STATE", "GEN", "PYTHON", "RAY", "ERROR", box=None, pad_edge=False)
    for spec_id, entry in index["environments"].items():
        error = entry["error"]
        colour = _COLOURS.get(entry["state"], "")
        table.add_row(
            spec_id,
            f"[{colour}]{entry['state']}[/]",
            str(entry["generation"] or "-"),
            entry["python_version"] or "-",
            entry["ray_version"] or "-",
            escape(f"{error['reason']}: {error['message']}") if error else "",
        )
    with out.capture() as drawn:
        out.print(table)
    for line in drawn.get().splitlines():
        # The last column's padding would make every line as long as the longest error.
        typer.echo(line.rstrip())
    for problem in index["problems"]:
        out.print(f"[red]problem[/] {escape(problem['path'])}: {escape(problem['message'])}")
    whole = "complete" if index["complete"] else "under way"
    out.print(f"revision {index['revision']}, sequence {index['sequence']}, {whole}")


def _details(index: Mapping[str, Any], spec_id: str, entry: Mapping[str, Any]) -> None:
    out = console()
    error = entry["error"] or {}
    rows = {
        "id": spec_id,
        "state": entry["state"] + (" (suspended)" if entry["suspended"] else ""),
        "python": index["python"].get(spec_id),
        "generation": entry["generation"],
        "python version": entry["python_version"],
        "ray version": entry["ray_version"],
        "built at": entry["built_at"],
        "commit": entry["commit"],
        "tree": entry["tree"],
        "env_vars": " ".join(f"{key}={value}" for key, value in entry["runtime_env"]["env_vars"].items()),
        "error": f"{error['reason']}: {error['message']}" if error else None,
        "log": error.get("log"),
        "retry at": error.get("retry_at"),
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows.items():
        if value not in (None, ""):
            table.add_row(name, escape(str(value)))
    out.print(table)
