"""A few of the kill rounds, so that the command itself is known to work; CI plays 300 of them beside the tests."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from envfabric.store.files import Files
from faults.checks import at_rest, while_down
from faults.daemons import Barracks, Dead
from faults.drawing import RECOVERY, Drawing
from faults.ground import Ground, Packages
from faults.kinds import kind_of, run_kind
from faults.rounds import play
from faults.story import Story


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """A fabric with an empty ROOT."""
    packages = Packages(tmp_path / "packages")
    with packages:
        ground = Ground(tmp_path, packages)
        ground.new_root()
        yield ground
        # What is sealed an ordinary user removes only this way.
        Files().remove_tree(ground.root.path)


@pytest.fixture
def barracks(ground: Ground) -> Iterator[Barracks]:
    """What starts daemons on it."""
    with Barracks(ground.fabric.folder, ground.fabric.environment) as barracks:
        yield barracks


@pytest.mark.timeout(600)
def test_rounds_end_well(tmp_path: Path) -> None:
    """Killed at six moments of its work, the daemon leaves a working index each time and comes back to it."""
    some = ("change", "new", "rollback", "gc", "restart")
    result = play(tmp_path, rounds=6, seed=7, operations=some, profiles=1)
    Files().remove_tree(tmp_path / "nas")
    assert result.rounds == 6
    # A moment may not come, where a machine is busy; most do.
    assert result.kills >= 3
    assert sum(result.drawing.hits.values()) == result.kills + result.restarts_killed
    assert len(result.drawing.seen) > 60
    assert result.looks > 0


def test_daemon_dies_at_its_moment(ground: Ground, barracks: Barracks) -> None:
    """A daemon that is armed for a step is killed at that step and says so; the next one is not, and goes on."""
    story = Story(ground, random.Random(1))
    story.begin()
    victim = barracks.start(ground.config, [("rename index.json", 1, 0.0)])
    with pytest.raises(Dead, match=r"rename index\.json"):
        victim.wait_settled(ground.commit)
    assert not ground.root.index.exists()
    barracks.start(ground.config, []).wait_settled(ground.commit)
    at_rest(ground, story)


def test_drawing_leaves_where_a_moment_does_not_come() -> None:
    """A kind that was seen once by chance in a cheap operation is tried in the costly one where it is at home."""
    drawing = Drawing(random.Random(1), ["first start"])
    drawing.learn("interrupt", {"uv pip runs": 1})
    drawing.learn("first start", {"uv pip runs": 1})
    drawn = []
    for _ in range(30):
        moment = drawing.draw()
        drawn.append(moment.operation)
        drawing.miss(moment)
    assert drawn.count("first start") >= 10


def test_checks_notice(ground: Ground, barracks: Barracks) -> None:
    """Each thing that a round looks for is noticed where it is so."""
    story = Story(ground, random.Random(1))
    story.begin()
    victim = barracks.start(ground.config, [])
    victim.wait_settled(ground.commit)
    victim.stop()
    at_rest(ground, story)

    spec_id = sorted(story.specs)[0]
    one, entry = story.specs[spec_id], ground.fabric.entry(spec_id)
    closure = ground.root.closure(entry["serving"])

    one.serves, serves = ("alpha==7.0",), one.serves
    with pytest.raises(AssertionError, match=f"{spec_id} is .*an undisturbed run gives"):
        at_rest(ground, story)
    one.serves = serves

    left = ground.root.state / f".left.{'0' * 32}"
    left.touch()
    with pytest.raises(AssertionError, match="left half-written"):
        at_rest(ground, story)
    left.unlink()

    record = ground.root.state / "usage" / closure.name
    kept = record.read_bytes()
    record.unlink()
    with pytest.raises(AssertionError, match="the account"):
        at_rest(ground, story)
    record.write_bytes(kept)

    pin = ground.root.state / "pins" / f"{spec_id}.json"
    pin.parent.mkdir(parents=True)
    pin.write_text(f'{{"generation": 1, "tree": "{entry["tree"]}"}}')
    with pytest.raises(AssertionError, match="the pins are"):
        at_rest(ground, story)
    pin.unlink()

    link = ground.root.envs / spec_id
    target = link.readlink()
    link.unlink()
    with pytest.raises(AssertionError, match="envs/ has"):
        at_rest(ground, story)
    link.symlink_to(target)

    at_rest(ground, story)
    ground.damage(closure.name, shared=True)
    with pytest.raises(AssertionError, match=r"served and not whole: .*base\.txt"):
        while_down(ground, story)
    with pytest.raises(AssertionError, match=r"verify: .*base\.txt"):
        at_rest(ground, story)

    closure.rename(closure.with_name("away"))
    with pytest.raises(FileNotFoundError, match=closure.name):
        while_down(ground, story)


def test_kinds_without_a_hit_come_first() -> None:
    """Kinds without a hit are drawn before all others, and so are those that only a restart has."""
    drawing = Drawing(random.Random(1))
    drawing.learn("gc", {"rename trash/<closure>": 2, "write index.json": 1})
    drawing.learn(RECOVERY, {"remove staging/<build>": 1})
    drawing.hit("write index.json")
    assert {drawing.draw().kind for _ in range(20)} == {"rename trash/<closure>"}
    assert drawing.unhit == ["remove staging/<build>", "rename trash/<closure>"]
    arms = [arm for _ in range(20) for arm in drawing.draw_recovery()]
    assert ("remove staging/<build>", 1, 0.0) in arms
    drawing.hit("rename trash/<closure>")
    assert {drawing.draw().kind for _ in range(40)} == {"rename trash/<closure>", "write index.json"}


@pytest.mark.parametrize(
    ("operation", "path", "kind"),
    [
        ("rename", "store/0123456789abcdef0123-2", "rename store/*-<n>"),
        ("write", "index.json", "write index.json"),
        ("mkdir", "staging/0123456789abcdef0123/closure", "mkdir staging/<build>/closure"),
        ("rename", "generations/wf/a/12", "rename generations/<workflow>/<node>/<n>"),
        ("remove", "staging/.index.json.0123456789abcdef0123", "remove staging/<file>"),
        ("remove", "staging/0123456789abcdef0123/asking-0", "remove staging/<build>/<part>"),
        ("link", "locks/epoch-12", "link locks/epoch-<n>"),
        ("write", "state/pins/wf/a.json", "write state/pins/*"),
        ("link", "staging/probe-0123456789abcdef/12", "link staging/ by the probe"),
        ("mkdir", "bytecode/0a", "mkdir bytecode/<folder>"),
        ("link", f"bytecode/0a/{'0a' * 32}.cpython-311-a70d0d0a-30b07f0.1", "link bytecode/<compiled>"),
        ("write", f"bytecode/0a/{'0a' * 32}.cpython-311-a70d0d0a-30b07f0.bad", "write bytecode/*.bad"),
        (
            "write",
            "staging/0123456789abcdef0123/compile.0123456789abcdef0123",
            "write staging/<build>/compile.*",
        ),
    ],
)
def test_kinds_have_no_names_of_their_own(operation: str, path: str, kind: str) -> None:
    """The same step of two builds is one kind."""
    root = Path("/nas")
    assert kind_of(root, operation, root / path) == kind


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["sync", "--frozen", "--extra=a", "--python", "/x"], "uv sync runs"),
        (["sync", "--frozen", "--dry-run"], "uv sync --dry-run runs"),
        (["cache", "prune"], "uv cache prune runs"),
        (["--version"], None),
    ],
)
def test_uv_kinds(arguments: list[str], kind: str | None) -> None:
    """Of uv's arguments only the command tells a kind."""
    assert run_kind(["/bin/uv", *arguments]) == kind


def test_compiler_is_a_kind() -> None:
    """So is the interpreter that compiles, and one that is only asked what it is is none."""
    compiler = ["/bin/python3", "-I", "-S", "/x/compiler.py"]
    assert run_kind([*compiler, "compile", "/nas/staging/1/compile.1", "2"]) == "compiler runs"
    assert run_kind([*compiler, "facts"]) is None
