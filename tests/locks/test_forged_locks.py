"""A committed lock is what uv reads in it: one that could be read in two ways is refused, or stands for itself only."""

import pytest

from envfabric.build.lockfile import neutral, read_lock
from envfabric.core.errors import Reason, SpecError
from envfabric.specs.policy import Policy

HEAD = 'version = 1\nrevision = 3\nrequires-python = ">=3.11"\n'
OWN = '\n[[package]]\nname = "{name}"\nversion = "0.1.0"\nsource = {{ virtual = "." }}\n'
INDEX = "https://index.example/simple"


def package(url: str, registry: str = INDEX) -> str:
    return (
        f'\n[[package]]\nname = "alpha"\nversion = "1.0"\nsource = {{ registry = "{registry}" }}\n'
        f'wheels = [\n    {{ url = "{url}", hash = "sha256:{"0" * 64}" }},\n]\n'
    )


def lock(*packages: str, name: str = "wf-a") -> bytes:
    return (HEAD + "".join(packages) + OWN.format(name=name)).encode()


GOOD = package("https://files.example/alpha-1.0-py3-none-any.whl")


def test_plain_lock_is_read() -> None:
    """What uv writes is read, and means the same for a project of any name."""
    assert read_lock(lock(GOOD), "wf/a/uv.lock", Policy()).names() == {"alpha"}
    assert neutral(lock(GOOD)) == neutral(lock(GOOD, name="wf-b"))


@pytest.mark.parametrize(
    "file",
    [
        "alpha%2D1.0-cp311-none-any.whl",
        "%61lpha-1.0-py3-none-any.whl",
        "alpha-1.0-py3-none-any.whl?x=1",
        "alpha-1.0-py3-none-any%2Ewhl",
        "beta-1.0-py3-none-any.whl",
        "alpha-2.0-py3-none-any.whl",
        "alpha.whl",
    ],
)
def test_name_that_could_be_another_is_refused(file: str) -> None:
    """A wheel is looked at by the name that uv installs it by, also where a good one is listed beside it."""
    both = GOOD.replace("wheels = [\n", f'wheels = [\n    {{ url = "https://files.example/{file}" }},\n')
    with pytest.raises(SpecError, match=r"no plain name of a wheel of alpha 1\.0") as caught:
        read_lock(lock(both), "wf/a/uv.lock", Policy())
    assert caught.value.reason is Reason.POLICY


def test_one_index_in_two_spellings_is_refused() -> None:
    """Two entries of one release could be chosen from otherwise here than by uv."""
    twice = lock(GOOD, package("https://files.example/evil/alpha-1.0-py3-none-any.whl", f"{INDEX}/"))
    with pytest.raises(SpecError, match="from one index twice"):
        read_lock(twice, "wf/a/uv.lock", Policy())


@pytest.mark.parametrize("mark", ["'''", '"""', "\r\n"])
def test_text_over_lines_answers_for_itself_only(mark: str) -> None:
    """Moving an entry could make another lock of it: such a lock has no other's digest."""
    ones = [lock(GOOD, name=name) + f"# {mark}\n".encode() for name in ("wf-a", "wf-b")]
    assert neutral(ones[0]) != neutral(ones[1])
