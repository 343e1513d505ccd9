"""The options that several commands have, each declared once. Imports nothing of the project."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path | None, typer.Option(help="The settings file (ENVFABRIC_CONFIG).", metavar="FILE")]
RootOption = Annotated[Path | None, typer.Option("--root", help="The NAS folder.", metavar="DIR")]
RepoOption = Annotated[str | None, typer.Option("--repo", help="The spec repository.", metavar="REPO")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
SpecId = Annotated[str, typer.Argument(metavar="ID")]
