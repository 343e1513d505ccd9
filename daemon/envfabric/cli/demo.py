"""`envfabric demo`: the example specs in a repository of their own, a NAS folder, and the daemon."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import typer

import envfabric
from envfabric.cli import show
from envfabric.cli.progress import Progress
from envfabric.core.errors import ConfigError
from envfabric.service.daemon import Daemon
from envfabric.service.settings import load_settings
from envfabric.store.files import Files
from envfabric.store.prepare import init_root
from envfabric.store.root import check_path
from envfabric.telemetry import logs

_IDENTITY = {"user.name": "envfabric demo", "user.email": "demo@localhost"}


def run_demo(folder: Path) -> None:
    """Prepares `folder` where it is not yet, and runs the daemon until it is stopped. Raises `ConfigError`."""
    folder = check_path(folder)
    specs, nas = folder / "specs", folder / "nas"
    _make_repository(specs)
    init_root(nas, Files())
    flags = {"repo": str(specs), "root": nas, "listen": "127.0.0.1:0", "path": "", "branch": "main"}
    # The settings of an installation on this machine are not the demo's.
    settings = load_settings(None, flags, discover=False)
    logs.configure(settings.log_level)
    daemon = Daemon(settings)
    told = False
    page = ""

    def on_start(url: str) -> None:
        nonlocal page
        page = f"page:  {url}/"
        typer.echo(f"specs: {specs}\nindex: {daemon.root.index}\n{page}")

    def on_round() -> None:
        nonlocal told
        progress.update()
        reconciler = daemon.reconciler
        index = reconciler.published if reconciler else None
        # What the last demo published may be of an older commit.
        newest = reconciler.board.revision if reconciler else None
        if newest and index and index.complete and index.revision == newest and not told:
            told = True
            progress.close()
            show.summary(index, daemon.root)
            typer.echo(page)
            _tell_what_next(specs, nas)

    with Progress(daemon) as progress:
        daemon.run(on_start, on_round)


def example_specs() -> Path:
    """The folder specs-example/, as installed or in a checkout. Raises `ConfigError`."""
    package = Path(envfabric.__file__).parent
    for place in (package / "specs-example", package.parents[1] / "specs-example"):
        if place.is_dir():
            return place
    raise ConfigError(f"this installation has no specs-example folder beside {package}; install it anew")


def _make_repository(path: Path) -> None:
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Made beside and renamed: interrupted half-way, the next demo begins anew.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".specs-") as beside:
            made = Path(beside) / "specs"
            shutil.copytree(example_specs(), made, ignore=shutil.ignore_patterns("__pycache__"))
            _git(made, "init", "--quiet", "--initial-branch=main")
            for key, value in _IDENTITY.items():
                # A machine that has never seen a commit has no identity; one that has one keeps it.
                if subprocess.run(
                    ["git", "config", key], cwd=made, capture_output=True, check=False
                ).returncode:
                    _git(made, "config", key, value)
            _git(made, "add", "--all")
            _git(made, "commit", "--quiet", "--no-verify", "--no-gpg-sign", "--message=The example specs")
            made.rename(path)
    except OSError as error:
        raise ConfigError(f"{path} can't be made: {error}") from error


def _git(path: Path, *arguments: str) -> None:
    done = subprocess.run(["git", *arguments], cwd=path, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"git {arguments[0]} in {path}: {done.stderr.strip()}")


def _tell_what_next(specs: Path, nas: Path) -> None:
    typer.echo(
        "\nThe daemon goes on watching; stop it with Ctrl-C. In another terminal:\n"
        f"  cd {specs}\n"
        "  edit etl/extract/pyproject.toml, git commit -am 'try it', and look at the index again\n"
        f"  {nas}/envs/etl/extract/.venv/bin/python -c 'import sys; print(sys.prefix)'\n"
    )
