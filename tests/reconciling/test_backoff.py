"""What can pass is tried again, later each time, also by the daemon after a restart; what can't is not."""

from datetime import datetime

from envfabric.store.retries import JITTER, read_retries
from envfabric.store.root import Root
from support.fabric import Fabric
from support.simple_index import SimpleIndex
from support.waiting import wait_for


def test_backoff_goes_on_after_a_restart(fabric: Fabric, own_packages: SimpleIndex) -> None:
    """A killed daemon's successor waits for the time that was told, tries once, and then waits about twice as long."""
    own_packages.fail_with = 503
    fabric.packages = own_packages
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.write("wf/never/pyproject.toml", "[project\n")
    fabric.settings["builders"] = 1
    commit = fabric.repo.commit()
    root = Root(fabric.root)
    with fabric.daemon() as daemon:
        daemon.wait_for_index(commit)
        first = wait_for(lambda: read_retries(root).get("wf/a"), message="no retry is kept")
        told = fabric.entry("wf/a")["error"]
        assert told["reason"] == "fetch"
        assert abs(datetime.fromisoformat(told["retry_at"]).timestamp() - first.due) <= 1
        daemon.kill()
    assert first.attempts == 0
    with fabric.daemon() as daemon:
        # Not at the start: what was told is waited for.
        wait_for(
            lambda: fabric.entry("wf/a")["error"]["at"] != told["at"],
            timeout=90,
            message="it is not tried again",
        )
        second = read_retries(root)["wf/a"]
        assert second.attempts == 1
        at = datetime.fromisoformat(fabric.entry("wf/a")["error"]["at"]).timestamp()
        assert at >= int(first.due), "it was tried before its time"
        assert 20 * (1 - JITTER) - 2 <= second.due - at <= 20 * (1 + JITTER) + 2
        daemon.wait_for_metric("envfabric_build_failures_total", 1, reason="fetch")
        # What can't pass is not waited for: the second daemon knows nothing against trying it once, and no more.
        assert fabric.entry("wf/never")["error"]["retry_at"] is None
        assert daemon.metric("envfabric_build_failures_total", reason="invalid-spec") <= 1
        assert set(read_retries(root)) == {"wf/a"}
