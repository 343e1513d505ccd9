"""Which interpreter a request means: chosen once, recorded, and never chosen again by PATH."""

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from envfabric.build.interpreters import Interpreter, Interpreters, inspect
from envfabric.build.uv import Uv
from envfabric.core.errors import Reason, SpecError, StoreError
from envfabric.specs.spec import PythonRequest
from envfabric.store.files import Files
from envfabric.store.root import Root
from support.fabric import BASE_PYTHON

Open = Callable[..., Interpreters]


def fake(path: Path, version: str, says: str | None = None, **changed: str | None) -> str:
    """A program that answers what an interpreter of that version would; a fact that is None it does not know."""
    facts = {
        "path": says or str(path),
        "version": version,
        "implementation": "cpython",
        "abi": "cpython-311-x",
        "libc": "glibc 2.36",
        "platform": "linux",
    }
    answer = {name: value for name, value in (facts | changed).items() if value is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    path.chmod(0o755)
    return str(path)


def asked(text: str | None = None, requires: str = "") -> PythonRequest:
    return PythonRequest(text, requires, "spec")


@pytest.fixture
def fakes(tmp_path: Path) -> dict[str, str]:
    """Paths by version of interpreters in a folder that all may reach."""
    versions = ("3.10.2", "3.11.2", "3.11.7", "3.12.1", "3.13.0")
    return {version: fake(tmp_path / "opt" / version / "bin" / "python3", version) for version in versions}


@pytest.fixture
def open_with(root: Root, files: Files, uv: Uv, fakes: dict[str, str]) -> Open:
    """Interpreters of one ROOT, as a daemon that starts opens them."""

    def make(*allowed: str | Path, default: str = "3.11") -> Interpreters:
        return Interpreters(root, files, uv, default, tuple(map(str, allowed or fakes.values())))

    return make


def test_facts_are_the_interpreters_own(python: Interpreter, tmp_path: Path) -> None:
    """An interpreter is known by its real path, exact version, ABI, platform and libc, however it is reached."""
    assert python.path == BASE_PYTHON
    assert python.version == ".".join(map(str, sys.version_info[:3]))
    assert python.implementation == "cpython"
    assert "cpython-3" in python.abi
    link = tmp_path / "python"
    link.symlink_to(BASE_PYTHON)
    assert inspect(str(link)) == python


@pytest.mark.parametrize("content", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho words\n", "no program"])
def test_what_is_no_interpreter_is_passed_over(
    open_with: Open, fakes: dict[str, str], tmp_path: Path, content: str
) -> None:
    """A program that fails or answers nonsense is no interpreter, and stops no choice."""
    odd = tmp_path / "odd"
    odd.write_text(content)
    odd.chmod(0o755)
    assert inspect(str(odd)) is None
    assert inspect(str(tmp_path / "missing")) is None
    assert open_with(odd, fakes["3.11.2"], tmp_path / "missing").choose(asked("3.11")).version == "3.11.2"


@pytest.mark.parametrize(
    ("request_", "version"),
    [
        (asked("3.11"), "3.11.7"), (asked("3.11.2"), "3.11.2"), (asked("3.12"), "3.12.1"),
        (asked(">=3.12,<3.13"), "3.12.1"),
        (asked("!=3.13.0"), "3.12.1"), (asked("3.11", "<3.11.5"), "3.11.2"), (asked(), "3.11.7"),
        (asked(None, ">=3.11"), "3.11.7"), (asked(None, "<3.11.5"), "3.11.2"), (asked(None, ">=3.12"), "3.13.0"),
        (asked(None, "==3.10.*"), "3.10.2"), (asked("3.1", ""), None), (asked("3.11.1"), None), (asked("3.14"), None),
        (asked("3.12", "<3.12"), None), (asked(">3.13.0"), None), (asked(None, ">=3.14"), None),
    ],
)  # fmt: skip
def test_newest_that_fits_is_chosen(open_with: Open, request_: PythonRequest, version: str | None) -> None:
    """The newest that meets request and requires-python is taken, the default version where that is free."""
    if version is not None:
        assert open_with().choose(request_).version == version
        return
    with pytest.raises(SpecError) as caught:
        open_with().choose(request_)
    assert caught.value.reason is Reason.UNRESOLVABLE


def test_unresolvable_says_what_there_is(open_with: Open) -> None:
    """The message names the wish, where it was said, the bound, all that is here, and what to do."""
    with pytest.raises(SpecError) as caught:
        open_with().choose(PythonRequest("3.14", ">=3.11", ".python-version"))
    for words in (
        "python 3.14",
        "'>=3.11'",
        "from .python-version",
        "3.10.2, 3.11.2, 3.11.7, 3.12.1, 3.13.0",
        "Change the spec",
    ):
        assert words in caught.value.message
    with pytest.raises(SpecError, match=r"requires-python '>=3\.15'"):
        open_with().choose(PythonRequest(None, ">=3.15", "requires-python"))


def test_no_choice_is_recorded_for_what_does_not_fit(
    open_with: Open, root: Root, fakes: dict[str, str]
) -> None:
    """A request that nothing met is open: once such an interpreter is there, a new start finds it."""
    with pytest.raises(SpecError):
        open_with(fakes["3.11.2"]).choose(asked("3.12"))
    assert not list(root.state.rglob("*.json"))
    assert open_with().choose(asked("3.12")).version == "3.12.1"


def test_choice_is_recorded_and_holds(open_with: Open, root: Root, fakes: dict[str, str]) -> None:
    """The first choice is written below state/pythons and holds in a later start, although a newer one came."""
    first = open_with(fakes["3.11.2"]).choose(asked("3.11"))
    (record,) = (root.state / "pythons").glob("*.json")
    written: dict[str, Any] = json.loads(record.read_bytes())
    assert (written["version"], written["path"]) == ("3.11.2", fakes["3.11.2"])
    assert open_with(fakes["3.11.7"], fakes["3.11.2"]).choose(asked("3.11")) == first
    assert open_with(fakes["3.11.7"], fakes["3.11.2"]).choose(asked("3.11", ">=3.11")).version == "3.11.7", (
        "another request"
    )


def test_choice_holds_while_running(open_with: Open, fakes: dict[str, str]) -> None:
    """Within one start a request is answered once, without looking at the interpreter again."""
    interpreters = open_with(fakes["3.11.2"])
    first = interpreters.choose(asked("3.11"))
    Path(fakes["3.11.2"]).unlink()
    assert interpreters.choose(asked("3.11")) is first


@pytest.mark.parametrize("change", ["removed", "upgraded", "moved", "record-damaged", "record-other"])
def test_lost_interpreter_is_chosen_anew(
    open_with: Open, root: Root, fakes: dict[str, str], change: str
) -> None:
    """A recorded interpreter that is gone or another one now, or an unreadable record, is chosen and recorded anew."""
    open_with(fakes["3.11.2"]).choose(asked("3.11"))
    (record,) = (root.state / "pythons").glob("*.json")
    path = Path(fakes["3.11.2"])
    if change == "removed":
        path.unlink()
    elif change == "upgraded":
        fake(path, "3.11.3")
    elif change == "moved":
        fake(path, "3.11.2", says=fakes["3.12.1"])
    else:
        record.write_bytes(b"{" if change == "record-damaged" else b'{"path": 1}')
    again = open_with(fakes["3.11.7"]).choose(asked("3.11"))
    assert again.version == "3.11.7"
    assert json.loads(record.read_bytes())["path"] == fakes["3.11.7"]


@pytest.mark.parametrize("unreadable", ["record", "interpreter", "does-not-start", "nas-away"])
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "below-root"])
def test_what_cannot_be_read_now_is_not_chosen_again(
    open_with: Open, root: Root, fakes: dict[str, str], unreadable: str, listed: bool
) -> None:
    """Only an interpreter or a record that is gone, with ROOT there, is replaced; all else is an error that passes."""
    # A link that leads to itself is there, and can't be read by anybody: ELOOP for what a NAS says with EIO.
    path = Path(fakes["3.11.2"] if listed else fake(root.pythons / "one/bin/python3", "3.11.2"))
    allowed = [path] if listed else [fakes["3.12.1"]]
    first = open_with(*allowed).choose(asked("3.11"))
    (record,) = (root.state / "pythons").glob("*.json")
    written = record.read_bytes()
    touched = {"record": record, "nas-away": root.state}.get(unreadable, path)
    kept = touched.with_name("kept")
    touched.rename(kept)
    if unreadable == "does-not-start":
        touched.write_text("#!/bin/sh\necho 'no such library' >&2\nexit 127\n")
        touched.chmod(0o755)
    elif unreadable == "nas-away":
        root.marker.rename(root.path / "marker")
    else:
        touched.symlink_to(touched)
    later = open_with(*allowed, fakes["3.11.7"])
    with pytest.raises((OSError, StoreError)) as caught:
        later.choose(asked("3.11"))
    if unreadable == "does-not-start":
        for words in (str(path), "exit code 127: no such library", str(record), "remove that file"):
            assert words in str(caught.value)
    elif unreadable == "nas-away":
        (root.path / "marker").rename(root.marker)
    else:
        assert str(touched) in str(caught.value)
        with pytest.raises(OSError, match=re.escape(str(touched))):
            later.gone(touched)
    if unreadable != "nas-away":
        touched.unlink()
    kept.rename(touched)
    assert record.read_bytes() == written
    assert later.choose(asked("3.11")) == first


def test_path_decides_only_once(
    root: Root, files: Files, uv: Uv, fakes: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a list of interpreters uv finds them on PATH; another PATH later changes nothing."""
    first, other = tmp_path / "first", tmp_path / "other"
    for folder in (first, other):
        folder.mkdir()
        (folder / "python3").symlink_to(BASE_PYTHON)
    monkeypatch.setenv("PATH", f"{first}{os.pathsep}{os.defpath}")
    # uv's list is what decides: an interpreter that it names by another road is the same one.
    chosen = Interpreters(root, files, uv, "3.11").choose(asked(None, ">=3.11"))
    assert chosen.path == os.path.realpath(chosen.path)
    monkeypatch.setenv("PATH", str(other))
    assert Interpreters(root, files, uv, "3.11").choose(asked(None, ">=3.11")) == chosen
    monkeypatch.setenv("PATH", "/nonexistent")
    assert Interpreters(root, files, uv, "3.11").choose(asked(None, ">=3.11")) == chosen


def test_only_what_is_listed_is_used(open_with: Open, fakes: dict[str, str]) -> None:
    """With a list of interpreters, or of folders of them, no other is chosen, whatever PATH has."""
    folder = Path(fakes["3.12.1"]).parent
    assert open_with(folder).choose(asked(None, ">=3.8")).version == "3.12.1"
    assert open_with(folder.parent).choose(asked("3.12")).version == "3.12.1"
    assert open_with(folder.parent.parent).choose(asked("3.10")).version == "3.10.2"
    with pytest.raises(SpecError, match=r"there are: 3\.12\.1\."):
        open_with(folder).choose(asked("3.13"))


@pytest.mark.parametrize(
    "facts",
    [{"implementation": "pypy", "abi": "pypy311-pp73"}, {"abi": "cpython-311t-x86_64-linux-gnu"},
     {"implementation": "graalpy", "abi": "graalpy242-311-native-x86_64-linux"}],
    ids=["pypy", "free-threaded", "graalpy"],
)  # fmt: skip
def test_only_plain_cpython_is_chosen(
    open_with: Open, fakes: dict[str, str], tmp_path: Path, facts: dict[str, str]
) -> None:
    """Another implementation or a free-threaded build is not taken, be it newer or the only one."""
    odd = fake(tmp_path / "odd" / "python3", "3.11.9", **facts)
    assert inspect(odd) is not None
    assert open_with(odd, fakes["3.11.2"]).choose(asked("3.11")).version == "3.11.2"
    with pytest.raises(SpecError, match="there are: none"):
        open_with(odd).choose(asked("3.11.9"))


def test_interpreter_without_a_fact_is_passed_over(
    open_with: Open, fakes: dict[str, str], tmp_path: Path
) -> None:
    """A program that does not say all that a digest needs is no interpreter, and stops no choice."""
    odd = fake(tmp_path / "odd" / "python3", "3.11.9", libc=None)
    assert inspect(odd) is None
    assert open_with(odd, fakes["3.11.2"]).choose(asked("3.11")).version == "3.11.2"


def test_record_does_not_outlive_the_list(open_with: Open, root: Root, fakes: dict[str, str]) -> None:
    """An interpreter that the settings list no more is not used, although it was chosen once and works still."""
    assert open_with(fakes["3.11.7"]).choose(asked("3.11")).version == "3.11.7"
    assert inspect(fakes["3.11.7"]) is not None
    assert open_with(fakes["3.11.2"]).choose(asked("3.11")).version == "3.11.2"
    (record,) = (root.state / "pythons").glob("*.json")
    assert json.loads(record.read_bytes())["path"] == fakes["3.11.2"]


def test_interpreters_below_root_are_always_allowed(
    open_with: Open, root: Root, fakes: dict[str, str]
) -> None:
    """What is installed below ROOT/pythons may be used besides the list: workers reach it."""
    own = fake(root.pythons / "cpython-3.12.9" / "bin" / "python3", "3.12.9")
    assert open_with(fakes["3.12.1"]).choose(asked("3.12")).path == own


def test_reachable_interpreter_is_preferred(open_with: Open) -> None:
    """An interpreter in a folder that others can't search is taken only where there is no other."""
    # The tests' own temporary folders are closed to others.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hidden = fake(folder / "hidden" / "python3", "3.11.9")
        reachable = fake(folder / "open" / "python3", "3.11.2")
        for each, mode in ((folder, 0o755), (folder / "open", 0o755), (folder / "hidden", 0o700)):
            each.chmod(mode)
        chosen = open_with(hidden, reachable).choose(asked("3.11"))
        assert (chosen.version, chosen.shared) == ("3.11.2", True)
        alone = open_with(hidden).choose(asked("3.11", ">=3.11.9"))
        assert (alone.version, alone.shared) == ("3.11.9", False)
