"""The active daemon of two goes away, in three ways; the other one takes over, and what the index says stays true.

Part of `two_clients.py`, which has both daemons running before each.
"""

import subprocess
import time

from nas.nodes import PATIENCE, Daemon, Node, Table, commit, seconds
from support.fabric import Fabric
from support.waiting import wait_for


def take_over(fabric: Fabric, a: Node, b: Node, active: Daemon, table: Table) -> None:
    """The active daemon at A is killed; the standby at B, not `active`, publishes what is committed then."""
    before, epoch = a.index(), a.highest_epoch()
    active.process.kill()
    killed = time.time()
    wanted = commit(fabric, 3)
    wait_for(lambda: b.highest_epoch() > epoch, timeout=PATIENCE, message="nobody claimed the next epoch")
    table.add("daemon at A killed (-9): B is the writer", seconds(killed, time.time()))
    after = b.wait_for_commit(wanted)
    table.add("daemon at A killed (-9): B has published the next commit", seconds(killed, time.time()))
    numbers = f"{before['sequence']} → {after['sequence']}, {epoch} → {b.highest_epoch()}"
    table.add("sequence, epoch", numbers)
    if after["sequence"] <= before["sequence"]:
        raise SystemExit("the sequence went back")


def take_over_a_build(fabric: Fabric, a: Node, b: Node, active: Daemon, table: Table) -> None:
    """The active daemon, at B, is killed while it builds; uv, which outlives it, does no harm at A."""
    epoch = b.highest_epoch()
    wanted = commit(fabric, 4, "gamma")

    def half_built() -> bool:
        made = (b.export / "staging").glob("*/closure/.venv/lib/python*/site-packages/gamma")
        return any(made) and not b.index().get("complete")

    wait_for(half_built, timeout=PATIENCE, message="B builds nothing")
    active.process.kill()
    killed = time.time()
    wait_for(lambda: a.highest_epoch() > epoch, timeout=PATIENCE, message="nobody claimed the next epoch")
    table.add("daemon at B killed (-9) while it builds: A is the writer", seconds(killed, time.time()))
    a.wait_for_commit(wanted)
    table.add(
        "daemon at B killed (-9) while it builds: A has built and published", seconds(killed, time.time())
    )
    table.add("left in staging/ then", ", ".join(sorted(a.names("staging"))) or "nothing")


def cut_off(
    fabric: Fabric, a: Node, b: Node, active: Daemon, commands: tuple[list[str], list[str]], table: Table
) -> None:
    """The active daemon's node, A, loses its network and comes back when B has published."""
    cut, mend = commands
    epoch = b.highest_epoch()
    subprocess.run(cut, check=True)
    began = time.time()
    try:
        wanted = commit(fabric, 5)
        wait_for(lambda: b.highest_epoch() > epoch, timeout=PATIENCE, message="nobody claimed the next epoch")
        table.add("A cut off from the server: B is the writer", seconds(began, time.time()))
        after = b.wait_for_commit(wanted)
        table.add("A cut off from the server: B has published the next commit", seconds(began, time.time()))
    finally:
        subprocess.run(mend, check=True)
    back = time.time()
    ended = active.wait_for_event("turn as the writer ended")
    table.add("A is back: it stands by", f"{seconds(back, time.time())}: {ended['error']}")
    now = b.index()
    table.add("index and epoch then", "as B left them" if now == after else "**changed**")
    if now != after:
        raise SystemExit(f"A published after it was deposed: {now}")
