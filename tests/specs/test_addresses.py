"""Addresses of sources: only what begins, part by part, like a listed one; nothing that others read differently."""

import pytest

from envfabric.core.errors import Reason, SpecError
from envfabric.specs.addresses import is_listed, parse_address
from envfabric.specs.policy import Policy
from envfabric.specs.spec import read_spec

LISTED = (
    "https://wheels.example/team/",
    "git+https://git.example/team/repo.git",
    "ssh://git@git.example/team",
)
HEAD = '[project]\nname = "wf-a"\nversion = "0.1.0"\n'
WHEEL = "https://wheels.example/team/tool-1.0-py3-none-any.whl"


@pytest.mark.parametrize(
    ("text", "git"),
    [
        (WHEEL, False),
        ("https://wheels.example:443/team/a/b/tool-1.0-py3-none-any.whl", False),
        ("HTTPS://WHEELS.example/team/x.whl", False),
        (f"{WHEEL}#sha256={'0' * 64}", False),
        ("https://wheels.example/te%61m/x.whl", False),
        ("https://git.example/team/repo.git", True),
        ("git+https://git.example/team/repo.git@v1.0", True),
        ("git+https://git.example/team/repo.git@feature/x#subdirectory=pkg/a", True),
        ("ssh://git@git.example/team/other.git", True),
    ],
)
def test_listed_addresses(text: str, git: bool) -> None:
    """Whatever lies below a listed address is listed, in each spelling that means the same place."""
    assert is_listed(parse_address(text, git=git), LISTED)


@pytest.mark.parametrize(
    "text",
    [
        "https://wheels.example/team-evil/x.whl",
        "https://wheels.example/other/x.whl",
        "https://wheels.example/TEAM/x.whl",
        "https://wheels.example/",
        "https://wheels.example.evil.example/team/x.whl",
        "https://evil.example/wheels.example/team/x.whl",
        "https://wheels.example./team/x.whl",
        "https://wheels.example:8443/team/x.whl",
        "http://wheels.example/team/x.whl",
        "https://wheels.example/team/../other/x.whl",
        "https://wheels.example/team/%2e%2e/other/x.whl",
        "https://wheels.example/team/%2E./other/x.whl",
        "https://wheels.example/team/..%2fother/x.whl",
        "https://wheels.example/team/%252e%252e/x.whl",
        "https://wheels.example/team//x.whl",
        "https://wheels.example/team/x.whl?to=https://evil.example",
        "https://wheels.example/team/${UV_INDEX_TEAM_PASSWORD}.whl",
        "https://wheels.example\\@evil.example/team/x.whl",
        "https://wheels.example@evil.example/team/x.whl",
        "https://user:hidden@wheels.example/team/x.whl",
        "https://@wheels.example/team/x.whl",
        "https://wheels.example/team/x.whl#subdirectory=../../x",
        "https://wheels.example/team/x.whl#subdirectory=/etc",
        "https://wheels.example/team/x.whl#https://evil.example",
        "https://wheels.example/team/x.whl\nX: y",
        "https://wheels.example/team/\u0445.whl",
        "https://wheels\u3002example/team/x.whl",
        "https://[wheels.example/team/x.whl",
        "https://wheels.example:99999/team/x.whl",
        "https:wheels.example/team/x.whl",
        "//wheels.example/team/x.whl",
        "file:///team/x.whl",
        "ssh://git@wheels.example/team/x.whl",
        "/team/x.whl",
        "x.whl",
        "",
        "https://wheels.example/team/" + "x" * 3000,
    ],
)
def test_other_addresses(text: str) -> None:
    """What only looks like a listed address, or could be read as another one, is not listed."""
    try:
        address = parse_address(text)
    except ValueError as error:
        assert "hidden" not in str(error)
        return
    assert not is_listed(address, LISTED)


@pytest.mark.parametrize(
    "text",
    [
        "git+https://git.example/team/repo",
        "git+https://git.example/team/repo.git.evil",
        "git+https://git.example/team/repo.git@v1@evil.example/x",
        "git+https://git.example/team/repo.git@../../other",
        "git+ssh://git@wheels.example/team/x",
        "git+ssh://other@git.example/team/x",
        "git+ssh://git.example/team/x",
        "git+ext::sh -c touch% /tmp/x",
        "git+file:///srv/repo.git",
        "git@git.example:team/repo.git",
        "git://git.example/team/repo.git",
    ],
)
def test_other_repositories(text: str) -> None:
    """Other repositories, users, transports and forms than the listed ones are not listed."""
    try:
        address = parse_address(text, git=True)
    except ValueError:
        return
    assert not is_listed(address, LISTED)


def test_broken_listing_allows_nothing() -> None:
    """A setting that is no address allows nothing, instead of everything."""
    for prefix in ("", "https://", "/", "*", "https://*/", "wheels.example"):
        assert not is_listed(parse_address(WHEEL), (prefix,))


def read(text: str, policy: Policy) -> None:
    read_spec("wf/a", "0" * 40, {"pyproject.toml": (HEAD + text).encode()}, policy)


@pytest.mark.parametrize(
    "text",
    [f'dependencies = ["tool @ {WHEEL}"]\n', f'[tool.uv.sources]\ntool = {{ url = "{WHEEL}" }}\n',
     f'[dependency-groups]\nx = ["tool @ {WHEEL} ; sys_platform == \'linux\'"]\n'],
)  # fmt: skip
def test_listed_wheel_is_taken(text: str) -> None:
    """A wheel at a listed address may be named, and under no other listing."""
    read(text, Policy(sources=LISTED))
    for sources in ((), ("https://other.example/",)):
        with pytest.raises(SpecError) as caught:
            read(text, Policy(sources=sources))
        assert caught.value.reason is Reason.POLICY


@pytest.mark.parametrize(
    "text",
    ['dependencies = ["tool @ https://wheels.example/team/tool-1.0.tar.gz"]\n',
     'dependencies = ["tool @ git+https://git.example/team/repo.git@v1"]\n',
     '[tool.uv.sources]\nTool = { git = "https://git.example/team/repo.git", rev = "v1" }\n',
     '[tool.uv.sources]\ntool = { git = "ssh://git@git.example/team/x", subdirectory = "a/b" }\n'],
)  # fmt: skip
def test_what_is_built_needs_its_name(text: str) -> None:
    """A source distribution or repository at a listed address runs code: its name has to be listed, too."""
    with pytest.raises(SpecError, match=r"built from source.*policy\.build_from_source") as caught:
        read(text, Policy(sources=LISTED))
    assert caught.value.reason is Reason.POLICY
    read(text, Policy(sources=LISTED, build_from_source=frozenset({"tool"})))


@pytest.mark.parametrize(
    "source",
    ['{ path = "../lib" }', "{ workspace = true }", '{ git = "https://git.example/team/repo.git", path = "." }',
     '{ url = "https://wheels.example/team/x.whl", editable = true }',
     '{ git = "https://git.example/team/repo.git", subdirectory = "../x" }',
     '{ git = "https://git.example/team/repo.git", subdirectory = "/x" }',
     '{ git = "https://git.example/team/repo.git", rev = "--upload-pack=x" }',
     '{ git = "https://git.example/team/repo.git", lfs = true }',
     '{ index = "a", url = "https://wheels.example/team/x.whl" }', '{ marker = "os_name == \'x\'" }'],
)  # fmt: skip
def test_listing_opens_nothing_else(source: str) -> None:
    """Path and workspace sources stay refused, and so does what climbs or is meant as an option."""
    with pytest.raises(SpecError) as caught:
        read(
            f"[tool.uv.sources]\ntool = {source}\n",
            Policy(sources=LISTED, build_from_source=frozenset({"tool"})),
        )
    assert caught.value.message.startswith("wf/a/pyproject.toml:5: ")
