"""Builds with bytecode: sealed with the closure, shared by all, and never damaged twice."""

import json
import os
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envfabric.build.cache import forget
from envfabric.build.compiling import Compiling
from envfabric.build.environment import Builder, Built, Recipe, recipe_of
from envfabric.build.interpreters import Interpreter
from envfabric.build.resolve import Resolver
from envfabric.build.uv import Uv
from envfabric.store.bytecode import Bytecode
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.root import Root
from envfabric.store.verify import verify
from support.simple_index import SimpleIndex

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def compiling(root: Root, files: Files, closures: Closures, uv: Uv) -> Compiling:
    return Compiling(Bytecode(root, files), files, uv, workers=2)


@pytest.fixture
def builder(closures: Closures, files: Files, uv: Uv, compiling: Compiling) -> Builder:
    return Builder(closures, files, uv, compiling)


@pytest.fixture
def recipe(resolver: Resolver, make_spec: Any, python: Interpreter) -> MakeRecipe:
    """The recipe of a spec with these requirements; `number` makes another closure of the same content."""

    def recipe(*requirements: str, number: int = 0) -> Recipe:
        spec = make_spec("one", requirements)
        found = recipe_of(spec, resolver.resolve(spec, python, None))
        return replace(found, closure=replace(found.closure, options={"number": number}))

    return recipe


def build(builder: Builder, recipe: Recipe) -> Built:
    return builder.build(recipe, lambda phase: None)


def compiled(root: Root, built: Built) -> dict[str, int]:
    """Inodes of a closure's compiled files by their paths."""
    closure = root.closure(built.name)
    return {path.relative_to(closure).as_posix(): path.stat().st_ino for path in closure.rglob("*.pyc")}


def test_every_source_has_its_bytecode_and_it_is_sealed(
    builder: Builder, recipe: MakeRecipe, root: Root
) -> None:
    """Each source below lib/ has a compiled file, which the manifest lists, read-only; nothing is extra."""
    phases: list[str] = []
    built = builder.build(recipe("beta"), phases.append)
    closure = root.closure(built.name)
    sources = list((closure / ".venv/lib").rglob("*.py"))
    assert len(compiled(root, built)) == len(sources) >= 2
    lines = [json.loads(line) for line in (closure / "manifest").read_bytes().splitlines()]
    listed = {line[1]: line for line in lines if line[0] == "f"}
    assert {listed[path][2] for path in compiled(root, built)} == {"0o444"}
    folders = set(closure.rglob("__pycache__"))
    assert folders and {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o555}
    assert phases.index("sync") < phases.index("seal") < phases.index("bytecode") < len(phases) - 1
    assert phases[-1] == "seal"
    assert built.phases["bytecode"] > 0
    assert not verify(root, [built.name], workers=2).findings
    assert "# bytecode: " in (closure / "build.log").read_text()


def test_an_interpreter_writes_nothing_into_a_closure(
    builder: Builder, recipe: MakeRecipe, root: Root
) -> None:
    """Root may write where it likes, and imports all the same leave the closure as it was sealed."""
    built = build(builder, recipe("beta"))
    python = root.closure(built.name) / ".venv/bin/python"
    for _ in range(2):
        subprocess.run([python, "-c", "import alpha, beta"], check=True, env={"PATH": os.defpath})
    report = verify(root, [built.name], workers=2)
    assert not report.findings and not report.missing


def test_closures_share_bytecode(builder: Builder, recipe: MakeRecipe, root: Root) -> None:
    """What another closure has of the same sources is the same inode, and costs no bytes."""
    one, two = build(builder, recipe("alpha", number=1)), build(builder, recipe("beta", number=2))
    first, second = compiled(root, one), compiled(root, two)
    assert first.items() <= second.items()
    assert one.link_fallbacks == two.link_fallbacks == 0


def test_restart_shares_bytecode(
    builder: Builder, recipe: MakeRecipe, root: Root, files: Files, uv: Uv
) -> None:
    """A new daemon finds what the last one compiled."""
    one = build(builder, recipe("beta", number=1))
    closures = Closures(root, files)
    again = Builder(closures, files, uv, Compiling(Bytecode(root, files), files, uv))
    assert compiled(root, build(again, recipe("beta", number=2))) == compiled(root, one)


def test_without_bytecode_there_is_none(
    closures: Closures, files: Files, uv: Uv, recipe: MakeRecipe, root: Root
) -> None:
    """Off is off: nothing is compiled, no folder made."""
    built = build(Builder(closures, files, uv), recipe("beta"))
    assert compiled(root, built) == {}
    assert list(root.bytecode.iterdir()) == []


def test_damaged_bytecode_does_not_come_back(
    builder: Builder, recipe: MakeRecipe, root: Root, closures: Closures, uv: Uv, compiling: Compiling
) -> None:
    """A byte that flips in a shared file is found in each closure, and the rebuilt one has another file."""
    one, two = build(builder, recipe("alpha", number=1)), build(builder, recipe("alpha", number=2))
    path = next(path for path in compiled(root, one) if path.endswith(".pyc") and "/alpha/" in path)
    file = root.closure(one.name) / path
    status = file.stat()
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)
    file.chmod(0o444)
    # As a bad disk does it: no time tells.
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    report = verify(root, [one.name, two.name], workers=2)
    assert {name: [finding.path for finding in found] for name, found in report.findings.items()} == {
        one.name: [path],
        two.name: [path],
    }
    closures.mark_damaged(one.name, ["damaged"])
    forget(uv, root, ["alpha"])
    compiling.distrust()
    again = build(builder, recipe("alpha", number=1))
    assert again.name == f"{one.name}-2"
    assert compiled(root, again)[path] != status.st_ino
    assert not verify(root, [again.name], workers=2).findings


@pytest.mark.parametrize("suffix", [".py", ".pyc", ".txt"])
def test_damage_under_its_time_is_built_into_nothing_after_a_repair(
    builder: Builder,
    recipe: MakeRecipe,
    root: Root,
    closures: Closures,
    compiling: Compiling,
    index: SimpleIndex,
    suffix: str,
) -> None:
    """Where the cache could not be purged because builds keep it busy, the rebuilt closure is whole all the same."""
    index.add_wheel(
        "withdata", "1.0", modules={"withdata/__init__.py": "V = 1\n", "withdata/data.txt": "data" * 30}
    )
    one = build(builder, recipe("withdata", number=1))
    (file,) = (
        path
        for path in root.closure(one.name).rglob(f"*{suffix}")
        if path.parts[-2:][0] in {"withdata", "__pycache__"}
        and "withdata" in path.parts
        and path.suffix == suffix
    )
    status = file.stat()
    file.chmod(0o644)
    file.write_bytes(b"#" + file.read_bytes()[1:])
    file.chmod(0o444)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    closures.mark_damaged(one.name, ["damaged"])
    closures.distrust()
    compiling.distrust()
    again = build(builder, recipe("withdata", number=1))
    assert again.name == f"{one.name}-2"
    assert not verify(root, [again.name], workers=2).findings
    assert not (root.closure(again.name) / file.relative_to(root.closure(one.name))).samefile(file)


def test_source_that_changes_under_its_time_is_fetched_anew(
    builder: Builder, recipe: MakeRecipe, root: Root, index: SimpleIndex
) -> None:
    """What uv's cache holds damaged is no part of a closure, and no key gets its code."""
    one = build(builder, recipe("alpha", number=1))
    (source,) = root.closure(one.name).glob(".venv/lib/python*/site-packages/alpha/__init__.py")
    status = source.stat()
    for entry in root.bytecode.rglob("*"):
        # Not compiled yet, as after a collection.
        if entry.is_file():
            entry.unlink()
    source.chmod(0o644)
    source.write_bytes(source.read_bytes().replace(b"1", b"2"))
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    two = build(builder, recipe("alpha", number=2))
    (new,) = root.closure(two.name).glob(".venv/lib/python*/site-packages/alpha/__init__.py")
    assert "1.0" in new.read_text()
    assert not verify(root, [two.name], workers=2).findings
    assert len(compiled(root, two)) == len(list((root.closure(two.name) / ".venv/lib").rglob("*.py")))


def test_compiled_file_counts_its_closures(builder: Builder, recipe: MakeRecipe, root: Root) -> None:
    """It has more links than one while a closure has it, and one when the last is gone: so it is collected."""
    built = build(builder, recipe("beta"))
    entries = [path for path in root.bytecode.rglob("*") if path.is_file()]
    assert entries and all(path.stat().st_nlink > 1 for path in entries)
    Files().remove_tree(root.closure(built.name))
    assert all(path.stat().st_nlink == 1 for path in entries)


def test_umask_of_the_daemon_is_no_matter(builder: Builder, recipe: MakeRecipe, root: Root) -> None:
    """Folders and files of bytecode can be read by workers under any umask."""
    old = os.umask(0o077)
    try:
        built = build(builder, recipe("beta"))
    finally:
        os.umask(old)
    closure: Path = root.closure(built.name)
    for path in closure.rglob("__pycache__"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o555
        assert {stat.S_IMODE(one.stat().st_mode) for one in path.iterdir()} == {0o444}
