"""Tables and JSON of what is published, for terminals and for pipes."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from envfabric.client.index import environment
from envfabric.index.document import Index, to_json
from envfabric.store.probe import Probe
from envfabric.store.root import Root

_COLOURS = {"ready": "green", "stale": "yellow", "failed": "red", "building": "blue", "pending": "blue"}
_MOST = 5
"""Ids that are named in a line."""


def summary(index: Index, root: Root) -> None:
    """What a one-shot run came to."""
    status(json.loads(to_json(index, root)), as_json=False)
    typer.echo(f"index: {root.index}")


def status(index: Mapping[str, Any], used: Mapping[str, Any] | None = None, *, as_json: bool) -> None:
    """The published index, with what `in_use` found."""
    if as_json:
        typer.echo(json.dumps({**index, "in_use": used}, indent=2))
    else:
        _table(index, used)


def status_of(
    index: Mapping[str, Any],
    spec_id: str,
    closure: Mapping[str, Any] | None,
    used: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    """One id of the index, with what `closure_of` and `in_use_of` found. Raises `UnknownEnvironment`."""
    entry = environment(index, spec_id)
    if as_json:
        typer.echo(json.dumps({**entry, "closure": closure, "in_use": used}, indent=2))
        return
    _details(index, spec_id, entry, closure)
    _users(used, lambda one: _generations(one["generations"], entry["generation"]))


def comparison(found: Mapping[str, Any], *, as_json: bool) -> None:
    """What `compare` found."""
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    one, other = found["one"], found["other"]
    for side in (one, other):
        if side["state"] != "ready":
            typer.echo(f"{side['id']} is {side['state']}: what it serves is compared, not what it asks for")
    if found["same"]:
        typer.echo(
            f"{one['id']} and {other['id']} are the same closure: {one['closure']}, "
            f"{found['distributions']} distributions"
        )
        return
    if not found["differences"]:
        why = "one is the other built again" if found["built_again"] else "their metadata don't say why"
        typer.echo(f"{one['closure']} and {other['closure']} have the same inputs: {why}")
        return
    table = Table("DIFFERS", "", one["id"], other["id"], box=None, pad_edge=False)
    for row in found["differences"]:
        table.add_row(row["what"], escape(row["key"] or ""), _value(row["one"]), _value(row["other"]))
    _print(table)
    typer.echo(f"{len(found['differences'])} differences: {one['closure']} and {other['closure']}")


def prepared(root: Root, found: Probe) -> None:
    """What `init` made and proved."""
    links = "more than were tried" if found.link_limit is None else str(found.link_limit)
    inodes = "not counted" if found.free_inodes is None else f"{found.free_inodes:,}".replace(",", " ")
    rows = {
        "file system": found.file_system,
        "links of one file": links,
        "free space": bytes_text(found.free_bytes),
        "free inodes": inodes,
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    _print(table)
    for sentence in found.degraded:
        typer.echo(f"degraded: {sentence}")


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


def _table(index: Mapping[str, Any], used: Mapping[str, Any] | None) -> None:
    out = console()
    titles = ("ID", "STATE", "GEN", "PYTHON", "RAY", *(("USERS",) if used else ()), "ERROR")
    table = Table(*titles, box=None, pad_edge=False)
    counts = (
        {
            one["closure"]: sum(lease["in_force"] is True for lease in one["leases"])
            for one in used["closures"]
        }
        if used
        else {}
    )
    for spec_id, entry in index["environments"].items():
        error = entry["error"]
        colour = _COLOURS.get(entry["state"], "")
        table.add_row(
            spec_id,
            f"[{colour}]{entry['state']}[/]{_holds(entry)}",
            str(entry["generation"] or "-"),
            entry["python_version"] or "-",
            entry["ray_version"] or "-",
            *((_count(used, counts.get(entry["serving"], 0)),) if used else ()),
            escape(f"{error['reason']}: {error['message']}") if error else "",
        )
    _print(table)
    for problem in index["problems"]:
        out.print(f"[red]problem[/] {escape(problem['path'])}: {escape(problem['message'])}")
    if used:
        _users(used, lambda one: _some(one["serves"]) if one["serves"] else "no spec", most=_MOST)
    whole = "complete" if index["complete"] else "under way"
    out.print(f"revision {index['revision']}, sequence {index['sequence']}, {whole}")


def _holds(entry: Mapping[str, Any]) -> str:
    """What keeps a spec where it is, whatever is committed."""
    words = [word for word in ("pinned", "suspended") if entry[word]]
    return f" ({', '.join(words)})" if words else ""


def _users(
    used: Mapping[str, Any], where: Callable[[Mapping[str, Any]], str], most: int | None = None
) -> None:
    """Each lease, of each closure the first `most`; `where` says what a closure is to the reader."""
    if used["error"]:
        typer.echo(f"who uses what is not known: {used['error']}")
        return
    if not used["closures"]:
        return
    table = Table("IN USE", "OF", "WHAT", "HOST", "USER", "SINCE", "RENEWED", box=None, pad_edge=False)
    for one in used["closures"]:
        for lease in one["leases"][:most]:
            told = (where(one), lease["what"], lease["host"], lease["user"] or "?", lease["since"] or "-")
            over = "" if lease["in_force"] else ", over by this machine's clock"
            table.add_row(one["closure"], *map(escape, told), f"{lease['seconds_ago']:.0f} s ago{over}")
        left = len(one["leases"]) - len(one["leases"][:most])
        if left:
            table.add_row(one["closure"], escape(where(one)), f"and {left} more (--json has all)")
    _print(table)


def _count(used: Mapping[str, Any], count: int) -> str:
    if used["error"]:
        return "?"
    return str(count or "-")


def _generations(numbers: Sequence[int], serving: int | None) -> str:
    if not numbers:
        return "no generation"
    words = [f"{one} (served)" if one == serving else str(one) for one in numbers]
    return "generation " + ", ".join(words)


def _print(table: Table) -> None:
    out = console()
    with out.capture() as drawn:
        out.print(table)
    for line in drawn.get().splitlines():
        # The last column's padding would make every line as long as the longest error.
        typer.echo(line.rstrip())


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return escape(value if isinstance(value, str) else json.dumps(value))


def _details(
    index: Mapping[str, Any], spec_id: str, entry: Mapping[str, Any], closure: Mapping[str, Any] | None
) -> None:
    out = console()
    error = entry["error"] or {}
    made = closure or {}
    shared = made.get("shared_with", [])
    rows = {
        "id": spec_id,
        "state": entry["state"] + _holds(entry),
        "python": index["python"].get(spec_id),
        "generation": entry["generation"],
        "closure": made.get("name"),
        "distributions": made.get("distributions"),
        "files": f"{made['linked']} linked, {made['copied']} copied"
        if "linked" in made
        else made.get("error"),
        "shared with": _some(shared) if closure else None,
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


def _some(ids: Sequence[str]) -> str:
    """Ids for a line: of thousands the first."""
    if not ids:
        return "no other spec"
    return ", ".join(ids[:_MOST]) + (
        f" and {len(ids) - _MOST} more (--json has all)" if len(ids) > _MOST else ""
    )
