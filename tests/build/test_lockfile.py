"""One lock for many project names: what is written for a project is what uv itself would lock for it."""

import os
import subprocess
from pathlib import Path

import pytest

from envfabric.build.lockfile import read_lock, with_project
from envfabric.build.uv import Uv
from envfabric.core.errors import Reason, SpecError
from support.simple_index import SimpleIndex

PLAIN = 'dependencies = ["beta", "gamma<2"]\n'
EXTRAS = (
    PLAIN + '[project.optional-dependencies]\nmore = ["gamma"]\nnone = []\n'
    '[dependency-groups]\ndev = ["alpha"]\nall = [{ include-group = "dev" }]\n'
)
PACKAGED = PLAIN + '[build-system]\nrequires = ["nothing-that-exists"]\nbuild-backend = "nothing"\n'
SETTINGS = PLAIN + '[tool.uv]\nconstraint-dependencies = ["alpha<9"]\nprerelease = "allow"\n'
NO_REQUIREMENTS = ""


class Locker:
    """`uv lock` as a user runs it, on the test's index."""

    def __init__(self, folder: Path, binary: str, url: str) -> None:
        self.folder = folder
        self.binary = binary
        self.url = url

    def pyproject(self, name: str, version: str, body: str) -> str:
        head = f'[project]\nname = "{name}"\nversion = "{version}"\nrequires-python = ">=3.11"\n{body}'
        return f'{head}\n[[tool.uv.index]]\nname = "local"\nurl = "{self.url}"\ndefault = true\n'

    def lock(self, name: str, version: str, body: str) -> str:
        """The text of the lock that uv writes for a project."""
        folder = self._project(f"own-{name}", name, version, body)
        assert (done := self._uv(folder, "lock")).returncode == 0, done.stderr
        return (folder / "uv.lock").read_text()

    def check(self, text: str, name: str, version: str, body: str) -> "subprocess.CompletedProcess[str]":
        """`uv lock --check` of a lock beside a project."""
        folder = self._project(f"checked-{name}", name, version, body)
        (folder / "uv.lock").write_text(text)
        return self._uv(folder, "lock", "--check")

    def _project(self, folder: str, name: str, version: str, body: str) -> Path:
        path = self.folder / folder
        path.mkdir()
        (path / "pyproject.toml").write_text(self.pyproject(name, version, body))
        return path

    def _uv(self, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "UV_PYTHON_DOWNLOADS": "never"}
        environment["UV_CACHE_DIR"] = str(self.folder / "cache")
        command = [self.binary, *arguments]
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )


@pytest.fixture
def locker(tmp_path: Path, uv: Uv, index: SimpleIndex) -> Locker:
    return Locker(tmp_path, uv.binary, index.url)


@pytest.mark.parametrize(
    "body",
    [PLAIN, EXTRAS, PACKAGED, SETTINGS, NO_REQUIREMENTS],
    ids=["plain", "extras", "packaged", "settings", "none"],
)
def test_transplanted_lock_is_uvs_own(locker: Locker, body: str) -> None:
    """A lock made for one project is, for another, byte for byte uv's own, wherever its name sorts."""
    text = locker.lock("middle", "0.1.0", body)
    # Before, between and after alpha, beta and gamma; longer and shorter than a neighbour.
    for name, version in (("a", "1.0"), ("alphabet", "2.0.1"), ("bet", "0"), ("zzz", "0.1.0")):
        made = with_project(text, name, version)
        assert made == locker.lock(name, version, body), name
        checked = locker.check(made, name, version, body)
        assert checked.returncode == 0, checked.stderr
        assert with_project(made, "middle", "0.1.0") == text


def test_check_is_no_formality(locker: Locker) -> None:
    """uv does refuse a lock that still bears the other project's name: the transplant is needed."""
    text = locker.lock("one", "1", PLAIN)
    assert locker.check(text, "two", "1", PLAIN).returncode != 0


def test_lock_is_read(locker: Locker) -> None:
    """A lock's packages are all but the project's own, found by name and version."""
    text = locker.lock("one", "1", PLAIN)
    lock = read_lock(text.encode(), "wf/one/uv.lock")
    assert lock.text == text
    assert lock.names() == {"alpha", "beta", "gamma"}
    (gamma,) = lock.versions("gamma", "1.0")
    assert gamma["wheels"][0]["hash"].startswith("sha256:")
    assert lock.versions("gamma", "2.0") == lock.versions("one", "1") == []


OWN = 'version = 1\n\n[[package]]\nname = "one"\nversion = "1"\nsource = { virtual = "." }\n'
WHERE = "wf/one/uv.lock"


def package(source: str, rest: str = "") -> bytes:
    return f'{OWN}\n[[package]]\nname = "odd"\nversion = "1"\nsource = {{ {source} }}\n{rest}'.encode()


@pytest.mark.parametrize(
    "source",
    ['path = "../odd-1-py3-none-any.whl"', 'git = "https://git.example/odd"', 'directory = "../odd"',
     'editable = "../odd"', 'virtual = "../odd"', 'url = "https://x.example/odd-1-py3-none-any.whl"',
     'registry = "../wheels"', 'registry = "/srv/wheels"', 'registry = "file:///srv/wheels"',
     'registry = "ssh://x.example/simple"', "registry = 3"],
)  # fmt: skip
def test_sources_outside_an_index_are_refused(source: str) -> None:
    """A package in the lock that comes from a path, git, a URL or a local index is refused by name."""
    with pytest.raises(SpecError) as caught:
        read_lock(package(source), WHERE)
    assert caught.value.reason is Reason.POLICY
    assert caught.value.message.startswith(f"{WHERE}: odd comes from a ")
    assert "lock again" in caught.value.message


@pytest.mark.parametrize(
    "file",
    ['{ url = "file:///srv/odd-1-py3-none-any.whl" }', '{ path = "odd-1-py3-none-any.whl" }',
     '{ url = "https://x.example/odd.whl", path = "../odd.whl" }', '{ url = "odd.whl" }', "{ size = 1 }"],
)  # fmt: skip
@pytest.mark.parametrize(
    "place", ["wheels = [{}]", "sdist = {}", 'wheels = [{{ url = "https://x.example/a" }}, {}]']
)
def test_files_outside_an_index_are_refused(place: str, file: str) -> None:
    """A wheel or source distribution at a path or file: URL is refused, the last of a list too."""
    with pytest.raises(SpecError) as caught:
        read_lock(package('registry = "https://x.example/simple"', place.format(file) + "\n"), WHERE)
    assert caught.value.reason is Reason.POLICY
    assert caught.value.message.startswith(f"{WHERE}: a file of odd is at ")


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xff", b"not toml", b"version = 1\n", b"package = 3\n", b"[[package]]\nname = 'a'\n", b"package = [3]\n",
     b"x = " + b"[" * 20000],
)  # fmt: skip
def test_garbage_is_stale_not_fatal(raw: bytes) -> None:
    """What is no lock is refused with the file's name and what to run."""
    with pytest.raises(SpecError) as caught:
        read_lock(raw, WHERE)
    assert caught.value.reason is Reason.LOCK_STALE
    assert caught.value.message.startswith(WHERE)
    assert "Run `uv lock` and commit it" in caught.value.message


@pytest.mark.parametrize("count", [0, 2])
def test_a_lock_has_one_project(count: int) -> None:
    """A lock of no project, or of a workspace's several, is refused with their number."""
    own = '[[package]]\nname = "one"\nversion = "1"\nsource = { editable = "." }\n'
    text = "version = 1\npackage = []\n" if not count else "version = 1\n" + own * count
    with pytest.raises(SpecError, match=f"has {count} projects of its own, not 1") as caught:
        read_lock(text.encode(), WHERE)
    assert caught.value.reason is Reason.LOCK_STALE


@pytest.mark.parametrize(
    "raw",
    [package('registry = "https://x.example"', 'wheels = "abc"\n'),
     package('registry = "https://x.example"', "wheels = [1]\n"),
     package('registry = "https://x.example"', 'wheels = ["path"]\n'),
     package('registry = "https://x.example"', "wheels = 1\n"),
     package('registry = "https://x.example"', 'sdist = "x"\n'),
     package('registry = "https://x.example"', "sdist = 1\n"),
     package('registry = "https://x.example"', 'wheels = [{ url = "http://[x" }]\n'),
     package('registry = "http://[x"'), f'{OWN}\n[[package]]\nname = "odd"\nsource = "x"\n'.encode(),
     f"{OWN}\n[[package]]\nname = 'odd'\nsource = 3\n".encode(), f"{OWN}\n[[package]]\nname = 'odd'\n".encode(),
     f"{OWN}\n[[package]]\nname = 'odd'\nsource = {{}}\n".encode(), f"{OWN}x = {'1' * 5000}\n".encode()],
    ids=["wheels-text", "wheel-number", "wheel-text", "wheels-number", "sdist-text", "sdist-number", "wheel-url",
         "registry-url", "source-text", "source-number", "no-source", "empty-source", "digits"],
)  # fmt: skip
def test_values_of_other_types_are_refused(raw: bytes) -> None:
    """A lock whose values are of other types than uv's is refused with its name, and never an unexpected error."""
    with pytest.raises(SpecError) as caught:
        read_lock(raw, WHERE)
    assert caught.value.reason in {Reason.LOCK_STALE, Reason.POLICY}
    assert caught.value.message.startswith(WHERE)
    assert "lock" in caught.value.message.removeprefix(WHERE)
