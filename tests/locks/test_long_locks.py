"""A long uv.lock is read apart from the daemon: what is in it decides neither the daemon's time nor its memory."""

import tomllib
from typing import Any

import pytest

from envfabric.core.errors import Reason, SpecError
from envfabric.specs import apart
from envfabric.specs.toml import parse_toml

WHERE = "wf/a/uv.lock"
FILES = "https://files.example/packages/12/7b/a8708616b3810f55ead66f8e189afa9474795760473aea734bbea536cd64"


def lock_of(packages: int) -> str:
    """As uv writes it, each package with fourteen wheels."""
    wheels = "".join(
        f'    {{ url = "{FILES}/one-1.{n}-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", '
        f'hash = "sha256:{n:064d}", size = 1224854, upload-time = "2025-06-18T09:00:09.676Z" }},\n'
        for n in range(12)
    )
    blocks = [
        f'\n[[package]]\nname = "one-{n}"\nversion = "1.{n}"\nsource = {{ registry = "https://index.example" }}\n'
        f'dependencies = [\n    {{ name = "two", marker = "os_name == \'nt\'" }},\n]\nwheels = [\n{wheels}]\n'
        for n in range(packages)
    ]
    return "version = 1\n" + "".join(blocks)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the texts that tomllib reads in this process."""
    seen: list[int] = []
    real = tomllib.loads

    def loads(text: str, **details: Any) -> dict[str, Any]:
        seen.append(len(text))
        return real(text, **details)

    monkeypatch.setattr(tomllib, "loads", loads)
    return seen


def test_long_lock_is_read_as_it_is(here: list[int]) -> None:
    """The lock of a thousand packages with all their wheels is within the bounds, and read as tomllib reads it."""
    text = lock_of(1000)
    assert len(text) > 3_500_000
    assert parse_toml(text.encode(), WHERE)["package"][999]["version"] == "1.999"
    assert here == []
    short = lock_of(100)
    assert parse_toml(short.encode(), WHERE) == tomllib.loads(short)


HOSTILE = {
    "dotted": "\n".join(f"[t{n}]\n" + ".".join("a" * 60) + "=1" for n in range(9000)),
    "lists": "a=[" + "[]," * 300_000 + "]",
    "headers": "[[a]]\n" * 260_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_lock_made_to_take_long_is_refused(
    kind: str, here: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text that costs tomllib many times what a lock costs is read elsewhere, within bounds, and refused with them."""
    monkeypatch.setattr(apart, "CPU", 2)
    with pytest.raises(SpecError) as caught:
        parse_toml(HOSTILE[kind].encode(), WHERE)
    assert caught.value.reason is Reason.INVALID_SPEC
    assert caught.value.message.startswith(f"{WHERE}: ")
    assert any(told in caught.value.message for told in ("takes more than 2 s", "more than 250000 tables"))
    assert here == []


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("x = ]\n", ":1901: not valid TOML: Invalid value"),
        ("x = " + "[" * 5000 + "]" * 5000, ": nested too deeply."),
        ("x = " + "1" * 5000, "uv.lock: Exceeds the limit"),
    ],
)
def test_errors_are_those_of_a_short_one(end: str, told: str) -> None:
    """What is wrong with a long file, and in which line, is told as it is of a short one."""
    start = "version = 1\n[[package]]\n" + "".join(f'key{n} = "{"x" * 200}"\n' for n in range(1898))
    assert len(start) > 256 * 1024
    with pytest.raises(SpecError) as caught:
        parse_toml((start + end).encode(), WHERE)
    assert told in caught.value.message


def test_moments_of_a_long_lock_are_texts() -> None:
    """TOML's own moments, which uv does not write, come as texts that can be read as the same moment."""
    text = lock_of(100).replace('"2025-06-18T09:00:09.676Z"', "2025-06-18T09:00:09Z")
    wheel = parse_toml(text.encode(), WHERE)["package"][0]["wheels"][0]
    assert wheel["upload-time"] == "2025-06-18 09:00:09+00:00"


def test_too_long_a_lock_is_not_read() -> None:
    """Above four MiB the number of bytes and the bound are told, and nothing is read."""
    with pytest.raises(SpecError, match=r"has 4194305 bytes; at most 4194304 are read"):
        parse_toml(b"#" * (4 * 1024 * 1024 + 1), WHERE)
