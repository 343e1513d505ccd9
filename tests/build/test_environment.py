"""A build with real uv: complete or absent, of undamaged content, and nothing of a package is run on the way."""

import io
import json
import os
import stat
import threading
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envfabric.build.cache import forget
from envfabric.build.environment import Builder, Built, Recipe, recipe_from, recipe_of
from envfabric.build.interpreters import Interpreter
from envfabric.build.resolve import Resolver
from envfabric.build.uv import Finished, Uv
from envfabric.core.errors import Reason, SpecError
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.root import Root
from support.simple_index import SimpleIndex
from support.waiting import wait_for

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def recipe(resolver: Resolver, make_spec: Any, python: Interpreter) -> MakeRecipe:
    """The recipe of a spec with these requirements."""

    def recipe(*requirements: str, **details: Any) -> Recipe:
        spec = make_spec("one", requirements, **details)
        return recipe_of(spec, resolver.resolve(spec, python, None))

    return recipe


def build(builder: Builder, recipe: Recipe) -> Built:
    return builder.build(recipe, lambda phase: None)


def refusal(builder: Builder, recipe: Recipe) -> SpecError:
    with pytest.raises(SpecError) as caught:
        build(builder, recipe)
    return caught.value


def venv(root: Root, built: Built) -> Path:
    return root.closure(built.name) / ".venv"


def installed(root: Root, built: Built, path: str) -> Path:
    """A file of a closure's packages."""
    (found,) = venv(root, built).glob(f"lib/python*/site-packages/{path}")
    return found


def edit_wheel(
    wheel: Path, change: Callable[[str, bytes], bytes | None], add: dict[str, bytes] | None = None
) -> None:
    """Rewrites a wheel's files; None leaves one out."""
    packed = io.BytesIO()
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
        for name, data in (add or {}).items():
            new.writestr(name, data)
    part = wheel.with_name(f".{wheel.name}")
    part.write_bytes(packed.getvalue())
    part.replace(wheel)


def lie(name: str, data: bytes) -> bytes:
    """A RECORD in which the first hash is another one."""
    return data.replace(b"sha256=", b"sha256=AAAA", 1) if name.endswith("/RECORD") else data


def test_build_is_counted_and_described(builder: Builder, recipe: MakeRecipe, root: Root) -> None:
    """A build gives name, inodes, linked files and phases; metadata.json has the inputs, build.log uv's words."""
    asked = recipe("beta")
    phases: list[str] = []
    built = builder.build(asked, phases.append)
    assert built.name == asked.closure.digest
    assert (built.link_fallbacks, built.linked) == (0, 2), "alpha/__init__.py and beta/__init__.py"
    assert set(built.phases) == {"sync", "seal", "validate", "total"}
    assert phases == ["validate", "sync", "validate", "seal"]
    metadata = json.loads((root.closure(built.name) / "metadata.json").read_bytes())
    assert metadata["inputs"] == asked.closure.inputs
    assert "records_wrong" not in metadata
    log = (root.closure(built.name) / "build.log").read_text()
    assert "Installed 2 packages" in log
    assert str(root.staging) not in log
    assert list(root.staging.iterdir()) == []


def test_generation_is_built_again_from_its_own_files(
    builder: Builder, recipe: MakeRecipe, root: Root, resolver: Resolver
) -> None:
    """What a retained generation keeps is enough for its closure, extras and groups of its table included."""
    tail = '[project.optional-dependencies]\nmore = ["beta"]\n[dependency-groups]\ntools = ["alpha"]\n'
    tail += '[tool.envfabric]\nextras = ["more"]\ngroups = ["tools"]\n'
    first = recipe("gamma", tail=tail)
    inputs = json.loads(json.dumps(first.closure.inputs))
    again = recipe_from("wf/one", first.pyproject, first.lock, inputs)
    # It was allowed when it was made; a limit of today does not take it away.
    assert again == replace(first, max_bytes=None)
    built = build(builder, again)
    assert installed(root, built, "beta/__init__.py").is_file()


@pytest.mark.parametrize("damage", ["pyproject", "inputs"])
def test_generation_that_can_not_be_read_says_so(recipe: MakeRecipe, damage: str) -> None:
    """A retained generation whose files are damaged is a store error with what to do, not a traceback."""
    made = recipe("gamma")
    pyproject = b"[tool\n" if damage == "pyproject" else made.pyproject
    inputs = {"schema": 7} if damage == "inputs" else made.closure.inputs
    with pytest.raises(SpecError, match="can't be built again") as caught:
        recipe_from("wf/one", pyproject, made.lock, inputs)
    assert caught.value.reason is Reason.STORE


def test_damaged_cache_is_fetched_anew(
    builder: Builder, recipe: MakeRecipe, root: Root, index: SimpleIndex
) -> None:
    """A write through one closure reaches the cache, and no later closure: the wheel is fetched anew for it."""
    first = build(builder, recipe("alpha"))
    module = installed(root, first, "alpha/__init__.py")
    good = module.read_bytes()
    module.chmod(0o644)
    with module.open("ab") as file:
        file.write(b"EVIL = 1\n")
    second = build(builder, recipe("alpha", "gamma"))
    assert installed(root, second, "alpha/__init__.py").read_bytes() == good
    assert second.link_fallbacks == 0
    assert "the cache held other content of alpha" in (root.closure(second.name) / "build.log").read_text()
    assert "records_wrong" not in json.loads((root.closure(second.name) / "metadata.json").read_bytes())
    third = build(builder, recipe("beta"))
    assert installed(root, third, "alpha/__init__.py").stat().st_ino == (
        installed(root, second, "alpha/__init__.py").stat().st_ino
    ), "the mended content is shared"


def test_lying_record_is_told(
    builder: Builder, recipe: MakeRecipe, root: Root, index: SimpleIndex, runs: list[list[str]]
) -> None:
    """A wheel whose RECORD is wrong is published with that told, and is fetched anew for it only once."""
    edit_wheel(index.add_wheel("liar", "1.0"), lie)
    built = build(builder, recipe("liar"))
    metadata = json.loads((root.closure(built.name) / "metadata.json").read_bytes())
    assert metadata["records_wrong"] == [
        {
            "distribution": "liar",
            "path": installed(root, built, "liar/__init__.py").relative_to(venv(root, built)).as_posix(),
        }
    ]
    assert "RECORD of liar does not fit" in (root.closure(built.name) / "build.log").read_text()
    runs.clear()
    second = build(builder, recipe("liar", "gamma"))
    assert [one[0] for one in runs if one[0] in ("venv", "cache")] == ["venv"]
    assert json.loads((root.closure(second.name) / "metadata.json").read_bytes())["records_wrong"]
    assert installed(root, second, "liar/__init__.py").samefile(installed(root, built, "liar/__init__.py"))


@pytest.mark.parametrize(
    "path",
    ["data/pyvenv.cfg", "scripts/activate", "scripts/python", "scripts/python3",
     "data/bin/activate.fish", "data/bin/python{}", "data/lib64", "data/lib/python{}/site-packages"],
)  # fmt: skip
def test_wheel_can_not_take_the_environment_over(
    builder: Builder,
    recipe: MakeRecipe,
    root: Root,
    index: SimpleIndex,
    python: Interpreter,
    tmp_path: Path,
    path: str,
) -> None:
    """A wheel whose files land on what the environment is made of is refused by name, and nothing of it runs."""
    path = path.format(".".join(python.version.split(".")[:2]))
    mark = tmp_path / "ran"
    index.add_wheel(
        "taker", "1.0", modules={f"taker-1.0.data/{path}": f"#!python\nimport os; os.mkdir({str(mark)!r})\n"}
    )
    error = refusal(builder, recipe("taker"))
    assert error.reason in (Reason.VALIDATION, Reason.BUILD_FAILED)
    assert "taker" in error.message
    assert not mark.exists()
    assert list(root.store.iterdir()) == []


def test_nothing_is_started_once_packages_are_in(
    builder: Builder, recipe: MakeRecipe, root: Root, index: SimpleIndex, tmp_path: Path
) -> None:
    """A wheel's .pth file, and a sitecustomize, leave no trace of having been run by a build."""
    mark = tmp_path / "ran"
    code = f"import os; os.mkdir({str(mark)!r})\n"
    index.add_wheel("starter", "1.0", modules={"starter.pth": code, "sitecustomize.py": code})
    build(builder, recipe("starter"))
    assert not mark.exists()


def test_deeply_nested_wheel_is_refused(
    builder: Builder, recipe: MakeRecipe, root: Root, index: SimpleIndex
) -> None:
    """A wheel of 300 folders one in the other is refused with the place, and nothing stays in staging."""
    index.add_wheel("deep", "1.0", modules={"/".join(["d"] * 300) + "/m.py": ""})
    error = refusal(builder, recipe("deep"))
    assert error.reason is Reason.VALIDATION
    assert "nests folders" in error.message
    assert list(root.staging.iterdir()) == list(root.store.iterdir()) == []


def test_set_that_is_not_the_planned_one_is_told_with_what_uv_said(
    root: Root, files: Files, closures: Closures, index: SimpleIndex, recipe: MakeRecipe
) -> None:
    """Where uv ended well and something is missing, the environment is refused, and the log has uv's own words."""

    class Idle(Uv):
        def run(self, arguments: Sequence[str], **details: Any) -> Finished:
            if arguments[0] == "sync":
                return Finished(0, "", "error: No child processes", 0.0)
            return super().run(arguments, **details)

    error = refusal(Builder(closures, files, Idle(root, timeout=60, index=index.url)), recipe("alpha"))
    assert error.reason is Reason.VALIDATION
    assert "differs from its lock in alpha" in error.message
    assert "error: No child processes" in error.output
    assert list(root.store.iterdir()) == []


def test_interpreter_that_changed_is_told(
    builder: Builder, recipe: MakeRecipe, root: Root, tmp_path: Path
) -> None:
    """An interpreter that is no longer what was planned is validation, before anything is made."""
    made = recipe("gamma")
    gone = replace(made.closure.interpreter, path=str(tmp_path / "python3"))
    error = refusal(builder, replace(made, closure=replace(made.closure, interpreter=gone)))
    assert error.reason is Reason.VALIDATION
    assert "restart the daemon" in error.message


def test_wheel_changed_on_its_index_is_no_wrong_closure(
    root: Root, files: Files, closures: Closures, uv: Uv, recipe: MakeRecipe, index: SimpleIndex
) -> None:
    """Without a hash on the index a wheel that changes after it was resolved is not installed as the old one."""
    index.hashes = False
    before = recipe("gamma")
    index.add_wheel("gamma", "2.0", modules={"gamma/__init__.py": "VERSION = 'other'\n"})
    builder = Builder(closures, files, uv)
    after = recipe("gamma")
    assert after.closure.digest != before.closure.digest
    built = build(builder, after)
    assert built.name == after.closure.digest
    assert "other" in installed(root, built, "gamma/__init__.py").read_text()
    error = refusal(builder, before)
    assert error.reason is Reason.FETCH
    assert "gives another file now than when it was resolved" in error.message


def test_two_builds_at_once_share(
    builder: Builder, recipe: MakeRecipe, root: Root, index: SimpleIndex, uv: Uv
) -> None:
    """Two builds that want the same wheel with an empty cache fetch and unpack it once."""
    index.add_wheel("wide", "1.0", modules={f"wide/m{number}.py": f"N = {number}\n" for number in range(300)})
    both = [recipe("wide", "gamma<2"), recipe("wide", "gamma>=2")]
    forget(uv, root, ["wide", "gamma"])
    before = len(index.requests)
    # uv's own lock on a wheel helps only where the second process need not ask again.
    index.immutable = False
    held = index.hold()
    done: dict[int, Built] = {}

    def work(number: int) -> None:
        done[number] = build(builder, both[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    # Both have begun: what they do next is to install, or to wait for the one who does.
    wait_for(lambda: len(list(root.staging.glob("*/closure"))) == 2, message="no two builds")
    wait_for(lambda: [one for one in index.requests[before:] if "/wide-" in one], message="nothing asked for")
    held.set()
    for thread in threads:
        thread.join(60)
    first, second = (installed(root, done[number], "wide/m0.py").parent for number in (0, 1))
    assert first != second
    assert all((first / name).samefile(second / name) for name in os.listdir(first))
    assert done[0].link_fallbacks == done[1].link_fallbacks == 0
    assert len([one for one in index.requests[before:] if one.startswith("/files/wide-")]) == 1


def test_lock_with_a_wrong_hash_empties_the_cache_once(
    builder: Builder,
    make_spec: Any,
    recipe: MakeRecipe,
    python: Interpreter,
    resolver: Resolver,
    runs: list[list[str]],
) -> None:
    """A committed hash that no file has is build-failed; trying it again does not take the cache from others."""
    made = recipe("gamma", local=True)
    (one,) = made.closure.distributions
    lock = made.lock.replace(one.hash.encode(), b"sha256:" + b"0" * 64)
    spec = make_spec("one", ["gamma"], local=True, files={"uv.lock": lock})
    wrong = recipe_of(spec, resolver.resolve(spec, python, None))
    runs.clear()
    for _ in range(3):
        error = refusal(builder, wrong)
        assert error.reason is Reason.BUILD_FAILED
        assert "Hash mismatch" in error.message
    assert len([one for one in runs if one[:2] == ["cache", "clean"]]) == 1


@pytest.mark.parametrize("local", [False, True], ids=["default-index", "own-index"])
def test_warm_cache_is_shared_from_any_index(
    builder: Builder, recipe: MakeRecipe, root: Root, index: SimpleIndex, local: bool
) -> None:
    """A wheel that is in the cache is fetched by no later build, also from an index whose answers may not be kept."""
    index.immutable = False
    first = build(builder, recipe("alpha", local=local))
    asked = recipe("alpha", "gamma", local=local)
    before = len(index.requests)
    second = build(builder, asked)
    assert [one for one in index.requests[before:] if "alpha" in one] == []
    assert installed(root, first, "alpha/__init__.py").samefile(installed(root, second, "alpha/__init__.py"))


def test_committed_lock_of_an_index_that_nobody_names_is_shared(
    root: Root, files: Files, closures: Closures, recipe: MakeRecipe, index: SimpleIndex, tmp_path: Path
) -> None:
    """The index of a lock need be neither the spec's nor the fleet's for its wheels to be found in the cache."""
    index.immutable = False
    with SimpleIndex(tmp_path / "fleet") as fleet:
        builder = Builder(closures, files, Uv(root, timeout=60, index=fleet.url))
        first = build(builder, recipe("alpha"))
        asked = recipe("alpha", "gamma")
        before = len(index.requests)
        second = build(builder, asked)
        assert fleet.requests == []
    assert [one for one in index.requests[before:] if "alpha" in one] == []
    assert installed(root, first, "alpha/__init__.py").samefile(installed(root, second, "alpha/__init__.py"))


def test_copies_are_counted_and_uv_is_quoted(
    root: Root, files: Files, closures: Closures, index: SimpleIndex, recipe: MakeRecipe
) -> None:
    """Files that uv copied are counted, and the log has what it said."""

    class Copying(Uv):
        def environment(self, *, fleet: bool) -> dict[str, str]:
            return super().environment(fleet=fleet) | {"UV_LINK_MODE": "copy"}

        def run(self, arguments: Sequence[str], **details: Any) -> Finished:
            done = super().run(arguments, **details)
            said = "warning: Failed to hardlink files; falling back to full copy.\n"
            return Finished(done.code, done.stdout, done.stderr + said, done.seconds)

    built = build(Builder(closures, files, Copying(root, timeout=60, index=index.url)), recipe("beta"))
    assert (built.linked, built.link_fallbacks) == (0, 2)
    metadata = json.loads((root.closure(built.name) / "metadata.json").read_bytes())
    assert metadata["link_fallbacks"] == 2
    assert "falling back to full copy" in (root.closure(built.name) / "build.log").read_text()


def test_scripts_and_data_fit_their_records(
    builder: Builder, recipe: MakeRecipe, root: Root, index: SimpleIndex
) -> None:
    """What uv rewrites for an environment (scripts, entry points, data) is no damage."""
    modules = {
        "tool/__init__.py": "def main(): ...\n",
        "tool-1.0.data/scripts/plain": "#!python\nprint(1)\n",
        "tool-1.0.data/data/share/doc/tool.txt": "text\n",
        "tool-1.0.data/data/lib64/tool.so": "native\n",
        "tool-1.0.data/headers/tool.h": "int x;\n",
    }
    index.add_wheel("tool", "1.0", modules=modules, scripts={"run-tool": "tool:main"})
    built = build(builder, recipe("tool"))
    assert "records_wrong" not in json.loads((root.closure(built.name) / "metadata.json").read_bytes())
    assert (venv(root, built) / "share/doc/tool.txt").is_file()
    assert stat.S_IMODE((venv(root, built) / "bin/plain").stat().st_mode) == 0o555


def test_unfinished_file_of_the_cache_is_not_sealed(builder: Builder, recipe: MakeRecipe, root: Root) -> None:
    """What uv leaves in its cache when it is killed at the link limit gets into no closure; a wheel's own does."""
    build(builder, recipe("gamma<2"))
    (first,) = root.uv_cache.glob("archive-v*/*/gamma/__init__.py")
    first.with_name(".tmpAbCd12").write_text("half")
    built = build(builder, recipe("gamma<2", "alpha"))
    assert [path.name for path in installed(root, built, "gamma").glob(".tmp*")] == []
    assert "begun anew" in (root.closure(built.name) / "build.log").read_text()


def test_unfinished_file_of_a_wheel_is_its_own(
    builder: Builder, recipe: MakeRecipe, root: Root, index: SimpleIndex
) -> None:
    """A file that is only called as uv calls unfinished ones stays where its wheel put it."""
    index.add_wheel("odd", "1.0", modules={"odd/__init__.py": "", "odd/.tmpAbCd12": "whole"})
    built = build(builder, recipe("odd"))
    assert installed(root, built, "odd/.tmpAbCd12").read_text() == "whole"


@pytest.mark.parametrize("races", [1, 3])
def test_build_that_met_another_at_the_link_limit_is_begun_anew(
    closures: Closures, files: Files, root: Root, recipe: MakeRecipe, index: SimpleIndex, races: int
) -> None:
    """uv lists a file of the cache that another uv renames before it is linked: no fault of the spec."""
    said = (
        "error: Failed to install: alpha-1.0-py3-none-any.whl (alpha==1.0)\n  cause: failed to hardlink file from "
        f"{root.staging}/x/closure/.venv/lib/python3.11/site-packages/alpha/.tmpn6OwmG to {root.uv_cache}/archive-v0/"
        "jpN_wYiBMON04x9G/alpha/.tmpn6OwmG: No such file or directory (os error 2)\n"
    )
    left = races

    class Racing(Uv):
        def run(self, arguments: Sequence[str], **details: Any) -> Finished:
            nonlocal left
            done = super().run(arguments, **details)
            if arguments[0] == "sync" and left:
                left -= 1
                return Finished(2, done.stdout, said, done.seconds)
            return done

    builder = Builder(closures, files, Racing(root, timeout=60, index=index.url))
    asked = recipe("beta")
    if races == 1:
        assert build(builder, asked).name == asked.closure.digest
    else:
        assert refusal(builder, asked).reason is Reason.STORE
    assert not any(root.staging.iterdir())
