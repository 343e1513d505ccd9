"""The daemon and a remote by http: what happens to it never takes away what is published, and the metrics tell it."""

import contextlib
import http.client
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.fabric import Fabric, RunningDaemon
from support.git_server import GitServer
from support.spec_repo import SpecRepo
from support.waiting import wait_for


def mirror_of(fabric: Fabric) -> Path:
    """The one mirror of a fabric."""
    (found,) = (fabric.folder / "state" / "mirrors").glob("*.git")
    return found


def failures(daemon: RunningDaemon) -> tuple[float, float]:
    """Fetches and reconciles that failed so far."""
    return (
        daemon.metric("envfabric_fetch_failures_total"),
        daemon.metric("envfabric_reconcile_failures_total"),
    )


def wait_for_failures(daemon: RunningDaemon, before: tuple[float, float]) -> None:
    def more() -> bool:
        return all(now > then for now, then in zip(failures(daemon), before, strict=True))

    wait_for(more, message="the metrics tell of no failure")


def wait_for_success(daemon: RunningDaemon) -> None:
    """Waits for a look that was good, from now on."""
    now = time.time()
    wait_for(
        lambda: daemon.metric("envfabric_reconcile_last_success_timestamp_seconds") > now,
        message="no look is good any more",
    )


@contextlib.contextmanager
def following(fabric: Fabric) -> Iterator[RunningDaemon]:
    """The daemon, once it has published what the remote had."""
    with fabric.daemon() as daemon:
        daemon.wait_for_index(fabric.repo.head)
        yield daemon


def test_commits_are_followed(remote_fabric: Fabric) -> None:
    """What is pushed is published, fetches are counted, and nothing failed; nothing is written to the NAS for it."""
    with following(remote_fabric) as daemon:
        remote_fabric.repo.spec("wf/b", ["alpha"])
        index = daemon.wait_for_index(remote_fabric.repo.commit())
        assert {one["state"] for one in index["environments"].values()} == {"ready"}
        assert daemon.metric("envfabric_fetches_total") >= 2
        assert failures(daemon) == (0, 0)
        wait_for_success(daemon)
        remote_fabric.repo.git("reset", "--quiet", "--hard", "HEAD~1")
        remote_fabric.repo.spec("wf/c")
        index = daemon.wait_for_index(remote_fabric.repo.commit())
        assert set(index["python"]) == {"wf/a", "wf/c"}
        assert failures(daemon) == (0, 0)
    assert not list(remote_fabric.root.rglob("followed"))


def test_deleted_branch_keeps_the_last_revision(remote_fabric: Fabric) -> None:
    """While the branch is gone everything published stays and the metrics say it; with the branch it goes on."""
    repo = remote_fabric.repo
    remote_fabric.settings["branch"] = "main"
    with following(remote_fabric) as daemon:
        before, published = failures(daemon), remote_fabric.index()
        subprocess.run(["git", "-C", repo.path, "update-ref", "-d", "refs/heads/main"], check=True)
        wait_for_failures(daemon, before)
        wait_for_failures(daemon, failures(daemon))
        assert remote_fabric.index() == published
        (told,) = daemon.events("fetch failed")
        assert "has no branch 'main'" in told["error"]
        repo.spec("wf/b")
        daemon.wait_for_index(repo.commit())
        wait_for_success(daemon)
        assert len(daemon.events("fetch works again")) == 1


def test_host_down_and_back(remote_fabric: Fabric, host: GitServer) -> None:
    """A host that is away takes nothing away: not the index, not repairs, and it goes on by itself once it is back."""
    with following(remote_fabric) as daemon:
        before = failures(daemon)
        host.down()
        wait_for_failures(daemon, before)
        stands_still = daemon.metric("envfabric_reconcile_last_success_timestamp_seconds")
        wait_for_failures(daemon, failures(daemon))
        assert daemon.metric("envfabric_reconcile_last_success_timestamp_seconds") == stands_still
        link = remote_fabric.root / "envs" / "wf" / "a"
        assert link.resolve().is_dir()
        assert daemon.get("/healthz")[0] == daemon.get("/readyz")[0] == 200
        remote_fabric.repo.spec("wf/b")
        commit = remote_fabric.repo.commit()
        host.up()
        daemon.wait_for_index(commit)
        wait_for_success(daemon)


def test_slow_host_holds_nothing_up(remote_fabric: Fabric, host: GitServer) -> None:
    """While a fetch hangs the loop goes round and answers orders; the metrics say that nothing new is known."""
    remote_fabric.settings["fetch"]["interval"] = 0.2
    with following(remote_fabric) as daemon:
        host.hold()
        wait_for(
            lambda: daemon.metric("envfabric_reconcile_failures_total") > 0,
            message="a fetch that hangs is not told",
        )
        assert daemon.get("/healthz")[0] == 200
        done = remote_fabric.command("gc", "--dry-run", "--config", remote_fabric.configure())
        assert done.returncode == 0, done.stderr
        remote_fabric.repo.spec("wf/b")
        commit = remote_fabric.repo.commit()
        host.release()
        daemon.wait_for_index(commit)
        wait_for_success(daemon)
        assert daemon.metric("envfabric_fetch_failures_total") == 0


@pytest.mark.parametrize("damage", ["pack", "loose", "removed"])
def test_damaged_mirror_heals_by_itself(remote_fabric: Fabric, host: GitServer, damage: str) -> None:
    """A corrupt mirror and one that was removed are told by the metrics, and made anew without a restart once the
    remote answers; what is published stays meanwhile."""
    with following(remote_fabric) as daemon:
        mirror, published = mirror_of(remote_fabric), remote_fabric.index()
        host.hold()
        wait_for(lambda: daemon.metric("envfabric_fetches_total") > 1, message="no second fetch")
        if damage == "removed":
            shutil.rmtree(mirror)
        elif damage == "loose":
            subprocess.run(["git", "-C", mirror, "repack", "-a", "-d", "-q"], check=False)
            for number, pack in enumerate(mirror.glob("objects/pack/*.pack")):
                moved = pack.rename(mirror / f"{number}.pack")
                with moved.open("rb") as file:
                    subprocess.run(["git", "-C", mirror, "unpack-objects", "-q"], stdin=file, check=True)
            for one in mirror.glob("objects/??/*"):
                one.chmod(0o600)
                one.write_bytes(b"garbage")
        else:
            for one in mirror.glob("objects/pack/*.pack"):
                one.chmod(0o600)
                one.write_bytes(b"garbage")
        before = daemon.metric("envfabric_reconcile_failures_total")
        wait_for(
            lambda: daemon.metric("envfabric_reconcile_failures_total") > before,
            message="the metrics do not tell of the damage",
        )
        # That the newest can't be read may stand among the problems by now.
        parts = ("revision", "python", "environments")
        assert [remote_fabric.index()[one] for one in parts] == [published[one] for one in parts]
        remote_fabric.repo.spec("wf/b")
        commit = remote_fabric.repo.commit()
        host.release()
        index = daemon.wait_for_index(commit)
        assert set(index["python"]) == {"wf/a", "wf/b"}
        wait_for_success(daemon)
    remote_fabric.run_once()


def test_a_start_without_its_remote(remote_fabric: Fabric, host: GitServer) -> None:
    """A daemon that has never reached its remote comes up, says so, and begins when the remote is there."""
    host.down()
    with remote_fabric.daemon() as daemon:
        wait_for(lambda: daemon.metric("envfabric_fetch_failures_total") > 0, message="no fetch failed")
        assert daemon.get("/healthz")[0] == 200
        assert daemon.get("/readyz")[0] == 503
        assert daemon.metric("envfabric_writer") == 0
        host.up()
        daemon.wait_for_index(remote_fabric.repo.head)
    # And with a mirror it starts without the remote.
    host.down()
    with remote_fabric.daemon() as daemon:
        daemon.wait_for_index(remote_fabric.repo.head)
        daemon.wait_for_metric("envfabric_writer", 1)


@pytest.mark.parametrize(
    ("name", "folder", "told"),
    [
        ("other.git", "", "serves the repository that began with"),
        ("specs.git", "none", "(path 'none')"),
    ],
)
def test_a_remote_that_is_not_what_root_serves(
    remote_fabric: Fabric, host: GitServer, tmp_path: Path, name: str, folder: str, told: str
) -> None:
    """A first fetch that brings another repository, or one without the spec folder, is waited out without ROOT."""
    remote_fabric.run_once()
    other = SpecRepo(tmp_path / "remote" / "other.git", bare=True)
    other.spec("wf/z")
    other.commit("another beginning")
    host.down()
    remote_fabric.settings |= {"repo": host.url(name), "path": folder}
    with remote_fabric.daemon() as daemon:
        wait_for(lambda: daemon.events("standby"), message="it does not wait")
        host.up()
        wait_for(lambda: told in str(daemon.events("standby")), message="it does not say why it waits")
        assert daemon.get("/healthz")[0] == 200
        assert daemon.metric("envfabric_writer") == 0
    assert set(remote_fabric.index()["python"]) == {"wf/a"}


def test_run_once_fetches_first(remote_fabric: Fabric, host: GitServer) -> None:
    """`run --once` makes what the remote has now true, and ends with 1 and the reason where it can't be reached."""
    remote_fabric.run_once()
    remote_fabric.repo.spec("wf/b")
    commit = remote_fabric.repo.commit()
    assert remote_fabric.run_once()["revision"] == commit
    host.down()
    done = remote_fabric.command("run", "--once", "--config", remote_fabric.configure())
    assert done.returncode == 1
    assert "can't be fetched" in done.stderr
    assert "Traceback" not in done.stderr
    # A command reads the mirror as it is.
    done = remote_fabric.command("gc", "--config", remote_fabric.configure())
    assert done.returncode == 0, done.stderr


def test_address_of_a_wrong_kind_is_wrong_usage(remote_fabric: Fabric) -> None:
    """An address that is not followed ends with 2 and says what is."""
    remote_fabric.init()
    for repo in ("git://host.example/specs.git", "http://user:secret-word@host.example/specs.git"):
        done = remote_fabric.command("run", "--config", remote_fabric.configure(), "--repo", repo)
        assert done.returncode == 2
        assert "https://" in done.stderr
        assert "secret-word" not in done.stderr


def test_sighup_fetches_at_once(remote_fabric: Fabric) -> None:
    """SIGHUP brings a fetch and a look, long before the interval ends."""
    remote_fabric.settings |= {
        "interval": 3600,
        "fetch": {**remote_fabric.settings["fetch"], "interval": 3600},
    }
    with following(remote_fabric) as daemon:
        remote_fabric.repo.spec("wf/b")
        commit = remote_fabric.repo.commit()
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for_index(commit)


def test_sighup_looks_at_a_local_repository(fabric: Fabric) -> None:
    """With a repository of this machine SIGHUP is a look at once, and ends nothing."""
    fabric.repo.spec("wf/a")
    fabric.repo.commit()
    with fabric.daemon() as daemon:
        daemon.wait_for_index(fabric.repo.head)
        for _ in range(3):
            daemon.process.send_signal(signal.SIGHUP)
        fabric.repo.spec("wf/b")
        daemon.wait_for_index(fabric.repo.commit())


def post(daemon: RunningDaemon, body: bytes = b"", **headers: str) -> int:
    """POST /reconcile; gives the status."""
    parts = urlsplit(daemon.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    try:
        connection.request(
            "POST", "/reconcile", body, {key.replace("_", "-"): one for key, one in headers.items()}
        )
        return connection.getresponse().status
    finally:
        connection.close()


def test_webhook_fetches_at_once(remote_fabric: Fabric) -> None:
    """POST /reconcile from this host brings a fetch, whatever its body; not from a browser's page."""
    remote_fabric.settings |= {
        "interval": 3600,
        "fetch": {**remote_fabric.settings["fetch"], "interval": 3600},
    }
    with following(remote_fabric) as daemon:
        fetches = daemon.metric("envfabric_fetches_total")
        assert post(daemon, Origin="https://page.example") == 403
        remote_fabric.repo.spec("wf/b")
        commit = remote_fabric.repo.commit()
        assert daemon.metric("envfabric_fetches_total") == fetches
        assert post(daemon, json.dumps({"after": commit, "more": "x" * 300_000}).encode()) == 202
        daemon.wait_for_index(commit)


def test_webhook_with_a_token(remote_fabric: Fabric) -> None:
    """With a token set it is needed from everybody, loopback too, and it stands in no log line."""
    remote_fabric.settings |= {
        "interval": 3600,
        "reconcile_token": "a-very-secret-token",
        "fetch": {**remote_fabric.settings["fetch"], "interval": 3600},
    }
    with following(remote_fabric) as daemon:
        assert post(daemon) == 401
        assert post(daemon, Authorization="Bearer another") == 401
        remote_fabric.repo.spec("wf/b")
        commit = remote_fabric.repo.commit()
        assert post(daemon, Authorization="Bearer a-very-secret-token") == 202
        daemon.wait_for_index(commit)
    assert "a-very-secret-token" not in "".join(daemon.lines)


def test_hundred_commits_in_a_second(remote_fabric: Fabric) -> None:
    """A burst of commits, each with its webhook, ends at the last one, with few fetches."""
    # A fetch that takes longer than a machine under load may need counts as one that is behind.
    remote_fabric.settings["fetch"] = {**remote_fabric.settings["fetch"], "interval": 30}
    with following(remote_fabric) as daemon:
        before = daemon.metric("envfabric_fetches_total")
        began = time.monotonic()
        for number in range(100):
            remote_fabric.repo.write("wf/a/README", f"{number}")
            remote_fabric.repo.commit()
            post(daemon)
        daemon.wait_for_index(remote_fabric.repo.head)
        seconds = time.monotonic() - began
        # At most one a second is asked for.
        assert daemon.metric("envfabric_fetches_total") - before <= 2 * seconds + 2
        assert failures(daemon) == (0, 0)


def test_credentials_of_the_daemon(remote_fabric: Fabric, remote: SpecRepo) -> None:
    """A password in the address reaches the host, and no file, log line, page or metric."""
    with GitServer(remote.path.parent, user="reader", password="hunter-2-secret") as host:
        remote_fabric.settings["repo"] = f"http://reader:hunter-2-secret@127.0.0.1:{host.port}/specs.git"
        with following(remote_fabric) as daemon:
            host.authorization = "Basic of-another"
            wait_for(lambda: daemon.events("fetch failed"), message="no fetch failed")
            shown = [daemon.get(path)[1] for path in ("/", "/metrics", "/index.json")]
        shown += daemon.lines
    settings = remote_fabric.folder / "envfabric.toml"
    files = [one for one in remote_fabric.folder.rglob("*") if one.is_file() and one != settings]
    found = [str(one) for one in files if b"hunter-2-secret" in one.read_bytes()]
    assert found == []
    assert "hunter-2-secret" not in "".join(shown)


def test_unsigned_commit_is_held_back(remote_fabric: Fabric, tmp_path: Path) -> None:
    """An unsigned commit is not made true and says so; what is published stays, and a signed one goes on."""
    repo = remote_fabric.repo
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    (tmp_path / "signers").write_text(f"author@example.com {key.with_suffix('.pub').read_text()}")
    repo.git("config", "gpg.format", "ssh")
    repo.git("config", "user.signingKey", str(key))
    repo.git("config", "commit.gpgSign", "true")
    repo.commit("signed")
    remote_fabric.settings["signatures"] = {"required": True, "allowed_signers": str(tmp_path / "signers")}
    with following(remote_fabric) as daemon:
        good = repo.head
        repo.git("config", "commit.gpgSign", "false")
        repo.spec("wf/b")
        repo.commit("unsigned")
        daemon.wait_for_metric("envfabric_revision_held_back", 1)
        wait_for(lambda: remote_fabric.index()["problems"], message="the index does not say it")
        index = remote_fabric.index()
        assert index["revision"] == good
        assert set(index["python"]) == {"wf/a"}
        assert "is not signed" in index["problems"][0]["message"]
        repo.git("config", "commit.gpgSign", "true")
        index = daemon.wait_for_index(repo.commit("signed again"))
        assert set(index["python"]) == {"wf/a", "wf/b"}
        assert index["problems"] == []
        daemon.wait_for_metric("envfabric_revision_held_back", 0)
