"""What was uploaded lately is not taken where the daemon resolves, and the lock that is kept fits its spec."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from envfabric.build.limits import cutoff, written
from envfabric.core.errors import Reason
from support.place import Place, versions

NOW = datetime.now(UTC)


def days_ago(days: float) -> str:
    """A moment as an index tells it."""
    return written(NOW - timedelta(days=days))


@pytest.fixture
def place(place: Place) -> Place:
    """gamma 2.0 is 3 days old, all else 100."""
    for file in place.index.folder.iterdir():
        place.index.uploads[file.name] = days_ago(100)
    place.index.uploads["gamma-2.0-py3-none-any.whl"] = days_ago(3)
    return place


def test_fleet_wide_bound_holds_where_the_daemon_resolves(place: Place) -> None:
    """Nothing newer than the fleet's exclude_newer is chosen; the kept lock is not stale beside its spec."""
    place.exclude_newer = days_ago(10)
    spec = place.spec(["gamma", "beta"])
    found = place.get(spec)
    assert versions(found) == {"alpha": "1.0", "beta": "1.0", "gamma": "1.0"}
    assert b"exclude-newer" not in found.lock
    assert place.fits(spec, found.lock)


def test_bound_is_part_of_the_question(place: Place) -> None:
    """Under another bound it is another question; under none, nothing of it is in the answer."""
    spec = place.spec(["gamma"])
    free = place.resolver().key(spec, place.python, None)
    place.exclude_newer = days_ago(10)
    bound = place.resolver().key(spec, place.python, None)
    place.exclude_newer = days_ago(20)
    assert len({free, bound, place.resolver().key(spec, place.python, None)}) == 3
    lock = place.locked_by_hand(["gamma"])
    committed = place.spec(["gamma"], lock=lock)
    key = place.resolver().key(committed, place.python, None)
    place.exclude_newer = None
    assert place.resolver().key(committed, place.python, None) == key


def test_committed_lock_is_not_bound_by_the_fleet(place: Place) -> None:
    """A committed lock is checked under the spec's own settings, whatever the fleet's exclude_newer is."""
    lock = place.locked_by_hand(["gamma"])
    place.exclude_newer = days_ago(10)
    found = place.get(place.spec(["gamma"], lock=lock))
    assert (found.lock, versions(found)) == (lock, {"gamma": "2.0"})


def test_base_newer_than_the_bound_gives_way(place: Place) -> None:
    """A version of the last lock that the bound excludes is left; what it allows stays where it was."""
    base = place.get(place.spec(["gamma", "alpha"])).lock
    place.index.add_wheel("alpha", "1.5")
    place.index.uploads["alpha-1.5-py3-none-any.whl"] = days_ago(50)
    place.exclude_newer = days_ago(10)
    found = place.get(place.spec(["gamma", "alpha", "beta"]), base)
    assert versions(found) == {"alpha": "1.0", "beta": "1.0", "gamma": "1.0"}


@pytest.mark.parametrize("own", ["50 days before", "5 days before", "1 day before", "2 weeks", "1 day"])
def test_own_bound_stays_in_the_lock(place: Place, own: str) -> None:
    """Of the fleet's bound and the spec's own the earlier counts; the kept lock has the spec's own and fits."""
    told = days_ago(int(own.split()[0])) if own.endswith("before") else own
    place.exclude_newer = days_ago(10)
    spec = place.spec(["gamma"], tail=f'[tool.uv]\nexclude-newer = "{told}"')
    found = place.get(spec)
    assert versions(found) == {"gamma": "1.0"}
    assert b"exclude-newer" in found.lock
    assert place.fits(spec, found.lock)


def test_earlier_own_bound_counts(place: Place) -> None:
    """A fleet's bound that is later than the spec's own does not widen it."""
    place.exclude_newer = days_ago(1)
    spec = place.spec(["gamma"], tail=f'[tool.uv]\nexclude-newer = "{days_ago(50)}"')
    assert versions(place.get(spec)) == {"gamma": "1.0"}


def test_cooldown_bounds_resolving(place: Place) -> None:
    """A release younger than the cooldown is not chosen; one that is old enough is."""
    place.policy = replace(place.policy, cooldown=7 * 86400.0)
    spec = place.spec(["gamma"])
    found = place.get(spec)
    assert versions(found) == {"gamma": "1.0"}
    assert place.fits(spec, found.lock)
    place.policy = replace(place.policy, cooldown=86400.0)
    assert versions(place.get(spec)) == {"gamma": "2.0"}


def test_young_release_in_a_committed_lock_is_refused(place: Place) -> None:
    """A committed lock with a release younger than the cooldown is refused, and says from when it is not."""
    lock = place.locked_by_hand(["gamma", "alpha"])
    place.policy = replace(place.policy, cooldown=7 * 86400.0)
    error = place.refusal(place.spec(["gamma", "alpha"], lock=lock))
    assert error.reason is Reason.POLICY
    assert "gamma 2.0 was uploaded at" in error.message
    assert f"retry after {days_ago(-4)}" in error.message
    place.policy = replace(place.policy, cooldown=2 * 86400.0)
    assert place.get(place.spec(["gamma", "alpha"], lock=lock)).lock == lock


def test_lock_without_upload_times_passes(place: Place) -> None:
    """Where an index does not tell when files were uploaded, a committed lock of it is taken."""
    place.index.uploads.clear()
    lock = place.locked_by_hand(["gamma"])
    assert b"upload-time" not in lock
    place.policy = replace(place.policy, cooldown=7 * 86400.0)
    assert versions(place.get(place.spec(["gamma"], lock=lock))) == {"gamma": "2.0"}


def test_bounds_converge() -> None:
    """A cooldown's bound moves once an hour, or once a day for days; a date means up to its end; the earlier counts."""
    now = datetime(2026, 3, 10, 13, 45, 7, tzinfo=UTC)
    assert cutoff(None, 0, now) is None
    assert cutoff(None, 7200, now) == datetime(2026, 3, 10, 11, tzinfo=UTC)
    assert cutoff(None, 3 * 86400, now) == datetime(2026, 3, 7, tzinfo=UTC)
    assert cutoff("2026-01-31", 0, now) == datetime(2026, 2, 1, tzinfo=UTC)
    assert cutoff("2026-01-31T12:00:00+02:00", 86400, now) == datetime(2026, 1, 31, 10, tzinfo=UTC)
    assert cutoff("2026-03-10T13:00:00Z", 86400, now) == datetime(2026, 3, 9, tzinfo=UTC)
