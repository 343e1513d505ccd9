"""A spec repository full of harm, the real daemon and the real uv: each is refused with its reason, none does any."""

import contextlib
import re
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hostile import collection
from hostile.witness import Witness
from support.fabric import Fabric
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo

Outside = Callable[[Fabric], dict[str, str]]
PLACEHOLDER = "http://127.0.0.1:8/simple"
IDS = sorted(collection.cases(PLACEHOLDER))


class Ran:
    """What came of one run on the whole collection."""

    def __init__(
        self, fabric: Fabric, cases: dict[str, collection.Case], outside: Outside, witness: Witness
    ) -> None:
        self.fabric = fabric
        self.witness = witness
        self.cases = cases
        fabric.init()
        fabric.configure()
        (fabric.folder / "tmp").mkdir()
        fabric.variables["TMPDIR"] = str(fabric.folder / "tmp")
        fabric.variables |= witness.variables
        self.before = outside(fabric)
        done = fabric.command("run", "--once", "--config", fabric.configure(), timeout=400)
        assert done.returncode == 1, done.stdout + done.stderr
        self.output = done.stdout + done.stderr
        self.after = outside(fabric)
        self.index: dict[str, Any] = fabric.index()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, outside: Outside) -> Iterator[Ran]:
    """The daemon's work on the collection, under the default policy with one allowed index."""
    folder = tmp_path_factory.mktemp("hostile") / "within"
    folder.mkdir()
    home = folder / "home"
    with SimpleIndex(folder / "packages") as index:
        index.add_wheel("alpha", "1.0")
        index.add_wheel("gamma", "1.0")
        mark = f"open({str(home / 'ran-pth')!r}, 'w')"
        index.add_wheel(
            "pth-wheel", "1.0", modules={"pth_wheel.py": "", "pth_wheel.pth": f"import os; {mark}\n"}
        )
        index.add_sdist("evil-sdist", "1.0", setup_py=f"open({str(home / 'ran-setup')!r}, 'w')\n")
        fabric = Fabric(folder, index, SpecRepo(folder / "specs"))
        cases = collection.cases(index.url)
        collection.commit(fabric.repo, cases)
        with Witness(index) as witness:
            yield Ran(fabric, cases, outside, witness)


@pytest.mark.parametrize("spec_id", IDS)
def test_each_is_refused_with_its_reason(ran: Ran, spec_id: str) -> None:
    """The index says of each spec why it is refused, and where; a good one beside them is ready."""
    case, entry = ran.cases[spec_id], ran.index["environments"][spec_id]
    if case.reason is None:
        assert entry["state"] == "ready", entry["error"]
        return
    assert entry["state"] == "failed"
    assert spec_id not in ran.index["python"]
    error = entry["error"]
    assert error["reason"] == case.reason, error["message"]
    assert error["retry_at"] is None
    for words in case.words:
        assert words in error["message"], error["message"]
    assert error["message"].isprintable()
    assert len(error["message"]) <= 1200
    if case.line is not None:
        text = case.files["pyproject.toml"]
        assert isinstance(text, str)
        match = re.match(rf"{re.escape(spec_id)}/pyproject\.toml:(\d+): ", error["message"])
        assert match, error["message"]
        assert case.line in text.split("\n")[int(match[1]) - 1]


def test_nothing_else_is_in_the_index(ran: Ran) -> None:
    """Each id of the commit once, the rest as problems, and no dot folder anywhere."""
    assert sorted(ran.index["environments"]) == IDS
    assert ran.index["complete"] is True
    told = {one["path"]: one for one in ran.index["problems"]}
    linked = {"linked/submodule", "linked/symlink", "workflow-submodule", "workflow-symlink"}
    assert len(told) == len(collection.PROBLEMS) + len(linked)
    for one in told.values():
        assert one["reason"] == "invalid-spec"
        assert (one["path"] + one["message"]).isprintable()
        assert len(one["path"]) <= 320
    assert linked <= told.keys()
    assert sum("can't be a spec id" in one["message"] for one in told.values()) == len(collection.PROBLEMS)


def test_nothing_is_written_outside(ran: Ran) -> None:
    """HOME, TMPDIR, the working folder, the repository and the folder above are what they were."""
    assert ran.after == ran.before


def test_no_code_of_a_package_ran(ran: Ran) -> None:
    """A setup.py, a .pth file and a spec's own build backend were there, and none of them left its mark."""
    assert list((ran.fabric.folder / "home").glob("ran-*")) == []


def test_only_valid_ids_are_on_the_nas(ran: Ran) -> None:
    """Nothing under ROOT has a name that only an id could have brought there."""
    root = ran.fabric.root
    kept = {str(path.relative_to(root / "envs")) for path in (root / "envs").glob("*/*")}
    assert kept == {spec_id for spec_id in IDS if ran.cases[spec_id].reason is None}
    logs = {str(path) for path in (root / "failures").rglob("*") if path.is_file()}
    told = [entry["error"] for entry in ran.index["environments"].values() if entry["error"] is not None]
    assert logs == {error["log"] for error in told} - {None}


def test_foreign_hosts_are_never_asked(ran: Ran) -> None:
    """All that was asked for over the network was asked of the allowed index, and nothing of it in vain."""
    assert ran.witness.answered > 0
    assert ran.witness.foreign == []
    for name in ("evil", "evil.whl"):
        assert not [
            path for path in ran.fabric.packages.requests if f"/{name}" in path and "evil-sdist" not in path
        ]


def test_foreign_host_that_is_allowed_would_be_seen(tmp_path: Path) -> None:
    """The witness of the test before misses nothing: a foreign index that the policy allows is seen there."""
    with SimpleIndex(tmp_path / "packages") as index, Witness(index) as witness:
        fabric = Fabric(tmp_path, index, SpecRepo(tmp_path / "specs"))
        fabric.variables |= witness.variables
        fabric.settings["policy"] = {"indexes": [index.url, f"{collection.FOREIGN}/simple"]}
        table = f'[[tool.uv.index]]\nname = "foreign"\nurl = "{collection.FOREIGN}/simple"'
        fabric.repo.spec("index/foreign", ["alpha"], table=table)
        fabric.repo.commit()
        fabric.run_once(expect=1)
        assert set(witness.foreign) == {f"{collection.FOREIGN.removeprefix('https://')}:443"}


def test_passwords_of_specs_are_nowhere(ran: Ran) -> None:
    """A password that somebody committed is in the git repository alone."""
    secret = b"Pw-of-a-spec"
    assert secret.decode() not in ran.output
    for path in ran.fabric.root.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                assert secret not in path.read_bytes(), path
    assert secret.decode() not in urllib.parse.unquote(str(ran.index))
