"""When the index is replaced: a single outcome at once, a burst at most about once a second."""

from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace

import pytest

from envfabric.core.errors import StoreError
from envfabric.index import publisher as module
from envfabric.index.publisher import Publisher
from envfabric.store.root import Root


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    yield clock


def test_nothing_wanted_is_never_due(publisher: Publisher, clock: Clock) -> None:
    """Without a wish nothing is published, before and after a publication."""
    assert publisher.wait(quiet=True) is None
    publisher.publish("c1", {}, ())
    assert publisher.wait(quiet=False) is None


def test_single_outcome_is_due_at_once(publisher: Publisher, clock: Clock) -> None:
    """A change that comes alone is published without waiting, the first one as any later one."""
    for revision in ("c1", "c2", "c3", "c4"):
        publisher.want(outcome=True)
        assert publisher.wait(quiet=True) == 0.0
        assert publisher.publish(revision, {}, ())
        assert publisher.wait(quiet=True) is None
        clock.now += 1.0


def test_progress_waits_for_company(publisher: Publisher, clock: Clock) -> None:
    """Mere progress is published within a second; an outcome takes it along at once."""
    publisher.want(outcome=False)
    assert publisher.wait(quiet=False) == 1.0
    clock.now += 0.4
    publisher.want(outcome=False)
    assert publisher.wait(quiet=False) == pytest.approx(0.6), "more progress does not put it off"
    publisher.want(outcome=True)
    assert publisher.wait(quiet=False) == 0.0
    publisher.want(outcome=False)
    assert publisher.wait(quiet=False) == 0.0, "progress does not put an outcome off"


def test_outcome_in_a_burst_waits_its_second(publisher: Publisher, clock: Clock) -> None:
    """While more is under way, a second lies between publications; what comes meanwhile goes along."""
    publisher.publish("c1", {}, ())
    for passed in (0.25, 0.5, 0.75):
        clock.now = 1000.0 + passed
        publisher.want(outcome=True)
        assert publisher.wait(quiet=False) == pytest.approx(1.0 - passed)
    clock.now = 1001.0
    assert publisher.wait(quiet=False) == 0.0


@pytest.mark.parametrize("quiet", [True, False])
def test_burst_is_published_about_once_a_second(publisher: Publisher, clock: Clock, quiet: bool) -> None:
    """A thousand outcomes in three seconds make a handful of publications, and no outcome waits longer."""
    times = []
    for number in range(1000):
        publisher.want(outcome=True)
        if publisher.wait(quiet=quiet) == 0.0:
            publisher.publish(f"c{number}", {}, ())
            times.append(clock.now)
        wait = publisher.wait(quiet=quiet)
        assert wait is None or wait <= 1.0
        clock.now += 0.003
    assert len(times) <= 3 * (module.SINGLES if quiet else 1)
    assert quiet or all(later - earlier >= 1.0 for earlier, later in pairwise(times))
    assert publisher.wait(quiet=quiet) is not None, "the last outcomes are still wanted"


def test_failed_publication_is_tried_later(root: Root, publisher: Publisher, clock: Clock) -> None:
    """A publication that failed stays wanted, and can be put off instead of tried at once."""
    publisher.want(outcome=True)
    marker = root.marker.read_bytes()
    root.marker.unlink()
    with pytest.raises(StoreError):
        publisher.publish("c1", {}, ())
    assert publisher.wait(quiet=True) == 0.0
    publisher.postpone()
    assert publisher.wait(quiet=True) == 2.0
    publisher.want(outcome=True)
    assert publisher.wait(quiet=True) == 2.0, "another outcome does not hurry it"
    root.marker.write_bytes(marker)
    clock.now += 2.0
    assert publisher.wait(quiet=True) == 0.0
    assert publisher.publish("c1", {}, ()) is not None
