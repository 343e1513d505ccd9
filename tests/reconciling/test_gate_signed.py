"""Signatures are asked for at the gate: a commit without one is not reconciled, and says so."""

import json
import subprocess

from support.fabric import Fabric


def test_unsigned_commit_is_held_back(fabric: Fabric) -> None:
    """The first unsigned commit publishes nothing; a signed one is adopted; the next unsigned one leaves it in force,
    and can't be confirmed."""
    key = fabric.folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    signers = fabric.folder / "allowed_signers"
    signers.write_text(f"author@example.com {key.with_suffix('.pub').read_text()}")
    fabric.settings["signatures"] = {"required": True, "allowed_signers": str(signers)}
    fabric.repo.spec("wf/a")
    first = fabric.repo.commit()
    index = fabric.run_once(expect=1)
    assert (index["revision"], index["environments"]) == (None, {})
    assert first[:12] in index["problems"][0]["message"]
    assert "is not signed" in index["problems"][0]["message"]
    fabric.repo.git("config", "gpg.format", "ssh")
    fabric.repo.git("config", "user.signingkey", str(key))
    fabric.repo.git("commit", "--quiet", "--allow-empty", "-m", "signed", "-S")
    signed = fabric.run_once()
    assert signed["revision"] == fabric.repo.head
    assert signed["problems"] == []
    told = json.loads(fabric.command("history", "wf/a", "--json", "--root", fabric.root).stdout)
    (made,) = told["generations"]
    fingerprint = subprocess.run(["ssh-keygen", "-lf", str(key)], capture_output=True, text=True, check=True)
    assert made["signed_by"] == {"name": "author@example.com", "key": fingerprint.stdout.split()[1]}
    fabric.repo.spec("wf/b")
    second = fabric.repo.commit()
    index = fabric.run_once(expect=1)
    assert (index["revision"], index["environments"]) == (signed["revision"], signed["environments"])
    done = fabric.command("confirm", second, "--config", fabric.configure())
    assert (done.returncode, "can't be confirmed" in done.stderr) == (1, True)


def test_unsigned_revision_in_force_builds_nothing(fabric: Fabric) -> None:
    """Signatures that are required from now on leave what is published as it is, and nothing is built from it."""
    fabric.repo.spec("wf/a", ["missing-package"])
    fabric.repo.spec("wf/b")
    fabric.repo.commit()
    before = fabric.run_once(expect=1)
    signers = fabric.folder / "allowed_signers"
    signers.write_text("")
    fabric.settings["signatures"] = {"required": True, "allowed_signers": str(signers)}
    index = fabric.run_once(expect=1)
    assert (index["revision"], index["environments"]) == (before["revision"], before["environments"])
    done = fabric.command("retry", "wf/a", "--config", fabric.configure())
    assert (done.returncode, "is not signed" in done.stderr) == (1, True)
    fabric.settings["interval"] = 0.2
    with fabric.daemon() as daemon:
        daemon.wait_for_metric("envfabric_revision_held_back", 1)
        # An order makes the loop go round: the looks in between find the same.
        order = fabric.command("confirm", "0000000", "--config", fabric.configure())
        assert order.returncode == 1
        assert daemon.metric("envfabric_revision_held_back") == 1
        assert "is not signed" in fabric.index()["problems"][0]["message"]
        assert len(daemon.events("revision held back")) == 1
