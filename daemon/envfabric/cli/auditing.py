"""`history`: what was published of a spec, by whose commit, and from when until when it was served.

Put together from the audit trail and from what is retained on ROOT: either knows what the other has lost. Only reads,
and needs neither the daemon nor its settings.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from envfabric.cli.options import Config, RootOption, SpecId
from envfabric.cli.show import console
from envfabric.client import index
from envfabric.core.ids import is_id
from envfabric.core.ids import shown as printable
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.generations import Generation, Generations, NewerForm
from envfabric.store.history import events_of
from envfabric.store.root import open_root

_FACTS = (
    "generation",
    "commit",
    "changed_by",
    "signed_by",
    "built_at",
    "uv",
    "python_version",
    "python_path",
    "ray_version",
    "lock",
    "lock_sha256",
    "closure",
)
"""What is told of each generation, None where nothing on ROOT knows it any more."""
_BY_MOST = 24
"""Characters of a name in the table."""


def history(
    spec_id: SpecId,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="As JSON, with every fact and event: for audits.")
    ] = False,
    root: RootOption = None,
    config: Config = None,
) -> None:
    """Show what was published of a spec, newest first: by whom, when it was served, what is left of it."""
    place = open_root(index.find_root(root, config))
    generations, closures = Generations(place, Files()), Closures(place, Files())
    # No other text may name a folder, or begin the search of a whole trail.
    known = is_id(spec_id)
    retained, newer = [], set()
    for number in sorted(generations.numbers(spec_id), reverse=True) if known else []:
        try:
            retained += [one] if (one := generations.read(spec_id, number)) is not None else []
        except NewerForm as error:
            # What the trail says of it is shown all the same.
            newer.add(number)
            typer.echo(f"{error}.", err=True)
    events = events_of(place, spec_id) if known else []
    try:
        entry = index.read_index(place.path)["environments"].get(spec_id, {})
    except index.NotReady:
        if not retained and not events:
            raise
        entry = {}
    rows = generations_of(events, [_facts(generations, one) for one in retained])
    if not rows and not entry:
        # Somebody may have given an order for it, which was refused.
        index.environment(index.read_index(place.path), spec_id)
    numbers = newer | {one.number for one in retained}
    for row in rows:
        serving = row["generation"] == entry.get("generation")
        row["retained"] = row["generation"] in numbers
        row["serving"] = serving
        row["pinned"] = serving and bool(entry.get("pinned"))
        row["usable"] = row["closure"] is not None and closures.usable(row["closure"])
    if as_json:
        typer.echo(json.dumps({"id": spec_id, "generations": rows, "events": events}, indent=2))
    else:
        _print(rows)


def generations_of(
    events: Iterable[Mapping[str, Any]], retained: Iterable[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """A spec's generations, newest first, out of its `events` in their order and the facts of what is `retained`.

    Each has its facts, the times in `served` and `collected_at`.
    """
    found: dict[int, dict[str, Any]] = {}
    for facts in retained:
        _learn(found, facts)
    open_time: dict[str, Any] | None = None
    now_served: int | None = None
    for event in events:
        kind, number = event["event"], event.get("generation")
        if kind in {"generation", "dropped", "serves"}:
            _learn(found, event)
        if kind in {"serves", "removed"}:
            serves = number if kind == "serves" and isinstance(number, int) else None
            if serves == now_served and serves is not None:
                # Told twice: by a daemon that could not know whether it had told it before it was killed.
                continue
            if open_time is not None:
                open_time |= {"to": event["at"], "to_sequence": event.get("sequence")}
            open_time, now_served = None, serves
            if serves is not None:
                open_time = _time_of(event)
                found[serves]["served"].append(open_time)
                # It was built again since, or had come back from trash/.
                found[serves]["collected_at"] = None
        elif kind == "collected":
            for number, row in found.items():
                # The same closure may have come and gone before this generation was made.
                later = event["at"] >= (row["built_at"] or "")
                if row["closure"] == event.get("closure") and number != now_served and later:
                    row["collected_at"] = row["collected_at"] or event["at"]
    _share_authors(found.values())
    return [found[number] for number in sorted(found, reverse=True)]


def _learn(found: dict[int, dict[str, Any]], facts: Mapping[str, Any]) -> None:
    """Takes over what is not known yet of a generation."""
    number = facts.get("generation")
    if not isinstance(number, int):
        return
    row = found.setdefault(number, {**dict.fromkeys(_FACTS), "served": [], "collected_at": None})
    names: tuple[str, ...] = _FACTS
    if facts.get("event") == "serves":
        # All that the trails of earlier releases tell. Under a pin the commit is that of other content.
        names = ("generation", "closure") if facts.get("pinned") else ("generation", "closure", "commit")
    for name in names:
        if row[name] is None:
            row[name] = facts.get(name)


def _time_of(event: Mapping[str, Any]) -> dict[str, Any]:
    """A time in which a generation is served; it has no end yet."""
    return {
        "from": event["at"],
        "to": None,
        "sequence": event.get("sequence"),
        "to_sequence": None,
        "revision": event.get("revision"),
        "pinned": bool(event.get("pinned")),
    }


def _share_authors(rows: Iterable[dict[str, Any]]) -> None:
    """One that was built again of the same commit has its author from the first."""
    rows = list(rows)
    known = {row["commit"]: row["changed_by"] for row in rows if row["changed_by"]}
    for row in rows:
        row["changed_by"] = row["changed_by"] or known.get(row["commit"])


def _facts(generations: Generations, generation: Generation) -> dict[str, Any]:
    return {"changed_by": None, **generations.facts(generation)}


def _print(rows: Iterable[Mapping[str, Any]]) -> None:
    head = ("GEN", "", "BUILT", "SERVED", "BY", "COMMIT", "CLOSURE", "PYTHON", "RAY", "LOCK")
    table = Table(*head, box=None, pad_edge=False)
    for row in rows:
        words = [word for word in ("serving", "pinned") if row[word]]
        if not row["usable"]:
            words.append("collected" if row["collected_at"] else "damaged or gone")
        by = row["changed_by"] or {}
        cells = (
            row["generation"],
            ", ".join(words),
            row["built_at"],
            _served(row["served"]),
            printable(str(by.get("author") or "-"), _BY_MOST),
            str(row["commit"] or "-")[:12],
            row["closure"],
            row["python_version"],
            row["ray_version"],
            row["lock"],
        )
        table.add_row(*(escape(str(cell or "-")) if cell != "" else "" for cell in cells))
    drawn = console()
    with drawn.capture() as text:
        drawn.print(table)
    for line in text.get().splitlines():
        typer.echo(line.rstrip())


def _served(times: list[dict[str, Any]]) -> str:
    """The last time in which a generation was served, for people: in minutes, UTC."""
    if not times:
        return "-"
    last = times[-1]
    told = f"since {_minute(last['from'])}" if last["to"] is None else f"until {_minute(last['to'])}"
    return f"{told} ({len(times)} times)" if len(times) > 1 else told


def _minute(at: str) -> str:
    return at[:16].replace("T", " ")
