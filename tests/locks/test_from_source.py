"""Names that may be built are built, and nothing else is; direct addresses are taken where they are listed."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from envfabric.build.environment import Builder, recipe_from, recipe_of
from envfabric.core.errors import Reason, SpecError
from support.place import Place, versions
from support.wheels import make_sdist

Marks = Path


@pytest.fixture
def marks(place: Place) -> Marks:
    """A folder into which build backends write: listed is an sdist, and so is other."""
    folder = place.folder / "marks"
    folder.mkdir()
    for name in ("listed", "other"):
        code = f"import json, os\nopen({str(folder / name)!r}, 'a').write(json.dumps(dict(os.environ)) + '\\n')\n"
        code += "open(os.path.expanduser('~/written'), 'w').write('x')\n"
        place.index.add_sdist(name, "1.0", setup_py=code, requires=["alpha"])
    place.index.add_wheel("listed", "0.5")
    return folder


def allow(place: Place, *names: str) -> None:
    place.policy = replace(place.policy, build_from_source=frozenset(names))


def environments(marks: Marks, name: str) -> list[dict[str, str]]:
    """The environment of each run of a backend."""
    return [json.loads(line) for line in (marks / name).read_text().splitlines()]


def test_nothing_is_built_by_default(place: Place, marks: Marks) -> None:
    """Without a listed name, a version that has a wheel is chosen, or the spec refused; no backend runs."""
    assert versions(place.get(place.spec(["listed"]))) == {"listed": "0.5"}
    error = place.refusal(place.spec(["listed==1.0"]))
    assert error.reason is Reason.POLICY
    assert "listed" in error.message
    assert list(marks.iterdir()) == []


def test_listed_name_is_built_and_no_other(place: Place, marks: Marks) -> None:
    """A listed name is built in a home of its own that is gone afterwards; the closure has the sdist's hash."""
    allow(place, "listed")
    spec = place.spec(["listed"])
    found = place.get(spec)
    assert versions(found) == {"alpha": "1.0", "listed": "1.0"}
    one = found.closure.distributions[1]
    assert (one.wheel, one.built, one.hash[:7]) == ("listed-1.0.tar.gz", True, "sha256:")
    built = place.build(spec, found)
    package = next(place.root.closure(built.name).glob(".venv/lib/*/site-packages/listed/__init__.py"))
    assert package.read_text() == 'VERSION = "1.0"\n'
    assert (
        "built from source, which runs its code: listed"
        in (place.root.closure(built.name) / "build.log").read_text()
    )
    for environment in environments(marks, "listed"):
        home = Path(environment["HOME"])
        assert home.is_relative_to(place.root.staging)
        assert not home.exists()
        assert not Path(environment["TMPDIR"]).exists()
        assert not any(name.startswith("ENVFABRIC") for name in environment)
    assert not (Path(os.environ["HOME"]) / "written").exists()
    assert list(place.root.staging.iterdir()) == []
    assert place.fits(spec, found.lock)


def test_unlisted_name_beside_a_listed_one_does_not_run(place: Place, marks: Marks) -> None:
    """One listed name opens nothing for another in the same resolution, committed lock or not."""
    allow(place, "listed")
    error = place.refusal(place.spec(["listed", "other"]))
    assert error.reason is Reason.POLICY
    assert "other" in error.message
    assert not (marks / "other").exists()
    code, lock, said = place.by_hand(["lock"], place.spec(["listed", "other"]), None)
    assert code == 0, said
    (marks / "other").unlink()
    error = place.refusal(place.spec(["listed", "other"], lock=lock))
    assert error.reason is Reason.POLICY
    assert "other" in error.message
    assert not (marks / "other").exists()


def test_wheel_is_taken_where_there_is_one(place: Place, marks: Marks) -> None:
    """A listed name whose version has a wheel that fits is installed from that, and no backend runs."""
    place.index.add_wheel("listed", "1.0")
    allow(place, "listed")
    spec = place.spec(["listed"])
    found = place.get(spec)
    assert [one.wheel for one in found.closure.distributions] == ["listed-1.0-py3-none-any.whl"]
    place.build(spec, found)
    assert list(marks.iterdir()) == []


def test_built_and_downloaded_are_two_closures(place: Place, marks: Marks) -> None:
    """An environment from an sdist has another digest than one from the same version's wheel."""
    allow(place, "listed")
    built = place.get(place.spec(["listed"])).closure
    place.index.add_wheel("listed", "1.0", requires=["alpha"])
    place.resolver()
    taken = place.resolver().resolve(place.spec(["listed"]), place.python, None).closure
    assert taken.digest != built.digest
    assert versions_of(taken.inputs) == versions_of(built.inputs)


def versions_of(inputs: dict[str, object]) -> object:
    return [(one["name"], one["version"]) for one in inputs["distributions"]]  # type: ignore[attr-defined]


def test_retained_generation_is_built_again(place: Place, marks: Marks) -> None:
    """Healing builds from source again what was, with the cache gone and the name no longer listed."""
    allow(place, "listed")
    spec = place.spec(["listed"])
    recipe = recipe_of(spec, place.get(spec))
    place.uv().run(["cache", "clean"], cwd=place.root.path)
    (marks / "listed").unlink()
    allow(place)
    again = recipe_from(spec.id, recipe.pyproject, recipe.lock, json.loads(json.dumps(recipe.closure.inputs)))
    made = Builder(place.closures, place.files, place.uv()).build(again, lambda phase: None)
    assert made.name == recipe.closure.digest
    assert len(environments(marks, "listed")) == 1


def test_sdist_with_another_hash_is_not_built(place: Place, marks: Marks) -> None:
    """An sdist whose bytes are not those of the lock is refused before its backend runs."""
    allow(place, "listed")
    spec = place.spec(["listed"])
    found = place.get(spec)
    place.uv().run(["cache", "clean"], cwd=place.root.path)
    (marks / "listed").unlink()
    place.index.add_sdist("listed", "1.0", setup_py=f"open({str(marks / 'evil')!r}, 'w')", requires=["alpha"])
    with pytest.raises(SpecError):
        place.build(spec, found)
    assert list(marks.iterdir()) == []


def wheel_at(place: Place) -> str:
    return f"{place.index.url.removesuffix('/simple')}/files/gamma-1.0-py3-none-any.whl"


def test_listed_url_of_a_wheel_is_installed(place: Place) -> None:
    """A wheel at a listed address is taken with its hash, in a closure of its own, also by a committed lock."""
    place.policy = replace(place.policy, sources=(f"{place.index.url.removesuffix('/simple')}/files",))
    tail = f'[tool.uv.sources]\ngamma = {{ url = "{wheel_at(place)}" }}'
    spec = place.spec(["gamma", "alpha"], tail=tail)
    found = place.get(spec)
    assert versions(found) == {"alpha": "1.0", "gamma": "1.0"}
    one = found.closure.distributions[1]
    assert (one.origin, one.hash[:7], one.built) == (wheel_at(place), "sha256:", False)
    assert place.fits(spec, found.lock)
    place.build(spec, found)
    committed = place.spec(["gamma", "alpha"], tail=tail, lock=found.lock)
    assert place.get(committed).closure == found.closure
    of_index = place.get(place.spec(["gamma==1.0", "alpha"])).closure
    assert of_index.distributions[1].hash == one.hash
    assert of_index.digest != found.closure.digest


@pytest.mark.parametrize("change", ["file", "source", "no-hash"])
def test_lock_with_another_url_is_refused(place: Place, change: str) -> None:
    """A committed lock whose URL is not listed, or whose file is elsewhere or has no hash, is refused."""
    here = place.index.url.removesuffix("/simple")
    place.policy = replace(place.policy, sources=(f"{here}/files",))
    tail = f'[tool.uv.sources]\ngamma = {{ url = "{wheel_at(place)}" }}'
    lock = place.locked_by_hand(["gamma"], tail=tail).decode()
    there = wheel_at(place).replace("/files/", "/other/")
    tampered = {
        "file": lock.replace(f'{{ url = "{wheel_at(place)}", hash', f'{{ url = "{there}", hash'),
        "source": lock.replace(f'source = {{ url = "{wheel_at(place)}"', f'source = {{ url = "{there}"'),
        "no-hash": lock.replace(", hash = ", ", other = "),
    }[change]
    assert tampered != lock
    error = place.refusal(place.spec(["gamma"], tail=tail, lock=tampered.encode()))
    assert error.reason is Reason.POLICY
    assert "gamma" in error.message


def test_wheel_of_a_url_is_held_to_its_hash(place: Place) -> None:
    """Other bytes at a listed address than the lock has are not installed."""
    place.policy = replace(place.policy, sources=(f"{place.index.url.removesuffix('/simple')}/files",))
    spec = place.spec(["gamma"], tail=f'[tool.uv.sources]\ngamma = {{ url = "{wheel_at(place)}" }}')
    found = place.get(spec)
    place.uv().run(["cache", "clean"], cwd=place.root.path)
    place.index.add_wheel("gamma", "1.0", modules={"gamma/__init__.py": "evil = 1\n"})
    with pytest.raises(SpecError):
        place.build(spec, found)
    assert list((place.root.path / "store").iterdir()) == []


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def repository(place: Place) -> Iterator[str]:
    """The address of a git repository with a package named listed."""
    work, served = place.folder / "work", place.folder / "served"
    work.mkdir()
    sdist = make_sdist(place.folder / "made", "listed", "3.0")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    subprocess.run(["tar", "xzf", str(sdist), "--strip", "1", "-C", str(work)], check=True)
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *arguments], cwd=work, check=True)
    subprocess.run(
        [*git, "clone", "-q", "--bare", str(work), str(served / "team" / "listed.git")], check=True
    )
    subprocess.run(["git", "update-server-info"], cwd=served / "team" / "listed.git", check=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(served))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/team/listed.git"
        server.shutdown()
        thread.join()


def test_git_source_needs_its_address_and_its_name_listed(place: Place, repository: str) -> None:
    """A git repository is built where address and name are listed; the closure covers the commit."""
    tail = f'[tool.uv.sources]\nlisted = {{ git = "{repository}" }}'
    place.policy = replace(
        place.policy,
        sources=(repository.removesuffix("listed.git"),),
        build_from_source=frozenset({"listed"}),
    )
    spec = place.spec(["listed"], tail=tail)
    found = place.get(spec)
    (one,) = found.closure.distributions
    assert (one.version, one.built, one.hash[:4], len(one.hash)) == ("3.0", True, "git:", 44)
    place.build(spec, found)
    assert place.fits(spec, found.lock)
    committed = place.spec(["listed"], tail=tail, lock=found.lock)
    assert place.get(committed).closure == found.closure
    allowed = place.policy
    for policy in (replace(allowed, sources=()), replace(allowed, build_from_source=frozenset())):
        # The spec was read under a policy that allows it: its lock is looked at for itself.
        place.policy = policy
        error = place.refusal(committed)
        assert error.reason is Reason.POLICY
        assert "listed" in error.message
