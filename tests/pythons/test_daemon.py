"""A fabric on a machine whose Pythons don't count: its own come from a mirror, whatever ends the daemon meanwhile."""

import hashlib
import json
import os
import re
from pathlib import Path

from pythons.mirror import KEY, MINOR, VERSION, Served, write_list
from support.children import uv_children
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
        # As `uv python install` by hand leaves it: it leads to whatever patch was the last to come.
        minor = KEY.replace(VERSION, MINOR)
        os.symlink(pythons.resolve() / KEY, pythons / minor)
        fabric.run_once()

        assert {one.name for one in pythons.iterdir()} == {KEY, minor}
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
    assert VERSION in shown.stdout and "on the NAS" in shown.stdout and "by hand" not in shown.stdout


def test_it_goes_with_what_was_made_from_it(fabric: Fabric, archive: Path) -> None:
    """Two collections after its last closure went and the grace period between them, and `gc` tells of it.

    Whoever asks for it again gets it again.
    """
    fabric.settings |= {"python_preference": "only-managed", "python_downloads": "automatic"}
    fabric.settings |= {"python_downloads_json_url": str(archive.with_name("downloads.json"))}
    fabric.settings["prune"] = {"share": 1.0}
    fabric.settings["gc"] = {"grace": 0, "generations": 1, "generation_age": 0, "trash_age": 0, "interval": 0}
    pythons = fabric.root / "pythons"
    fabric.repo.spec("wf/one", ["alpha"])
    fabric.repo.commit()

    def gc(*flags: str) -> str:
        done = fabric.command("gc", *flags, "--config", fabric.configure())
        assert done.returncode == 0, done.stderr
        return done.stdout

    with fabric.daemon() as daemon:
        daemon.wait_for_index(fabric.repo.head)
        fabric.python("wf/one", "import alpha")
        fabric.repo.remove("wf/one")
        daemon.wait_for_index(fabric.repo.commit())
        assert "1 closures" in gc()
        gc()
        left = fabric.root / "state/left/pythons" / KEY
        os.utime(left, (left.stat().st_mtime - 7200,) * 2)
        told = gc("--dry-run")
        assert re.search(f"pythons/{KEY} +goes", told) and "and 1 of pythons/" in told
        assert f"from pythons/ {KEY}" in gc() and list(pythons.iterdir()) == []
        fabric.repo.spec("wf/two", ["alpha"])
        daemon.wait_for_index(fabric.repo.commit())
        assert fabric.python("wf/two", "import alpha, sys; print(sys.base_prefix)") == str(
            pythons.resolve() / KEY
        )


def test_mirror_that_has_it_not_is_told_and_holds_up_nobody(fabric: Fabric, archive: Path) -> None:
    """The spec that wants the Python fails with the mirror's answer, another is served, and the daemon goes on."""
    other = f"3.{int(MINOR.split('.')[1]) + 1}"
    with Served(archive).running() as served:
        listed = write_list(fabric.folder, f"http://{served.host}/gone.tar.gz", "0" * 64, f"{other}.99")
        fabric.settings |= {"python_downloads": "automatic", "python_downloads_json_url": str(listed)}
        fabric.repo.spec("waits/a", ["alpha"], requires_python=f">={other}")
        fabric.repo.spec("wf/one", ["alpha"], table=f'[tool.envfabric]\npython = "{MINOR}"')
        first = fabric.repo.commit()
        with fabric.daemon() as daemon:
            entries = daemon.wait_for_index(first)["environments"]
            assert entries["waits/a"]["error"]["reason"] == "fetch", entries["waits/a"]
            assert "404" in entries["waits/a"]["error"]["message"]
            assert entries["wf/one"]["state"] == "ready"
            fabric.repo.spec("wf/two", ["alpha"], table=f'[tool.envfabric]\npython = "{MINOR}"')
            assert daemon.wait_for_index(fabric.repo.commit())["environments"]["wf/two"]["state"] == "ready"
        assert served.asked


def test_mirror_that_hangs_holds_up_nobody_else(fabric: Fabric, archive: Path) -> None:
    """More specs wait for a Python than there are threads for any step: one that needs none is served meanwhile.

    What brings the Python is ended at once when no spec wants it any more.
    """
    other = f"3.{int(MINOR.split('.')[1]) + 1}"
    with Served(archive).running() as served:
        listed = write_list(fabric.folder, f"http://{served.host}/{archive.name}", "0" * 64, f"{other}.99")
        fabric.settings |= {"python_downloads": "automatic", "python_downloads_json_url": str(listed)}
        fabric.settings["prune"] = {"share": 1.0}
        waiting = {f"waits/n{number}" for number in range(30)}
        for number, spec_id in enumerate(sorted(waiting)):
            # Each asks in its own words, so that no one's answer is another's.
            fabric.repo.spec(spec_id, ["alpha"], requires_python=f">={other},!={other}.{number}")
        fabric.repo.commit()
        with fabric.daemon() as daemon:
            wait_for(served.half.is_set, timeout=90, message="nothing was downloaded")
            # In words of its own: a Python in a closed folder would give way to one that can be had.
            fabric.repo.spec("wf/one", ["alpha"], table=f'[tool.envfabric]\npython = "{MINOR}"')
            fabric.repo.commit()
            published = fabric.root / "index.json"
            wait_for(
                lambda: published.exists() and "wf/one" in fabric.index()["python"],
                timeout=120,
                message="one waits for others",
            )
            assert {fabric.entry(one)["state"] for one in waiting} == {"pending"}
            (bringing,) = uv_children(daemon.process.pid, "python")
            for spec_id in waiting:
                fabric.repo.remove(spec_id)
            last = fabric.repo.commit()
            wait_for(lambda: not bringing.lives, message="it goes on for nobody")
            assert daemon.wait_for_index(last)["environments"].keys() == {"wf/one"}
            assert not served.go_on.is_set() and daemon.metric("envfabric_reconcile_failures_total") == 0
    assert list((fabric.root / "pythons").iterdir()) == []
