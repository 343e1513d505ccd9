"""`envfabric`: the commands, their flags, and one exit code for each class of outcome."""

import importlib.metadata
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from envfabric.cli import orders, show, specs
from envfabric.cli.auditing import history
from envfabric.cli.checking import check
from envfabric.cli.compare import closure_of, compare
from envfabric.cli.keeping import add_commands
from envfabric.cli.options import Config, RootOption
from envfabric.cli.progress import Progress
from envfabric.cli.pythons import pythons
from envfabric.cli.report import report
from envfabric.cli.using import in_use, in_use_of
from envfabric.client import commands, index
from envfabric.core.errors import ConfigError, FabricError
from envfabric.service import checkup
from envfabric.service.daemon import Daemon
from envfabric.service.settings import load_settings
from envfabric.specs.repository import SourceError
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.prepare import prepare
from envfabric.store.root import Root
from envfabric.telemetry import logs

app = typer.Typer(
    name="envfabric",
    help="A commit of a spec becomes a sealed, shared, ready Python environment.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(importlib.metadata.version("environment-fabric"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A commit of a spec becomes a sealed, shared, ready Python environment."""


def run(arguments: list[str]) -> None:
    """Runs the command line and exits: 0 done, 1 something failed, 2 wrong usage or configuration."""
    # Whoever started this may ignore its children's ends, which is inherited: exit codes of git and uv would be lost.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        app(arguments)
    except ConfigError as error:
        typer.echo(f"envfabric: {error}", err=True)
        sys.exit(2)
    except (FabricError, SourceError, index.EnvfabricError, OSError) as error:
        typer.echo(f"envfabric: {error}", err=True)
        sys.exit(1)


@app.command()
def init(root: Annotated[Path, typer.Argument(metavar="ROOT")]) -> None:
    """Prepare a NAS folder and prove that it can hold a fabric."""
    prepared, found = prepare(root, Files())
    show.prepared(prepared, found)
    typer.echo(
        f"{prepared.path} is ready. Next: envfabric run --repo <spec repository> --root {prepared.path}"
    )


@app.command("run")
def run_daemon(
    *,
    once: Annotated[
        bool, typer.Option("--once", help="Make the revision true, print a summary, exit.")
    ] = False,
    adopt: Annotated[bool, typer.Option("--adopt", help="Take ROOT over from another repository.")] = False,
    config: Config = None,
    repo: Annotated[
        str | None, typer.Option(help="The spec repository: a folder or a URL.", metavar="REPO")
    ] = None,
    path: Annotated[str | None, typer.Option(help="The folder of the repository with the specs.")] = None,
    branch: Annotated[str | None, typer.Option(help="The branch to follow.")] = None,
    root: RootOption = None,
    listen: Annotated[
        str | None, typer.Option(help="Address of the HTTP server.", metavar="HOST:PORT")
    ] = None,
) -> None:
    """Run the daemon: build every committed spec, publish index.json, export metrics."""
    flags: dict[str, Any] = {"repo": repo, "path": path, "branch": branch, "root": root, "listen": listen}
    settings = load_settings(config, flags)
    logs.configure(settings.log_level)
    daemon = Daemon(settings, adopt=adopt)
    if not once:
        daemon.run(lambda url: logs.get().info("serving", url=url, index=str(daemon.root.index)))
        return
    with Progress(daemon) as progress:
        published = daemon.run_once(progress.update)
    if published is None:
        raise typer.Exit(1)
    show.summary(published, daemon.root)
    good = published.complete and not published.problems
    raise typer.Exit(0 if good and all(one.state == "ready" for one in published.entries.values()) else 1)


@app.command()
def demo(
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Default: ~/envfabric-demo")] = None,
) -> None:
    """Make an example spec repository and a NAS folder, and run the daemon on them."""
    from envfabric.cli.demo import run_demo

    run_demo(folder or Path.home() / "envfabric-demo")


@app.command()
def status(
    spec_id: Annotated[str | None, typer.Argument(metavar="[ID]")] = None,
    *,
    other: Annotated[
        str | None,
        typer.Option("--compare", help="Say by what ID's closure and this spec's differ.", metavar="OTHER"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    root: RootOption = None,
    config: Config = None,
) -> None:
    """Show what is published and who uses it, of all specs or of one, or why two do not share a closure."""
    if other is not None and spec_id is None:
        raise ConfigError("--compare needs an ID to compare with: envfabric status ID --compare OTHER")
    place = index.find_root(root, config)
    published = index.read_index(place)
    if spec_id is None:
        show.status(published, in_use(published, Root(Path(place))), as_json=as_json)
        return
    closures = Closures(Root(Path(place)), Files())
    if other is not None:
        show.comparison(compare(published, spec_id, other, closures), as_json=as_json)
        return
    closure = closure_of(published, spec_id, closures)
    show.status_of(
        published, spec_id, closure, in_use_of(published, Root(Path(place)), spec_id), as_json=as_json
    )


app.command("history")(history)
app.command("report")(report)
add_commands(app)
orders.add_commands(app)
specs.add_commands(app)
app.command("check")(check)
app.command("pythons")(pythons)


def _consumer_command(name: str, summary: str) -> None:
    # Listed here for --help; __main__ runs these without loading this module.
    @app.command(
        name,
        help=summary,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def command(context: typer.Context) -> None:
        raise typer.Exit(commands.main([name, *context.args], lambda: checkup.look))


for _name, _summary in commands.SUMMARIES.items():
    _consumer_command(_name, _summary)
