"""What people ask of the writer: rollback, unpin, retry, refresh and confirm; and how any order is given and answered.

Each is left in requests/ where a daemon holds ROOT, and carried out here where none does, see service/asking.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from envfabric.cli.options import AsJson, Config, RepoOption, RootOption, SpecId
from envfabric.service.asking import order
from envfabric.service.settings import Settings, load_settings
from envfabric.store.requests import Answer
from envfabric.telemetry import logs


def add_commands(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    for name, command in (
        ("rollback", rollback),
        ("unpin", unpin),
        ("retry", retry),
        ("refresh", refresh),
        ("confirm", confirm),
    ):
        app.command(name)(command)


def rollback(
    spec_id: SpecId,
    *,
    to: Annotated[int | None, typer.Option("--to", help="The generation; default: the one before.")] = None,
    root: RootOption = None,
    repo: RepoOption = None,
    config: Config = None,
) -> None:
    """Serve an earlier generation until the spec's next change."""
    _order(root, repo, config, "rollback", {"id": spec_id, **({} if to is None else {"to": to})})


def unpin(
    spec_id: SpecId, *, root: RootOption = None, repo: RepoOption = None, config: Config = None
) -> None:
    """Serve what is committed again, after a rollback."""
    _order(root, repo, config, "unpin", {"id": spec_id})


def retry(
    spec_id: SpecId, *, root: RootOption = None, repo: RepoOption = None, config: Config = None
) -> None:
    """Try a spec that failed again now."""
    _order(root, repo, config, "retry", {"id": spec_id})


def refresh(
    spec_id: SpecId,
    *,
    as_json: AsJson = False,
    root: RootOption = None,
    repo: RepoOption = None,
    config: Config = None,
) -> None:
    """Resolve a spec anew, to the newest versions that it allows."""
    _order(root, repo, config, "refresh", {"id": spec_id}, as_json=as_json)


def confirm(
    commit: Annotated[str, typer.Argument(metavar="COMMIT", help="At least 7 digits of what is held back.")],
    *,
    root: RootOption = None,
    repo: RepoOption = None,
    config: Config = None,
) -> None:
    """Let a revision that is held back remove the specs that it removes."""
    _order(root, repo, config, "confirm", {"commit": commit})


def settings_of(root: Path | None, repo: str | None, config: Path | None) -> Settings:
    """The settings of a command that changes ROOT. Raises `ConfigError`."""
    settings = load_settings(config, {"root": root, "repo": repo})
    # What the command has to say is its answer; of its work only trouble.
    logs.configure("warning" if settings.log_level == "info" else settings.log_level)
    return settings


def ordered(settings: Settings, command: str, arguments: dict[str, Any]) -> Answer:
    """Has an order carried out, with a sign of life on a terminal. Raises what `order` raises."""
    if not sys.stderr.isatty():
        return order(settings, command, arguments)
    with Console(stderr=True).status(f"{command}…"):
        return order(settings, command, arguments)


def tell(answer: Answer, *, as_json: bool = False) -> None:
    """Shows an answer and ends the command: 0 where it was done, else 1."""
    if as_json:
        typer.echo(json.dumps({"ok": answer.ok, "message": answer.message, **answer.data}, indent=2))
    else:
        typer.echo(answer.message if answer.ok else f"envfabric: {answer.message}", err=not answer.ok)
    raise typer.Exit(0 if answer.ok else 1)


def _order(
    root: Path | None,
    repo: str | None,
    config: Path | None,
    command: str,
    arguments: dict[str, Any],
    *,
    as_json: bool = False,
) -> None:
    tell(ordered(settings_of(root, repo, config), command, arguments), as_json=as_json)
