"""A committed uv.lock is taken exactly, and only where its files are where its index has them."""

import json
import os
import time
from pathlib import Path

import pytest

from envfabric.core.errors import Reason, SpecError
from support.place import Place, versions
from support.simple_index import SimpleIndex


def test_lock_of_a_listed_index_is_taken_and_learned_once(place: Place) -> None:
    """Another file host than the index's own is learned from its answer; the second lock costs no further uv run."""
    with SimpleIndex(place.index.folder) as files:
        place.index.files_at = files.url.removesuffix("/simple")
        lock = place.locked_by_hand(["beta", "gamma<2"])
        assert files.url.removesuffix("simple").encode() in lock
        found = place.get(place.spec(["beta", "gamma<2"], lock=lock))
        assert (found.lock, found.origin) == (lock, "committed")
        assert versions(found) == {"alpha": "1.0", "beta": "1.0", "gamma": "1.0"}
        assert [run[0] for run in place.runs] == ["lock", "pip", "sync"]
        place.runs.clear()
        other = place.locked_by_hand(["gamma"])
        place.get(place.spec(["gamma"], lock=other))
        assert [run[0] for run in place.runs] == ["lock", "sync"]


@pytest.mark.parametrize("change", ["host", "port", "scheme", "user"])
def test_file_elsewhere_is_refused(place: Place, change: str) -> None:
    """Another host, port or scheme, or a user before the host, is refused with the package and the command."""
    lock = place.locked_by_hand(["gamma"])
    here = place.index.url.removesuffix("/simple")
    port = here.rpartition(":")[2]
    there = {
        "host": f"http://localhost:{port}",
        "port": "http://127.0.0.1:9",
        "scheme": f"https://127.0.0.1:{port}",
        "user": f"http://someone@127.0.0.1:{port}",
    }[change]
    tampered = lock.replace(f"{here}/files".encode(), f"{there}/files".encode())
    assert tampered != lock
    error = place.refusal(place.spec(["gamma"], lock=tampered))
    assert error.reason is Reason.POLICY
    assert error.message.startswith("wf/one/uv.lock: a file of gamma is at http")
    assert (
        f"whose host {place.index.url} does not serve it from. Run `uv lock` and commit it." in error.message
    )
    assert "someone" not in error.message
    assert place.get(place.spec(["gamma"], lock=lock)).lock == lock


def test_registry_that_is_not_listed_is_refused(place: Place) -> None:
    """A package from an index that the spec does not name does not get as far as that index."""
    lock = place.locked_by_hand(["gamma"])
    with SimpleIndex(place.folder / "elsewhere") as other:
        tampered = lock.replace(place.index.url.encode(), other.url.encode())
        error = place.refusal(place.spec(["gamma"], lock=tampered))
        assert error.reason is Reason.LOCK_STALE
        assert "wf/one/uv.lock does not fit wf/one/pyproject.toml any more. Run `uv lock`" in error.message
        assert other.requests == []


def test_registry_that_uv_knows_otherwise_is_refused(place: Place) -> None:
    """An index that the operator's uv knows besides its default one fits a lock for uv, and not for the policy."""
    folder = Path(os.environ["HOME"]) / ".config" / "uv"
    folder.mkdir(parents=True)
    with SimpleIndex(place.folder / "elsewhere") as other:
        other.add_wheel("gamma", "1.0")
        (folder / "uv.toml").write_text(
            f'[[index]]\nurl = "{place.index.url}"\ndefault = true\n[[index]]\nurl = "{other.url}"\n'
        )
        lock = place.locked_by_hand(["gamma"], local=False)
        assert other.url.encode() in lock
        error = place.refusal(place.spec(["gamma"], lock=lock, local=False))
        assert error.reason is Reason.POLICY
        assert f"gamma comes from {other.url}, which is neither the default index nor one" in error.message


def test_default_index_is_learned_from_uv(place: Place) -> None:
    """The default index of the operator's uv is allowed without being listed, and any other is not."""
    folder = Path(os.environ["HOME"]) / ".config" / "uv"
    folder.mkdir(parents=True)
    (folder / "uv.toml").write_text(f'[[index]]\nurl = "{place.index.url}"\ndefault = true\n')
    lock = place.locked_by_hand(["gamma"], local=False)
    assert place.get(place.spec(["gamma"], lock=lock, local=False)).lock == lock
    assert [run[0] for run in place.runs] == ["lock", "pip", "pip", "sync"]
    # Other content, for what was accepted once is known; its lock fits but for the index.
    lock = place.locked_by_hand(["gamma", "alpha"], local=False)
    with SimpleIndex(place.index.folder) as other:
        (folder / "uv.toml").write_text(f'[[index]]\nurl = "{other.url}"\ndefault = true\n')
        error = place.refusal(place.spec(["gamma", "alpha"], lock=lock, local=False))
        assert error.reason is Reason.LOCK_STALE
        assert "wf/one/uv.lock does not fit" in error.message


def test_index_that_is_away_is_asked_again_later(place: Place) -> None:
    """Where the index can't be asked for its hosts, the lock is neither believed nor refused: `fetch`."""
    lock = place.locked_by_hand(["gamma"])
    place.index.fail_with = 503
    error = place.refusal(place.spec(["gamma"], lock=lock))
    assert error.reason is Reason.FETCH
    assert error.reason.passing
    place.index.fail_with = None
    assert place.get(place.spec(["gamma"], lock=lock)).lock == lock


def test_hosts_grow_old(place: Place) -> None:
    """What an index served files from a day ago is asked for anew."""
    lock = place.locked_by_hand(["gamma"])
    place.get(place.spec(["gamma"], lock=lock))
    (record,) = (place.root.state / "origins").iterdir()
    kept = json.loads(record.read_bytes())
    kept["hosts"] = [[scheme, host, time.time() - 90000] for scheme, host, _ in kept["hosts"]]
    record.write_text(json.dumps(kept))
    place.runs.clear()
    place.resolver().resolve(place.spec(["gamma"], lock=lock), place.python, None)
    assert [run[0] for run in place.runs] == ["lock", "pip", "sync"]


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"hosts": [[1]]}'])
def test_damaged_record_of_hosts_is_asked_anew(place: Place, damage: bytes) -> None:
    """A record that can't be read is none; a tampered lock does not get through by it."""
    lock = place.locked_by_hand(["gamma"])
    place.get(place.spec(["gamma"], lock=lock))
    (record,) = (place.root.state / "origins").iterdir()
    record.write_bytes(damage)
    tampered = lock.replace(b"http://127.0.0.1", b"http://localhost").replace(
        place.index.url.replace("127.0.0.1", "localhost").encode(), place.index.url.encode()
    )
    assert place.refusal(place.spec(["gamma"], lock=tampered)).reason is Reason.POLICY
    place.resolver().resolve(place.spec(["gamma"], lock=lock), place.python, None)


def test_lock_of_the_daemon_teaches_hosts(place: Place) -> None:
    """What the daemon has resolved itself says where files lie: a committed lock costs no question then."""
    place.get(place.spec(["gamma"]))
    lock = place.locked_by_hand(["beta"])
    place.runs.clear()
    place.get(place.spec(["beta"], lock=lock))
    assert [run[0] for run in place.runs] == ["lock", "sync"]


def test_stale_lock_names_the_command(place: Place) -> None:
    """A committed lock that does not fit is an error with what to run and where, and is never corrected in silence."""
    lock = place.locked_by_hand(["gamma"])
    error = place.refusal(place.spec(["gamma", "alpha"], lock=lock))
    assert error.reason is Reason.LOCK_STALE
    assert "Run `uv lock` in wf/one and commit uv.lock" in error.message


def test_other_policy_looks_again(place: Place) -> None:
    """What was accepted under one policy is not known under another."""
    spec = place.spec(["gamma"], lock=place.locked_by_hand(["gamma"]))
    key = place.resolver().key(spec, place.python, None)
    place.policy = type(place.policy)(indexes=(place.index.url,), max_packages=1)
    assert place.resolver().key(spec, place.python, None) != key


def test_record_from_before_a_moment_does_not_count(place: Place) -> None:
    """`since` is for resolving anew: what was kept before it is no answer, what was kept after it is one."""
    spec, resolver = place.spec(["gamma"]), place.resolver()
    place.get(spec)
    key = resolver.key(spec, place.python, None)
    assert resolver.known(spec, key, since=time.time() - 3600) is not None
    assert resolver.known(spec, key, since=time.time() + 3600) is None


def test_one_added_requirement_moves_no_other(place: Place) -> None:
    """With the daemon's own lock as base, an addition leaves what was locked as it was."""
    base = place.get(place.spec(["gamma"])).lock
    place.index.add_wheel("gamma", "3.0")
    found = place.get(place.spec(["gamma", "beta"]), base)
    assert versions(found) == {"alpha": "1.0", "beta": "1.0", "gamma": "2.0"}
    assert place.fits(place.spec(["gamma", "beta"]), found.lock)


def test_refusals_are_spec_errors(place: Place) -> None:
    """A lock with a host that is none at all is an error of its spec, not of the daemon."""
    lock = place.locked_by_hand(["gamma"])
    here = place.index.url.removesuffix("/simple")
    tampered = lock.replace(f"{here}/files".encode(), b"http://[::1/files")
    with pytest.raises(SpecError):
        place.get(place.spec(["gamma"], lock=tampered))
