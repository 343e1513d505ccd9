"""A committed lock is what uv reads in it: one that could be read in two ways is refused, or stands for itself only."""

import pytest

from envfabric.build.lockfile import neutral, read_lock
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


@pytest.mark.parametrize("mark", ["'''", '"""', "\r\n"])
def test_text_over_lines_answers_for_itself_only(mark: str) -> None:
    """Moving an entry could make another lock of it: such a lock has no other's digest."""
    ones = [lock(GOOD, name=name) + f"# {mark}\n".encode() for name in ("wf-a", "wf-b")]
    assert neutral(ones[0]) != neutral(ones[1])
