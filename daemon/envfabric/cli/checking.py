"""The command `check`: lints specs for the spec repository's CI, its pre-commit hook, and a person before a commit."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from envfabric.cli.options import AsJson, Config
from envfabric.cli.specs import specs_folder
from envfabric.core.errors import ConfigError
from envfabric.core.ids import shown
from envfabric.service.linting import Finding, Linted, finding_of, lint, rehearse
from envfabric.service.settings import load_settings
from envfabric.specs.tree import SPEC_FILES
from envfabric.specs.worktree import top_of
from envfabric.telemetry import logs


def check(
    path: Annotated[
        Path | None, typer.Argument(metavar="[PATH]", help="The folder of specs, or one spec's folder.")
    ] = None,
    *,
    resolve: Annotated[
        bool, typer.Option("--resolve", help="Ask the indexes, too, whether each can be resolved.")
    ] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Lint specs without building: offline, executing nothing. Exits 0 if all are good, 1 otherwise."""
    settings = load_settings(config, {})
    given = specs_folder(None, settings, how="name it: envfabric check PATH") if path is None else path
    # The settings' folder of specs is one, whatever is in it; this folder may be a workflow's or a spec's.
    folder, below = (given, "") if path is None and given != Path.cwd() else _meant(given)
    folder = folder.resolve()
    linted = lint(folder, below, settings)
    if not linted.count and not linted.findings:
        raise ConfigError(
            f"there is no spec below {folder / below}: a spec is <workflow>/<node>/pyproject.toml below the folder of "
            "specs. Name that folder: envfabric check PATH"
        )
    if resolve:
        # What the daemon would warn of is about its own host.
        logs.configure("error")
        errors = [
            finding_of(one, error) for one, error in rehearse(linted.good, settings) if error is not None
        ]
        linted = replace(linted, findings=sorted(linted.findings + errors))
    _show(linted, _prefix(folder), as_json=as_json)
    raise typer.Exit(1 if linted.findings else 0)


def _meant(path: Path) -> tuple[Path, str]:
    """The folder of specs, and what of it is meant: all, a workflow, or one spec."""
    if path.name in SPEC_FILES and not path.is_dir():
        path = path.parent
    if not path.is_dir():
        raise ConfigError(f"{path}: there is no such folder.")
    folder = path.resolve()
    if any(folder.glob("*/*/pyproject.toml")):
        return folder, ""
    top = top_of(folder)
    up = folder.parent
    if (folder / "pyproject.toml").is_file() and _within(up.parent, top):
        return up.parent, f"{up.name}/{folder.name}"
    if any(folder.glob("*/pyproject.toml")) and _within(up, top):
        return up, folder.name
    return folder, ""


def _within(folder: Path, top: Path | None) -> bool:
    """Whether a folder of specs can be here: outside of git anywhere, otherwise not above the work tree."""
    return top is None or folder.is_relative_to(top)


def _prefix(folder: Path) -> str:
    """What stands before a path below the folder, so that it leads there from where the command runs."""
    here = os.path.relpath(folder)
    if here == ".":
        return ""
    return f"{folder}/" if here.startswith("..") else f"{here}/"


def _show(linted: Linted, prefix: str, *, as_json: bool) -> None:
    if as_json:
        rows = [_row(one, prefix) for one in linted.findings]
        typer.echo(json.dumps({"specs": linted.count, "problems": rows}, indent=2))
        return
    for one in linted.findings:
        typer.echo(f"{shown(prefix + one.path, 400)}:{one.line}: {one.reason}: {shown(one.message, 1500)}")
    count = len(linted.findings)
    typer.echo(
        f"{linted.count} spec{'' if linted.count == 1 else 's'}, "
        f"{count or 'no'} problem{'' if count == 1 else 's'}"
    )


def _row(one: Finding, prefix: str) -> dict[str, str | int | None]:
    return {
        "path": prefix + one.path,
        "line": one.line,
        "id": one.id,
        "reason": one.reason.value,
        "message": one.message,
    }
