"""The commands that write specs in somebody's clone: new, add, remove, lock. They commit nothing.

What is written is read as the daemon would read it, before it is written; the texts are made in specs/.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from envfabric.cli.options import Config, RootOption
from envfabric.client import index
from envfabric.core.errors import ConfigError, FabricError, SpecError
from envfabric.service.assembly import policy_of
from envfabric.service.settings import Settings, load_settings
from envfabric.specs import writing
from envfabric.specs.importing import Imported, from_requirements, from_runtime_env
from envfabric.specs.spec import read_spec
from envfabric.specs.tree import SPEC_FILES
from envfabric.specs.worktree import read_file, spec_folder, top_of, write_file
from envfabric.store.files import Files
from envfabric.store.generations import Generations
from envfabric.store.root import open_root

SpecsOption = Annotated[
    Path | None,
    typer.Option("--specs", help="The folder of specs in your clone; default: this folder.", metavar="DIR"),
]
SpecId = Annotated[str, typer.Argument(metavar="ID", help="<workflow>/<node>")]
Extra = Annotated[str | None, typer.Option(help="An extra's list instead of the dependencies.")]
Group = Annotated[str | None, typer.Option(help="A dependency group's list instead of the dependencies.")]

_MOST_INPUT = 1 << 20


def add_commands(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    for name, command in (("new", new), ("add", add), ("remove", remove), ("lock", lock)):
        app.command(name)(command)


def new(
    spec_id: SpecId,
    requirements: Annotated[list[str] | None, typer.Argument(metavar="[REQ]...")] = None,
    *,
    python: Annotated[
        str | None, typer.Option(help="Its Python: 3.11, 3.11.7, or bounds such as '>=3.11,<3.13'.")
    ] = None,
    requirements_file: Annotated[
        Path | None,
        typer.Option("--from-requirements", help="Take over a requirements file of pip's.", metavar="FILE"),
    ] = None,
    runtime_env: Annotated[
        str | None,
        typer.Option("--from-runtime-env", help="Take over Ray's runtime_env (JSON, or -).", metavar="FILE"),
    ] = None,
    specs: SpecsOption = None,
    config: Config = None,
) -> None:
    """Write a new spec into your clone."""
    settings = load_settings(config, {})
    top = specs_folder(specs, settings)
    folder = spec_folder(top, spec_id)
    if os.path.lexists(folder / "pyproject.toml"):
        raise FabricError(f"{folder / 'pyproject.toml'} is there already: `envfabric add {spec_id} REQ…`.")
    _not_twice(top, spec_id)
    given = [writing.checked(one) for one in requirements or []]
    imported = Imported()
    if runtime_env is not None:
        text, where, base = _input(runtime_env)
        imported = from_runtime_env(text, where, base)
    if requirements_file is not None:
        imported = from_requirements(requirements_file, imported)
    draft = imported.draft
    known = set(draft.requirements)
    draft.lines += [writing.Line(one) for one in given if one not in known]
    text = writing.new_text(spec_id, draft, python, settings.python)
    _check(spec_id, text, settings, {})
    write_file(folder, "pyproject.toml", text.encode())
    for left in imported.left:
        typer.echo(str(left), err=True)
    for note in imported.notes:
        typer.echo(f"note: {note}", err=True)
    _written(folder, ["pyproject.toml"])


def add(
    spec_id: SpecId,
    requirements: Annotated[list[str], typer.Argument(metavar="REQ...")],
    *,
    extra: Extra = None,
    group: Group = None,
    specs: SpecsOption = None,
    config: Config = None,
) -> None:
    """Add requirements to a spec, or put them in the place of those of the same name."""
    settings = load_settings(config, {})
    folder, text = _existing(spec_id, specs_folder(specs, settings))
    changed, said = writing.add(text, requirements, _target(extra, group))
    for one in said:
        typer.echo(f"{spec_id}: {one}")
    _change(spec_id, folder, text, changed, settings)


def remove(
    spec_id: SpecId,
    names: Annotated[list[str], typer.Argument(metavar="NAME...")],
    *,
    extra: Extra = None,
    group: Group = None,
    specs: SpecsOption = None,
    config: Config = None,
) -> None:
    """Remove requirements from a spec."""
    settings = load_settings(config, {})
    folder, text = _existing(spec_id, specs_folder(specs, settings))
    changed, gone = writing.remove(text, names, _target(extra, group))
    for one in gone:
        typer.echo(f"{spec_id}: without {one}")
    _change(spec_id, folder, text, changed, settings)


def lock(
    spec_id: SpecId, *, specs: SpecsOption = None, root: RootOption = None, config: Config = None
) -> None:
    """Put the lock of what is served into the spec's folder, to be committed."""
    folder, text = _existing(spec_id, specs_folder(specs, load_settings(config, {})))
    place = open_root(index.find_root(root, config))
    entry = index.environment(index.read_index(place.path), spec_id)
    generations = Generations(place, Files())
    number = entry["generation"]
    served = None if number is None else generations.read(spec_id, number)
    content = None if served is None else generations.content(served)
    if content is None:
        raise FabricError(
            f"nothing of {spec_id} is served, so there is no lock: it is {entry['state']}. Look at "
            f"`envfabric status {spec_id}`, or wait with `envfabric wait {spec_id}`."
        )
    if content.pyproject != text.encode():
        if (error := entry["error"]) and error["reason"] == "lock-stale":
            raise FabricError(
                f"{spec_id} serves generation {number} still, because the committed uv.lock is stale: run `uv lock` in "
                f"{folder} and commit it, or remove uv.lock, commit, and lock once it is served."
            )
        raise FabricError(
            f"{spec_id} is served as generation {number}, which was made from another pyproject.toml than "
            f"{folder / 'pyproject.toml'}. Commit that, wait with `envfabric wait {spec_id} --commit HEAD`, and lock "
            "then."
        )
    if read_file(folder, "uv.lock", f"{spec_id}/uv.lock") == content.lock:
        typer.echo(f"{folder / 'uv.lock'} is the lock of generation {number} already.")
        return
    write_file(folder, "uv.lock", content.lock)
    typer.echo(f"{spec_id}: the lock of generation {number}")
    _written(folder, ["uv.lock"])


def specs_folder(given: Path | None, settings: Settings, how: str = "give --specs DIR") -> Path:
    """The folder of specs that is meant; `how` another one is named. Raises `ConfigError`."""
    if given is not None:
        if not given.is_dir():
            raise ConfigError(f"--specs {given}: there is no such folder.")
        return given
    here = Path.cwd()
    top = top_of(here)
    # A URL is no folder, either.
    source = Path(settings.repo) if settings.repo is not None and Path(settings.repo).is_dir() else None
    if top is None:
        hint = f" The settings' repo is on this machine: {source / settings.path}." if source else ""
        raise ConfigError(
            f"{here} is in no git work tree. Go to the folder of specs in your clone, or {how}.{hint}"
        )
    if settings.path and here == top and source is not None and source.resolve() == top:
        return top / settings.path
    return here


def _existing(spec_id: str, specs: Path) -> tuple[Path, str]:
    folder = spec_folder(specs, spec_id)
    raw = read_file(folder, "pyproject.toml", f"{spec_id}/pyproject.toml")
    if raw is None:
        raise FabricError(
            f"there is no spec {spec_id} below {specs.resolve()}: make it with `envfabric new {spec_id}`, or give "
            "--specs DIR."
        )
    try:
        return folder, raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FabricError(f"{spec_id}/pyproject.toml is not UTF-8: {error.reason}.") from None


def _change(spec_id: str, folder: Path, before: str, after: str, settings: Settings) -> None:
    if after == before:
        typer.echo(f"{folder / 'pyproject.toml'} is as it was.")
        return
    files = {}
    for name in SPEC_FILES[1:]:
        if (raw := read_file(folder, name, f"{spec_id}/{name}")) is not None:
            files[name] = raw
    try:
        _check(spec_id, after, settings, files)
    except SpecError as error:
        if _is_good(spec_id, before, settings, files):
            raise
        # It was wrong before: the next change may be what mends it.
        typer.echo(f"note: {error.message}", err=True)
    write_file(folder, "pyproject.toml", after.encode())
    _written(folder, ["pyproject.toml"])
    if "uv.lock" in files:
        typer.echo(
            f"{folder / 'uv.lock'} no longer fits and would be refused: run `uv lock` in {folder} and commit it too; "
            f"or remove it, commit, and take the new one by `envfabric lock {spec_id}` once it is built."
        )


def _check(spec_id: str, text: str, settings: Settings, files: dict[str, bytes]) -> None:
    read_spec(spec_id, "", {**files, "pyproject.toml": text.encode()}, policy_of(settings))


def _is_good(spec_id: str, text: str, settings: Settings, files: dict[str, bytes]) -> bool:
    try:
        _check(spec_id, text, settings, files)
    except SpecError:
        return False
    return True


def _not_twice(top: Path, spec_id: str) -> None:
    """Raises `ConfigError` where an id is there that would be the same folder on some NAS: both would be refused."""
    place = top
    for part in spec_id.split("/"):
        if place.is_dir():
            for other in sorted(os.listdir(place)):
                if other != part and other.casefold().rstrip(".") == part.casefold().rstrip("."):
                    raise ConfigError(
                        f"{place / other} is there, and {spec_id} would differ from it only by case or by dots at the "
                        "end; choose another name."
                    )
        place = place / part


def _target(extra: str | None, group: str | None) -> writing.Target:
    if extra is not None and group is not None:
        raise ConfigError("give --extra or --group, not both.")
    for name in (extra, group):
        if name is not None and not writing.is_name(name):
            raise ConfigError(
                f"{name!r} is no name of an extra or a group: letters, digits, '.', '_' and '-'."
            )
    return writing.Target(extra, group)


def _input(name: str) -> tuple[str, str, Path]:
    """A file's text or the standard input's, what to call it, and where files that it names are."""
    try:
        if name == "-":
            raw, where, base = sys.stdin.buffer.read(_MOST_INPUT + 1), "standard input", Path.cwd()
        else:
            with open(name, "rb") as file:
                raw, where, base = file.read(_MOST_INPUT + 1), Path(name).name, Path(name).parent
    except OSError as error:
        raise ConfigError(f"{name} can't be read: {error.strerror}") from error
    if len(raw) > _MOST_INPUT:
        raise ConfigError(f"{where} has more than {_MOST_INPUT} bytes; that is no runtime_env.")
    return raw.decode("utf-8", "replace"), where, base


def _written(folder: Path, names: list[str]) -> None:
    paths = " ".join(str(folder / name) for name in names)
    typer.echo(f"wrote {paths}")
    typer.echo(f"next: git add {paths} && git commit")
