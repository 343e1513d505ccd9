"""From a spec to its closure with real uv: shared where the outcome is, kept stable, checked where committed."""

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from envfabric.build.interpreters import Interpreter
from envfabric.build.resolve import Resolution, Resolver
from envfabric.build.uv import Finished, Uv
from envfabric.core.errors import Reason, SpecError
from envfabric.specs.spec import Spec
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.root import Root
from support.simple_index import SimpleIndex

Runs = list[list[str]]
CLOSED = "http://127.0.0.1:9/simple"


def get(resolver: Resolver, spec: Spec, python: Interpreter, base: bytes | None = None) -> Resolution:
    """As the daemon asks: what is known for the key, else uv."""
    return resolver.known(spec, resolver.key(spec, python, base)) or resolver.resolve(spec, python, base)


def versions(resolution: Resolution) -> dict[str, str]:
    return {one.name: one.version for one in resolution.closure.distributions}


def refusal(resolver: Resolver, spec: Spec, python: Interpreter) -> SpecError:
    with pytest.raises(SpecError) as caught:
        get(resolver, spec, python)
    return caught.value


def test_equal_requests_are_resolved_once(
    resolver: Resolver, make_spec: Any, python: Interpreter, runs: Runs
) -> None:
    """A second spec that asks for the same is answered without uv, with the lock that uv would write for it."""
    first = get(resolver, make_spec("one", ["beta", "gamma"]), python)
    assert [run[0] for run in runs] == ["lock", "sync"]
    runs.clear()
    spec = make_spec("zzz", ["gamma", "beta"], version="2.0")
    second = get(resolver, spec, python)
    assert runs == []
    assert second.closure == first.closure
    assert second.lock == resolver.resolve(spec, python, None).lock != first.lock
    assert (first.origin, second.origin) == ("resolved", "resolved")
    assert versions(second) == {"alpha": "1.0", "beta": "1.0", "gamma": "2.0"}


@pytest.mark.parametrize("change", ["requirement", "python", "base", "index", "extra"])
def test_other_requests_are_resolved_for_themselves(
    resolver: Resolver,
    make_spec: Any,
    python: Interpreter,
    root: Root,
    files: Files,
    closures: Closures,
    change: str,
) -> None:
    """Another requirement, interpreter, base lock, fleet index or extra is another question."""
    tail = "[project.optional-dependencies]\nmore = []\n"
    spec = make_spec("one", ["gamma"], tail=tail)
    key = resolver.key(spec, python, None)
    assert key == resolver.key(make_spec("two", ["gamma"], tail=tail), python, None)
    assert (
        key
        != {
            "requirement": lambda: resolver.key(make_spec("one", ["gamma<2"], tail=tail), python, None),
            "python": lambda: resolver.key(spec, Interpreter("p", "3.12.1", "cpython", "a", "b", "c"), None),
            "base": lambda: resolver.key(spec, python, b"version = 1\n"),
            "index": lambda: Resolver(
                root, files, Uv(root, index="http://127.0.0.1:9/simple"), closures.staging
            ).key(spec, python, None),
            "extra": lambda: resolver.key(
                make_spec("one", ["gamma"], tail=tail + '[tool.envfabric]\nextras = ["more"]\n'), python, None
            ),
        }[change]()
    )


def test_nothing_is_shared_with_a_project_named_like_a_package(
    resolver: Resolver, make_spec: Any, python: Interpreter, runs: Runs
) -> None:
    """A spec that is named like something locked gets no lock of others: uv takes it for that package."""
    get(resolver, make_spec("other", ["beta"]), python)
    runs.clear()
    for name, requirement in (("alpha", "beta"), ("beta", "beta")):
        spec = make_spec(name, [requirement])
        assert resolver.known(spec, resolver.key(spec, python, None)) is None


def test_extra_of_itself_is_not_shared(resolver: Resolver, make_spec: Any, python: Interpreter) -> None:
    """A project that requires its own extra means itself; another one with the same line means the package."""
    tail = '[project.optional-dependencies]\nx = ["gamma"]\nall = ["beta[x]"]\n[tool.envfabric]\nextras = ["all"]\n'
    assert versions(get(resolver, make_spec("beta", tail=tail), python)) == {"gamma": "2.0"}
    found = get(resolver, make_spec("other", tail=tail), python)
    assert versions(found) == {"alpha": "1.0", "beta": "1.0"}


def test_shared_outcome_grows_old(
    root: Root,
    files: Files,
    uv: Uv,
    closures: Closures,
    make_spec: Any,
    python: Interpreter,
    index: SimpleIndex,
) -> None:
    """An outcome is shared for max_age; after that, a spec that is new sees what the index has now."""
    spec = make_spec("one", ["gamma"])
    young = Resolver(root, files, uv, closures.staging, max_age=3600)
    old = Resolver(root, files, uv, closures.staging, max_age=0)
    assert versions(get(young, spec, python)) == {"gamma": "2.0"}
    index.add_wheel("gamma", "3.0")
    assert versions(get(young, make_spec("two", ["gamma"]), python)) == {"gamma": "2.0"}
    assert versions(get(old, make_spec("two", ["gamma"]), python)) == {"gamma": "3.0"}


@pytest.mark.parametrize("committed", [False, True])
def test_record_says_when_it_was_last_of_use(
    resolver: Resolver, make_spec: Any, python: Interpreter, root: Root, committed: bool
) -> None:
    """Its mtime, for the collector: set by a use, not more than once a day, and by no other look."""
    spec = make_spec("one", ["gamma"], local=True)
    if committed:
        lock = get(resolver, spec, python).lock
        for path in (root.state / "resolutions").iterdir():
            path.unlink()
        spec = make_spec("one", ["gamma"], local=True, files={"uv.lock": lock})
    get(resolver, spec, python)
    (record,) = (root.state / "resolutions").iterdir()
    content, written = record.read_bytes(), record.stat().st_mtime
    for hours, touched in ((23, False), (25, True)):
        then = written - hours * 3600
        os.utime(record, (then, then))
        # A spec that is named like something in it can't use it.
        assert resolver.known(make_spec("gamma", ["gamma"]), record.stem) is None
        assert record.stat().st_mtime == then
        assert resolver.known(spec, resolver.key(spec, python, None)) is not None
        assert (record.stat().st_mtime > then) is touched
    assert record.read_bytes() == content


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"at": "x"}', b"[1]"])
def test_damaged_record_is_asked_anew(
    resolver: Resolver, make_spec: Any, python: Interpreter, root: Root, damage: bytes
) -> None:
    """A record that can't be read is no answer; uv is asked and it is written anew."""
    spec = make_spec("one", ["gamma"])
    get(resolver, spec, python)
    (record,) = (root.state / "resolutions").iterdir()
    record.write_bytes(damage)
    assert versions(get(resolver, spec, python)) == {"gamma": "2.0"}
    assert json.loads(record.read_bytes())["inputs"]["distributions"]


def test_base_lock_keeps_versions(
    resolver: Resolver, make_spec: Any, python: Interpreter, index: SimpleIndex
) -> None:
    """With the served lock as a base, what is locked stays, also for another name and new requirements."""
    base = get(resolver, make_spec("one", ["gamma"]), python).lock
    index.add_wheel("gamma", "3.0")
    assert versions(get(resolver, make_spec("one", ["gamma", "alpha"]), python, base))["gamma"] == "2.0"
    assert versions(get(resolver, make_spec("renamed", ["gamma", "beta"]), python, base))["gamma"] == "2.0"
    assert versions(get(resolver, make_spec("one", ["gamma>2"]), python, base))["gamma"] == "3.0"
    assert versions(get(resolver, make_spec("one", ["gamma", "alpha"]), python))["gamma"] == "3.0"


@pytest.mark.parametrize("damage", ["newer-schema", "no-lock"])
def test_base_that_uv_can_not_read_is_dropped(
    resolver: Resolver, make_spec: Any, python: Interpreter, damage: str
) -> None:
    """A base lock of a newer uv, or one that is damaged, costs its versions and not the resolution."""
    lock = get(resolver, make_spec("one", ["gamma"]), python).lock
    base = lock.replace(b"version = 1\n", b"version = 99\n", 1) if damage == "newer-schema" else b"no lock"
    assert base != lock
    found = get(resolver, make_spec("one", ["gamma", "alpha"]), python, base)
    assert versions(found) == {"alpha": "1.0", "gamma": "2.0"}
    assert found.lock.startswith(b"version = 1\n")


def test_extras_and_groups_only_where_asked(resolver: Resolver, make_spec: Any, python: Interpreter) -> None:
    """Only chosen extras and groups are installed: not even dev unasked, nor tool.uv's defaults."""
    tail = (
        '[project.optional-dependencies]\nmore = ["gamma"]\n[dependency-groups]\ndev = ["beta"]\n'
        '[tool.uv]\ndefault-groups = ["dev"]\n'
    )
    assert versions(get(resolver, make_spec("one", ["alpha"], tail=tail), python)) == {"alpha": "1.0"}
    tail += '[tool.envfabric]\nextras = ["more"]\ngroups = ["dev"]\n'
    found = get(resolver, make_spec("one", ["alpha"], tail=tail), python)
    assert versions(found) == {"alpha": "1.0", "beta": "1.0", "gamma": "2.0"}


def test_committed_lock_is_taken_as_it_is(
    resolver: Resolver, make_spec: Any, python: Interpreter, index: SimpleIndex, runs: Runs
) -> None:
    """A committed lock that fits is served byte for byte, and answers others that asked and locked the same."""
    lock = get(resolver, make_spec("one", ["gamma"], local=True), python).lock
    index.add_wheel("gamma", "3.0")
    found = get(resolver, make_spec("one", ["gamma"], local=True, files={"uv.lock": lock}), python)
    assert (found.lock, found.origin, versions(found)) == (lock, "committed", {"gamma": "2.0"})
    runs.clear()
    renamed = lock.replace(b'name = "one"', b'name = "zzz"')
    again = get(resolver, make_spec("zzz", ["gamma"], local=True, files={"uv.lock": renamed}), python)
    assert (again.lock, again.closure, runs) == (renamed, found.closure, [])


def test_stale_lock_is_named_with_what_to_do(resolver: Resolver, make_spec: Any, python: Interpreter) -> None:
    """A committed lock that does not fit its pyproject.toml is lock-stale, and never corrected in silence."""
    lock = get(resolver, make_spec("one", ["gamma"], local=True), python).lock
    error = refusal(resolver, make_spec("one", ["gamma<2"], local=True, files={"uv.lock": lock}), python)
    assert error.reason is Reason.LOCK_STALE
    assert "wf/one/uv.lock does not fit wf/one/pyproject.toml any more" in error.message
    assert "Run `uv lock` in wf/one and commit" in error.message


@pytest.mark.parametrize(
    ("requirements", "reason", "says"),
    [
        (["gamma>2"], Reason.UNRESOLVABLE, "gamma>2"),
        (["gamma<2", "gamma>1"], Reason.UNRESOLVABLE, "gamma"),
        (["no-such-package"], Reason.UNRESOLVABLE, "no-such-package"),
        (["only-source"], Reason.POLICY, "only-source"),
        (["elsewhere"], Reason.POLICY, "elsewhere"),
    ],
)
def test_impossible_requirements_have_their_reason(
    resolver: Resolver, make_spec: Any, python: Interpreter, index: SimpleIndex, tmp_path: Path,
    requirements: list[str], reason: Reason, says: str,
) -> None:  # fmt: skip
    """What can't be resolved, or has no wheel here, names the package; no build backend is run for it."""
    mark = tmp_path / "ran"
    index.add_sdist("only-source", "1.0", setup_py=f"open({str(mark)!r}, 'w')")
    index.add_wheel("elsewhere", "1.0", tag="cp311-cp311-win_amd64")
    error = refusal(resolver, make_spec("one", requirements), python)
    assert error.reason is reason, error.message
    assert says in error.message
    assert not mark.exists()


def test_index_that_is_away_is_a_fetch_error(
    root: Root, files: Files, closures: Closures, make_spec: Any, python: Interpreter
) -> None:
    """An index that can't be reached is no fault of the spec or of its base: `fetch`, nothing recorded."""
    locked: list[str] = []

    class Hasty(Uv):
        def environment(self, *, fleet: bool) -> dict[str, str]:
            return super().environment(fleet=fleet) | {"UV_HTTP_RETRIES": "0"}

        def run(self, arguments: Sequence[str], **details: Any) -> Finished:
            locked.append(arguments[0])
            return super().run(arguments, **details)

    resolver = Resolver(root, files, Hasty(root, timeout=60, index=CLOSED), closures.staging)
    with pytest.raises(SpecError) as caught:
        resolver.resolve(make_spec("one", ["gamma"]), python, b'version = 1\nrequires-python = ">=3.11"\n')
    assert caught.value.reason is Reason.FETCH
    assert caught.value.reason.passing
    assert locked == ["lock"], "not tried again without the base"
    assert not list(root.state.rglob("*.json"))


def test_endless_resolution_is_timed_out(
    root: Root, files: Files, closures: Closures, make_spec: Any, python: Interpreter, index: SimpleIndex
) -> None:
    """An index that never answers costs its spec the time limit, and leaves nothing in staging."""
    uv = Uv(root, timeout=0.5, index=index.url)
    held = index.hold("gamma")
    error = refusal(Resolver(root, files, uv, closures.staging), make_spec("one", ["gamma"]), python)
    held.set()
    assert error.reason is Reason.TIMEOUT
    assert list(root.staging.iterdir()) == []


def test_resolving_at_once_on_many_threads(resolver: Resolver, make_spec: Any, python: Interpreter) -> None:
    """Different specs are resolved at the same time, each in a staging folder of its own."""
    found: dict[str, dict[str, str]] = {}

    def work(name: str, requirement: str) -> None:
        found[name] = versions(get(resolver, make_spec(name, [requirement]), python))

    wanted = {f"s{number}": f"gamma=={1 + number % 2}.0" for number in range(6)}
    threads = [threading.Thread(target=work, args=pair) for pair in wanted.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {name: {"gamma": text[-3:]} for name, text in wanted.items()}


def test_package_that_requires_the_project_is_not_shared(
    resolver: Resolver, make_spec: Any, python: Interpreter
) -> None:
    """Where a package requires what a project is named like, uv means the project: refused, and kept for nobody."""
    with pytest.raises(SpecError, match="rename the project") as caught:
        get(resolver, make_spec("alpha", ["beta"]), python)
    assert caught.value.reason is Reason.INVALID_SPEC
    found = get(resolver, make_spec("other", ["beta"]), python)
    assert versions(found) == {"alpha": "1.0", "beta": "1.0"}


@pytest.mark.parametrize("first", ["copy", "original"])
@pytest.mark.parametrize("change", ["name", "version"])
def test_lock_of_another_project_is_stale(
    resolver: Resolver, make_spec: Any, python: Interpreter, change: str, first: str
) -> None:
    """A lock copied from a project of another name or version is lock-stale, whichever of them is known first."""
    lock = get(resolver, make_spec("one", ["gamma"], local=True), python).lock
    original = make_spec("one", ["gamma"], local=True, files={"uv.lock": lock})
    name, version = ("two", "0.1.0") if change == "name" else ("one", "0.2.0")
    copy = make_spec(name, ["gamma"], version=version, local=True, files={"uv.lock": lock})
    for spec in (copy, original) if first == "copy" else (original, copy, original):
        if spec is copy:
            assert refusal(resolver, copy, python).reason is Reason.LOCK_STALE
        else:
            assert get(resolver, original, python).lock == lock


@pytest.mark.parametrize("version", ["1.0\n", "v1.0", "1.0-alpha", "1.0.0-1"])
def test_version_in_a_shared_lock_is_uvs_spelling(
    resolver: Resolver, make_spec: Any, python: Interpreter, uv: Uv, tmp_path: Path, version: str
) -> None:
    """A lock that a project gets from another one has its version as uv writes it, and uv accepts it."""
    get(resolver, make_spec("one", ["gamma"], local=True), python)
    spec = make_spec("two", ["gamma"], version=version, local=True)
    lock = resolver.known(spec, resolver.key(spec, python, None))
    assert lock is not None
    assert f'name = "two"\nversion = "{Version(version)}"\n'.encode() in lock.lock
    if version.strip() == version:
        assert checked(uv, tmp_path / "project", spec, lock.lock).code == 0


def test_locks_with_conflicts_are_not_shared(
    resolver: Resolver, make_spec: Any, python: Interpreter, uv: Uv, tmp_path: Path
) -> None:
    """Conflicts name the project in the head of its lock: each project gets one of its own that uv accepts."""
    tail = '[project.optional-dependencies]\na = ["gamma==1.0"]\nb = ["gamma==2.0"]\n[tool.envfabric]\nextras = ["a"]\n'
    tail += '[tool.uv]\nconflicts = [[{ extra = "a" }, { extra = "b" }]]\n'
    for name in ("one", "two"):
        spec = make_spec(name, ["alpha"], tail=tail, local=True)
        found = get(resolver, spec, python)
        assert versions(found) == {"alpha": "1.0", "gamma": "1.0"}
        done = checked(uv, tmp_path / name, spec, found.lock)
        assert done.code == 0, done.stderr


def checked(uv: Uv, folder: Path, spec: Spec, lock: bytes) -> Finished:
    """`uv lock --check` of a lock beside a spec's pyproject.toml."""
    folder.mkdir()
    (folder / "pyproject.toml").write_bytes(spec.pyproject)
    (folder / "uv.lock").write_bytes(lock)
    return uv.run(["lock", "--check"], cwd=folder)
