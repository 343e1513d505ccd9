"""With one build slot: what failed before and hangs when it is tried again keeps no new commit from it."""

import json

from support.fabric import Fabric
from support.waiting import wait_for


def test_what_hangs_makes_room(fabric: Fabric) -> None:
    """It is ended for the new commit's sake, and begun again behind it; that counts as no failure of its own."""
    packages, repo = fabric.packages, fabric.repo
    fabric.settings["builders"] = 1
    # What the index serves its files from is known then, also of what it does not have any more.
    repo.spec("first/one", ["beta"])
    repo.commit()
    fabric.run_once()
    wheel = packages.add_wheel("one-slot", "1.0")
    fabric.lock(repo.spec("wf/a", ["one-slot"], index=packages.url).parent)
    content = wheel.read_bytes()
    wheel.unlink()
    repo.commit()
    assert fabric.run_once(expect=1)["environments"]["wf/a"]["error"]["reason"] == "fetch"
    wheel.write_bytes(content)
    # It is tried again at once, and still counts as what failed before.
    path = fabric.root / "state/retries.json"
    kept = json.loads(path.read_bytes())
    kept["retries"]["wf/a"][1] = 0.0
    path.write_text(json.dumps(kept))
    hold = packages.hold("one-slot", kind="files")
    asked = len(packages.requests)
    try:
        with fabric.daemon() as daemon:
            wait_for(
                lambda: any("/files/one_slot" in one for one in packages.requests[asked:]),
                message="it is not tried again",
            )
            repo.spec("wf/b", ["alpha"])
            last = repo.commit()
            wait_for(lambda: "wf/b" in fabric.index()["python"], message="a new commit waits for what hangs")
            assert not hold.is_set()
            assert [one["spec"] for one in daemon.events("put back")] == ["wf/a"]
            assert daemon.metric("envfabric_build_failures_total", reason="timeout") == 0
            hold.set()
            assert daemon.wait_for_index(last)["environments"]["wf/a"]["state"] == "ready"
    finally:
        hold.set()
