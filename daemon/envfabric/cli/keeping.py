"""What people do with what is on disk: gc, verify and du, and how it is shown."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from envfabric.cli.options import AsJson, Config, RepoOption, RootOption
from envfabric.cli.orders import ordered, settings_of, tell
from envfabric.cli.show import bytes_text, console
from envfabric.client import index
from envfabric.core.errors import ConfigError
from envfabric.core.ids import shown as printable
from envfabric.index.document import from_json
from envfabric.service.assembly import retention_of
from envfabric.service.settings import Settings
from envfabric.store.bases import Bases
from envfabric.store.claims import Claims
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.generations import Generations
from envfabric.store.pins import Pins
from envfabric.store.retention import Serving
from envfabric.store.root import Root, open_root
from envfabric.store.usage import Usage, walk_inodes
from envfabric.store.verify import Report, shown, verify

_WHYS = 3
"""Reasons shown of a kept closure; --json has all."""


def add_commands(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    for name, command in (
        ("gc", gc),
        ("verify", verify_store),
        ("du", du),
    ):
        app.command(name)(command)


def gc(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would go, and why not the rest.")
    ] = False,
    as_json: AsJson = False,
    root: RootOption = None,
    repo: RepoOption = None,
    config: Config = None,
) -> None:
    """Remove what nothing uses any more, by way of trash/."""
    settings = settings_of(root, repo, config)
    if dry_run:
        _dry_run(settings, as_json=as_json)
        return
    answer = ordered(settings, "gc", {})
    if as_json or not answer.ok:
        tell(answer, as_json=as_json)
    data = answer.data
    typer.echo(
        f"{answer.message}; {bytes_text(data['bytes'])} and {data['inodes']} inodes came back on disk "
        f"({data['archives']} unused wheels left uv's cache, {data['in_trash']} folders wait in trash/)."
    )
    # A daemon of an earlier release does not say it.
    if held := data.get("held"):
        typer.echo(f"No closure was removed: {held}.", err=True)


def verify_store(
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Build what is damaged again, beside.")] = False,
    workers: Annotated[int, typer.Option(help="Threads that read.", min=1, max=256)] = max(
        4, os.cpu_count() or 4
    ),
    as_json: AsJson = False,
    root: RootOption = None,
    repo: RepoOption = None,
    config: Config = None,
) -> None:
    """Prove every file of every closure against its manifest. Exits 1 where anything is damaged."""
    place = open_root(index.find_root(root, config))
    served: dict[str, list[str]] = {}
    for spec_id, entry in _environments(place).items():
        if entry["serving"]:
            served.setdefault(entry["serving"], []).append(spec_id)
    report = _watched(lambda progress: verify(place, None, workers=workers, served=served, progress=progress))
    known = Closures(place, Files()).damaged()
    # What was found damaged before and is served no more only waits for the collector.
    retired = {name for name in report.findings if name in known and name not in served}
    names = [*(name for name in report.findings if name not in retired), *report.missing]
    if repair and names:
        answer = ordered(settings_of(root, repo, config), "repair", {"names": names})
        if as_json:
            tell(answer, as_json=True)
        _show_report(report, retired)
        tell(answer)
    if as_json:
        typer.echo(json.dumps(_report_json(report, retired), indent=2))
    else:
        _show_report(report, retired)
    raise typer.Exit(1 if names or report.stopped else 0)


def du(
    *,
    check: Annotated[bool, typer.Option("--check", help="Walk the store and compare; slow.")] = False,
    as_json: AsJson = False,
    root: RootOption = None,
    config: Config = None,
) -> None:
    """Show logical, physical and saved bytes of the store, each inode counted once."""
    place = open_root(index.find_root(root, config))
    usage = Usage(place, Files())
    usage.load(keep=False)
    totals = usage.totals()
    serving = [entry["serving"] for entry in _environments(place).values() if entry["serving"]]
    logical = sum(usage.logical(name) for name in serving)
    data: dict[str, Any] = {
        "closures": totals.closures,
        "served_specs": len(serving),
        "logical_bytes": logical,
        "physical_bytes": totals.physical_bytes,
        "saved_bytes": logical - totals.physical_bytes,
        "inodes": totals.inodes,
    }
    if check:
        walked = walk_inodes(place.store)
        # store/ itself belongs to no closure.
        del walked[place.store.lstat().st_ino]
        data |= {"walked_bytes": sum(walked.values()), "walked_inodes": len(walked)}
    if as_json:
        typer.echo(json.dumps(data, indent=2))
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, value in data.items():
            text = f"{bytes_text(value)} ({value})" if name.endswith("bytes") else str(value)
            table.add_row(name.replace("_", " "), text)
        _print(table)
    if check and abs(data["walked_bytes"] - totals.physical_bytes) > 0.01 * max(data["walked_bytes"], 1):
        typer.echo(
            f"the account differs from the store by more than 1 %: remove {place.state / 'usage'} and restart "
            "the daemon, which counts anew then",
            err=True,
        )
        raise typer.Exit(1)


def _dry_run(settings: Settings, *, as_json: bool) -> None:
    place = open_root(_root_of(settings))
    files = Files()
    closures = Closures(place, files)
    published = from_json(place.index.read_bytes()) if place.index.exists() else None
    serving = {
        spec_id: [Serving(entry.serving, entry.generation)]
        for spec_id, entry in (published.entries.items() if published else ())
    }
    retention = retention_of(
        settings,
        place,
        files,
        closures,
        Generations(place, files),
        Pins(place, files),
        lambda: serving if published else None,
    )
    plan = retention.plan(dry=True)
    pythons = Bases(retention.holdings, Claims(), lambda: None).look(plan, dry=True)
    estimate = retention.estimate(plan, pythons.remove)
    if as_json:
        data = {
            "remove": plan.remove,
            "drop": [f"{spec_id} {number}" for spec_id, number in plan.drop],
            "bytes": estimate.freed.bytes,
            "inodes": estimate.freed.inodes,
            "cached_bytes": estimate.cached.bytes,
            "cached_inodes": estimate.cached.inodes,
            "kept": {name: list(why) for name, why in plan.kept.items()},
            "held": plan.held,
            "pythons": {"remove": pythons.remove, "kept": pythons.kept},
        }
        typer.echo(json.dumps(data, indent=2))
        return
    table = Table("CLOSURE", "", "WHY", box=None, pad_edge=False)
    for name in plan.remove:
        table.add_row(name, "goes", "nothing uses it")
    for name, why in plan.kept.items():
        more = f" and {len(why) - _WHYS} more (--json has all)" if len(why) > _WHYS else ""
        table.add_row(printable(name, 300), "stays", "; ".join(why[:_WHYS]) + more)
    for name in pythons.remove:
        table.add_row(f"pythons/{name}", "goes", "nothing has needed it for long enough")
    for name, because in pythons.kept.items():
        table.add_row(f"pythons/{printable(name, 300)}", "stays", because)
    _print(table)
    interpreters = f", and {len(pythons.remove)} of pythons/" if pythons.remove else ""
    typer.echo(
        f"{len(plan.remove)} closures and {len(plan.drop)} generations would go{interpreters}. With what is in trash/, "
        f"{bytes_text(estimate.freed.bytes)} and {estimate.freed.inodes} inodes come back, and another "
        f"{bytes_text(estimate.cached.bytes)} and {estimate.cached.inodes} once uv's cache lets go of them."
    )
    if plan.held is not None:
        typer.echo(f"No closure goes: {plan.held}.", err=True)


def _show_report(report: Report, retired: set[str]) -> None:
    for name, findings in report.findings.items():
        serves = findings[0].serves
        whom = f", served by {', '.join(serves)}" if serves else ", served by nobody"
        what = " (marked earlier; it goes with the next collections)" if name in retired else ""
        typer.echo(f"{name}: damaged in {len(findings)} places{whom}{what}")
        for finding in findings[:10]:
            typer.echo(f"  {finding.kind}: {shown(finding.path)}: {finding.detail}")
        if len(findings) > 10:
            typer.echo(f"  and {len(findings) - 10} more (--json has all)")
    for name, serves in report.missing.items():
        typer.echo(f"{name}: is not in the store, but is served by {', '.join(serves)}")
    bad = len(report.findings) - len(retired) + len(report.missing)
    typer.echo(
        f"{report.closures} closures, {report.files} files, {bytes_text(report.bytes_read)} read in "
        f"{report.seconds:.1f} s: {f'{bad} damaged or missing' if bad else 'all are as they were sealed'}"
    )
    if bad:
        typer.echo("`envfabric verify --repair` builds them again, beside.")


def _report_json(report: Report, retired: set[str]) -> dict[str, Any]:
    return {
        "clean": not (report.findings.keys() - retired or report.missing or report.stopped),
        "closures": report.closures,
        "files": report.files,
        "bytes_read": report.bytes_read,
        "damaged": {
            name: [{"kind": one.kind, "path": one.path, "detail": one.detail} for one in findings]
            for name, findings in report.findings.items()
        },
        "retired": sorted(retired),
        "missing": {name: list(serves) for name, serves in report.missing.items()},
    }


def _watched(run: Callable[[Callable[[int, int], None]], Report]) -> Report:
    """Runs with a progress bar on a terminal."""
    if not sys.stderr.isatty():
        return run(lambda done, total: None)
    columns = (
        TextColumn("verify"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} paths"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        return run(lambda done, total: bar.update(task, completed=done, total=total))


def _environments(place: Root) -> dict[str, Any]:
    try:
        found: dict[str, Any] = index.read_index(place.path)["environments"]
    except index.NotReady:
        return {}
    return found


def _root_of(settings: Settings) -> Path:
    if settings.root is None:
        raise ConfigError("the NAS folder is not given: use --root, ENVFABRIC_ROOT or root in envfabric.toml")
    return settings.root


def _print(table: Table) -> None:
    drawn = console()
    with drawn.capture() as text:
        drawn.print(table)
    for line in text.get().splitlines():
        typer.echo(line.rstrip())
