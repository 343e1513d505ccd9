"""RECORDs against what was installed: damage is named by distribution and path, what can't be judged is not."""

import base64
import hashlib
import os
from pathlib import Path

import pytest

from envfabric.build import records as records_module
from envfabric.build.records import Mismatch, Records, distribution_of, owners

SITE = ".venv/lib/python3.11/site-packages"


def coded(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def install(closure: Path, record: str, name: str = "one-1.0") -> None:
    info = closure / SITE / f"{name}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "RECORD").write_bytes(os.fsencode(record))


def digests(closure: Path, **files: bytes) -> dict[str, str]:
    """The inventory's digests: RECORDs, and these files by path ('/' is written '__')."""
    found = {
        path.relative_to(closure).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in closure.rglob("RECORD")
    }
    return found | {name.replace("__", "/"): hashlib.sha256(data).hexdigest() for name, data in files.items()}


def mismatches(closure: Path, found: dict[str, str]) -> list[Mismatch]:
    """What is found at first, and the same again by who remembers the RECORDs."""
    records = Records()
    first = records.mismatches(closure, found)
    assert records.mismatches(closure, found) == first
    return first


def at(relative: str) -> dict[str, bytes]:
    return {f"{SITE}/{relative}".replace("/", "__"): b"data"}


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (f"one/a.py,{coded(b'data')},4", "lib/python3.11/site-packages/one/a.py"),
        (f'"one/a.py",{coded(b"data")},4', "lib/python3.11/site-packages/one/a.py"),
        (f"./one//a.py,{coded(b'data')},4", "lib/python3.11/site-packages/one/a.py"),
        (f"../../../bin/a,{coded(b'data')},4", "bin/a"),
        (f"../../../lib64/a,{coded(b'data')},4", "lib/a"),
        (f'"one/a,b ""c"".py",{coded(b"data")},4', 'lib/python3.11/site-packages/one/a,b "c".py'),
        (f"one/\udcff.py,{coded(b'data')},4", "lib/python3.11/site-packages/one/\udcff.py"),
    ],
)
def test_each_form_of_a_line_is_understood(tmp_path: Path, line: str, path: str) -> None:
    """A file is found by its line however that is written; other content, or none, is a mismatch."""
    install(tmp_path, f"{line}\none-1.0.dist-info/RECORD,,\n")
    key = f".venv/{path}".replace("/", "__")
    assert mismatches(tmp_path, digests(tmp_path, **{key: b"data"})) == []
    other = hashlib.sha256(b"other").hexdigest()
    assert mismatches(tmp_path, digests(tmp_path, **{key: b"other"})) == [Mismatch("one", path, other)]
    assert mismatches(tmp_path, digests(tmp_path)) == [Mismatch("one", path, "")]


@pytest.mark.parametrize(
    "line",
    [
        "one/a.py,,",
        "one/a.py",
        "",
        "one/a.py,md5=xyz,4",
        f"/etc/passwd,{coded(b'x')},4",
        f"../../../../../../etc/passwd,{coded(b'x')},4",
        f"../../../../store,{coded(b'x')},4",
        "x" * 200_000 + ",sha256=x,4",
    ],
)
def test_what_can_not_be_judged_is_passed_over(tmp_path: Path, line: str) -> None:
    """Lines without a SHA-256, out of the environment, or that are no CSV accuse nobody; those after them count."""
    install(tmp_path, f"{line}\none/b.py,{coded(b'data')},4\n")
    assert mismatches(tmp_path, digests(tmp_path, **at("one/b.py"))) == []
    assert len(mismatches(tmp_path, digests(tmp_path))) == 1


@pytest.mark.parametrize("digest", ["sha256=", "sha256=é", "sha256=AAAA", "sha256=A"])
def test_digest_that_is_none_fits_nothing(tmp_path: Path, digest: str) -> None:
    """A hash that can't be read is a RECORD that lies, not an error of ours."""
    install(tmp_path, f"one/a.py,{digest},4\n")
    assert [one.path for one in mismatches(tmp_path, digests(tmp_path, **at("one/a.py")))] == [
        "lib/python3.11/site-packages/one/a.py"
    ]


def test_carried_along_record_is_none(tmp_path: Path) -> None:
    """A .dist-info folder inside of a package, as bleach has one of html5lib, is not that of an installation."""
    carried = tmp_path / SITE / "bleach/_vendor/html5lib-1.1.dist-info/RECORD"
    carried.parent.mkdir(parents=True)
    carried.write_text(f"html5lib/a.py,{coded(b'upstream')},1\n")
    assert mismatches(tmp_path, digests(tmp_path, **at("bleach/_vendor/html5lib/a.py"))) == []


def test_owner_of_a_path_is_named(tmp_path: Path) -> None:
    """The distribution whose RECORD lists a path is found, also for what lies outside of site-packages."""
    install(tmp_path, "../../../pyvenv.cfg,,\n", "Bad_One-1.0")
    install(tmp_path, "two/x.py,,\n", "two-2.0")
    assert owners(tmp_path, ["pyvenv.cfg", "bin/python"]) == {"pyvenv.cfg": "bad-one"}
    assert distribution_of("a/Zope.Interface-5.0.dist-info") == "zope-interface"


def test_a_record_that_changed_is_read_again(tmp_path: Path) -> None:
    """What is remembered belongs to one content: another wheel of the same version has a RECORD of its own."""
    records = Records()
    for data in (b"data", b"other"):
        install(tmp_path, f"one/a.py,{coded(data)},4\n")
        found = digests(tmp_path, **at("one/a.py"))
        assert len(records.mismatches(tmp_path, found)) == (data != b"data")


def test_memory_of_records_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many wheels come by, only so many lines stay; what was forgotten is read again."""
    monkeypatch.setattr(records_module, "_REMEMBERED", 10)
    records = Records()
    for number in range(20):
        install(tmp_path, f"one/a.py,{coded(b'data')},{number}\n" * 4)
        assert records.mismatches(tmp_path, digests(tmp_path, **at("one/a.py"))) == []
        assert sum(map(len, records._known.values())) <= 10
