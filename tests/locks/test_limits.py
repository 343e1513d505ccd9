"""An environment of more packages or bytes than the policy allows is refused, and nothing of it stays."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from envfabric.build.limits import Chosen, check_chosen
from envfabric.core.errors import Reason, SpecError
from envfabric.specs.policy import Policy
from support.place import Place


@pytest.mark.parametrize("committed", [False, True])
def test_too_many_packages(place: Place, committed: bool) -> None:
    """Too many packages are a matter of policy, told with both numbers; nothing is downloaded for it."""
    lock = place.locked_by_hand(["beta", "gamma"]) if committed else None
    place.policy = replace(place.policy, max_packages=2)
    error = place.refusal(place.spec(["beta", "gamma"], lock=lock))
    assert error.reason is Reason.POLICY
    assert "3 packages are needed, and 2 are allowed" in error.message
    assert place.get(place.spec(["beta"])).closure


def test_sizes_that_the_lock_tells(place: Place) -> None:
    """The sizes in the lock are summed before anything is downloaded to be installed."""
    for file in place.index.folder.iterdir():
        place.index.uploads[file.name] = "2026-01-01T00:00:00Z"
    place.policy = replace(place.policy, max_bytes=1500)
    error = place.refusal(place.spec(["beta"]))
    assert error.reason is Reason.POLICY
    assert "bytes to download, the most of it for beta, alpha; 1500 are allowed" in error.message
    assert place.get(place.spec(["alpha"])).closure


def test_bytes_that_are_really_there(place: Place) -> None:
    """What unpacks to more than is allowed is not sealed, whatever the index said; staging and store stay empty."""
    place.index.add_wheel("large", "1.0", modules={"large/__init__.py": "#" * 3_000_000})
    place.policy = replace(place.policy, max_bytes=2_000_000)
    spec = place.spec(["large"])
    found = place.get(spec)
    with pytest.raises(SpecError) as caught:
        place.build(spec, found)
    assert caught.value.reason is Reason.POLICY
    assert "bytes on disk" in caught.value.message
    assert list(place.root.staging.iterdir()) == []
    assert list((place.root.path / "store").iterdir()) == []
    place.policy = replace(place.policy, max_bytes=20_000_000)
    assert place.build(spec, place.get(spec)).name == found.closure.digest


@pytest.mark.parametrize("told", ["x", "2026-01-01T00:00:00", 7])
def test_upload_time_that_is_none(told: object) -> None:
    """An upload time that can't be read is no proof of age."""
    chosen = [Chosen("one", "1.0", {"upload-time": told})]
    with pytest.raises(SpecError, match="no moment"):
        check_chosen(chosen, Policy(cooldown=1.0), datetime.now(UTC), "wf/one/uv.lock")
