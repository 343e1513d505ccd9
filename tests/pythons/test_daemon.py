"""A fabric on a machine whose Pythons don't count: its own come from a mirror, whatever ends the daemon meanwhile."""

import hashlib
import json
import os
from pathlib import Path

from pythons.mirror import KEY, MINOR, VERSION, Served, write_list
from support.fabric import Fabric
from support.waiting import wait_for


def test_killed_in_the_middle_of_a_download(fabric: Fabric, archive: Path) -> None:
    """kill -9 with half a Python on its way: nothing of it is chosen, and the next start installs it and builds."""
    with Served(archive).running() as served:
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        url = f"http://{served.host}/{archive.name}"
        fabric.settings |= {
            "python_preference": "only-managed",
            "python_downloads": "automatic",
            "python_downloads_json_url": str(write_list(fabric.folder, url, digest)),
        }
        fabric.repo.spec("wf/one", ["alpha"])
        fabric.repo.commit("one")
        with fabric.daemon() as daemon:
            wait_for(served.half.is_set, timeout=90, message="nothing was downloaded")
            daemon.kill()
        pythons = fabric.root / "pythons"
        assert list(pythons.iterdir()) == []
        served.go_on.set()
        fabric.run_once()

        assert [one.name for one in pythons.iterdir()] == [KEY]
        entry = fabric.entry("wf/one")
        assert (entry["state"], entry["python_version"]) == ("ready", VERSION)
        python = Path(fabric.index()["python"]["wf/one"])
        base = pythons.resolve() / KEY / f"bin/python{MINOR}"
        assert os.readlink(python) == str(base)
        assert fabric.python("wf/one", "import alpha, sys; print(sys.base_prefix)") == str(base.parents[1])
        told = json.loads((python.parents[2] / "metadata.json").read_bytes())
        assert told["inputs"]["interpreter"]["path"] == str(base)
        assert told["inputs"]["interpreter"]["version"] == VERSION

        # Once it is there the mirror is not asked, and nothing is built anew.
        asked = len(served.asked)
        fabric.run_once()
        assert len(served.asked) == asked and fabric.entry("wf/one")["serving"] == entry["serving"]

    done = fabric.command("pythons", "--json", "--root", fabric.root)
    assert done.returncode == 0, done.stderr
    (one,) = json.loads(done.stdout)
    assert (one["path"], one["closures"], one["managed"]) == (str(base), 1, True)
    shown = fabric.command("pythons", "--root", fabric.root)
    assert VERSION in shown.stdout and "on the NAS" in shown.stdout
