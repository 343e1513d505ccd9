"""Bounds of one spec: what would cost uv or the daemon minutes or memory is refused before either works with it."""

import pytest

from envfabric.core.errors import Reason, SpecError
from envfabric.specs.policy import Policy
from envfabric.specs.spec import read_spec
from envfabric.specs.toml import line_of

HEAD = '[project]\nname = "wf-a"\nversion = "0.1.0"\n'


def refusal(text: str, policy: Policy | None = None, **others: bytes) -> SpecError:
    files = {"pyproject.toml": text.encode(), **{name.replace("_", "."): raw for name, raw in others.items()}}
    with pytest.raises(SpecError) as caught:
        read_spec("wf/a", "0" * 40, files, policy or Policy())
    return caught.value


def accepted(text: str, policy: Policy | None = None) -> None:
    read_spec("wf/a", "0" * 40, {"pyproject.toml": text.encode()}, policy or Policy())


def dependencies(*texts: str) -> str:
    return HEAD + "dependencies = [" + ", ".join(f'"{text}"' for text in texts) + "]\n"


@pytest.mark.parametrize(
    "texts",
    [
        [" or ".join(f"'{n}' in platform_machine" for n in range(21))],
        [f"'{n}' in platform_version" for n in range(21)],
        [f"platform_release == 'a and {n}' or os_name == '{n}'" for n in range(11)],
        [" or ".join(f"'3.{n}' > python_version" for n in range(21))],
        [f"python_version != '3.{n}'" for n in range(25)],
    ],
)
def test_markers_are_bounded_over_the_whole_spec(texts: list[str]) -> None:
    """Comparisons count once for all of a spec's requirements, and too many are refused with a reason."""
    error = refusal(dependencies(*(f"alpha; {text}" for text in texts)))
    assert (error.reason, "different comparisons" in error.message) == (Reason.INVALID_SPEC, True)


def test_markers_as_people_write_them_are_accepted() -> None:
    """Many requirements with the same few comparisons are an ordinary spec."""
    marker = "sys_platform == 'linux' and platform_machine == 'x86_64' and python_version < '3.14'"
    accepted(dependencies(*(f"package-{n}>=1,<2; {marker}" for n in range(500))))


@pytest.mark.parametrize(
    ("place", "where"),
    [
        ("[tool.uv]\nenvironments = {}\n", "tool.uv.environments"),
        ("[tool.uv]\nrequired-environments = {}\n", "tool.uv.required-environments"),
        ("[tool.uv]\noverride-dependencies = {}\n", "tool.uv.override-dependencies"),
        ("[dependency-groups]\nx = {}\n", "dependency-groups.x"),
    ],
)
def test_markers_count_wherever_they_stand(place: str, where: str) -> None:
    """Environments, overrides and groups are bounded like requirements."""
    marker = " or ".join(f"'{n}' in platform_machine" for n in range(21))
    text = marker if "environments" in where else f"alpha; {marker}"
    error = refusal(HEAD + place.format(f'["{text}"]'))
    assert f": {where}: the markers of a spec" in error.message


@pytest.mark.parametrize(
    "value", ['["no marker"]', "[3]", "3", '["os_name == ' + "'x'" + '"' + ', "a"' * 16 + "]"]
)
def test_environments_are_markers(value: str) -> None:
    """What is no list of a few markers is refused."""
    assert "tool.uv.environments" in refusal(f"{HEAD}[tool.uv]\nenvironments = {value}\n").message


def test_conflicts_are_bounded() -> None:
    """Many alternatives in one set are accepted; sets that multiply are not, because uv resolves for each way."""
    accepted(
        HEAD + "[tool.uv]\nconflicts = [[" + ", ".join(f'{{ extra = "a{n}" }}' for n in range(40)) + "]]\n"
    )
    pairs = ", ".join(f'[{{ extra = "a{n}" }}, {{ extra = "b{n}" }}]' for n in range(9))
    error = refusal(f"{HEAD}[tool.uv]\nconflicts = [{pairs}]\n")
    assert error.message.startswith(
        "wf/a/pyproject.toml:5: tool.uv.conflicts leaves more than 256 combinations"
    )


def test_number_of_requirements_is_bounded() -> None:
    """Requirements are counted over all lists together."""
    texts = ", ".join(f'"a{n}"' for n in range(1001))
    error = refusal(f"{HEAD}dependencies = [{texts}]\n[dependency-groups]\nx = [{texts}]\n")
    assert "dependency-groups.x: a spec may have 2000 requirements" in error.message


@pytest.mark.parametrize(
    "text", ["a" * 5000, "a; " + "(" * 60 + "os_name == 'x'" + ")" * 60, "a>=" + "1" * 5000]
)
def test_length_of_a_requirement_is_bounded(text: str) -> None:
    """A requirement that is too long or too deep is refused in a message that is not."""
    error = refusal(dependencies(text))
    assert "is too long" in error.message
    assert len(error.message) < 300


@pytest.mark.parametrize("levels", [31, 100])
def test_depth_is_bounded(levels: int) -> None:
    """Values may lie 32 levels inside of each other, anywhere in the file; the parser's own limit is not reached."""
    text = HEAD + "[tool.x]\na = " + "[" * levels + "]" * levels + "\n"
    assert "at most 32 levels" in refusal(text).message


def test_long_name_is_refused() -> None:
    """The project's name stands in locks and messages: it has a length."""
    assert "at most 200 characters" in refusal(HEAD.replace("wf-a", "a" * 300)).message


@pytest.mark.parametrize(
    "line", ["[" + " " * 100_000, "[[" + " " * 100_000 + "x", "a" * 100_000, " " * 100_000 + "="]
)
def test_finding_the_line_takes_no_time(line: str) -> None:
    """Lines that an expression could read in many ways are passed over: the test ends."""
    assert line_of(f"{line}\n[tool.uv]\ncache-dir = 1\n".encode(), "tool.uv.cache-dir is not allowed") == 3


def test_line_is_counted_as_editors_do() -> None:
    """Characters that only Unicode takes for a line's end do not shift the line of a refusal."""
    error = refusal(f'{HEAD}# \x85\u2028\u2029\n[tool.uv]\ncache-dir = "x"\n')
    assert error.message.startswith("wf/a/pyproject.toml:6: tool.uv.cache-dir")


@pytest.mark.parametrize(
    "text",
    ['[tool.envfabric]\n"\\u001b[2J" = 1\n', '[tool.uv]\n"\\u001b[2J" = 1\n', '[tool.uv.sources]\n"\\u001b" = 1\n',
     '[dependency-groups]\n"\\u202e" = 1\n', '[[tool.uv.index]]\nurl = "http://\\u001b"\n',
     '[tool.envfabric]\nextras = ["\\u001b"]\n', 'requires-python = "\\u001b"\n', 'dynamic = ["\\u001b"]\n',
     '[a."\\u001b"]\nx = 1\n[[a."\\u001b"]]\n'],
)  # fmt: skip
def test_nothing_unprintable_is_in_a_message(text: str) -> None:
    """What a spec says is quoted in terminals and pages: escapes and marks of direction are spelled out."""
    assert refusal(HEAD + text).message.isprintable()


@pytest.mark.parametrize("value", ["\\u0000", "\\u001b[2J", "\\u007f", "x\\r\\ny"])
@pytest.mark.parametrize("line", ['env_vars = {{ A = "{}" }}', 'working_dir = "{}"', 'excludes = ["{}"]'])
def test_control_characters_reach_no_consumer(line: str, value: str) -> None:
    """A NUL would end the start of a process, an escape paints a terminal; line ends and tabs are values."""
    table = "[tool.envfabric.runtime-env]\n"
    refused = refusal(f"{HEAD}{table}{line.format(value)}\n")
    assert refused.reason is Reason.INVALID_SPEC
    accepted(HEAD + table + line.format("a\\nb\\tc") + "\n")


def test_lists_of_the_own_table_are_bounded() -> None:
    """What goes into index.json for everybody to read has a length."""
    pairs = ", ".join(f'A{n} = "x"' for n in range(501))
    error = refusal(f"{HEAD}[tool.envfabric.runtime-env]\nenv_vars = {{ {pairs} }}\n")
    assert "tool.envfabric.runtime-env.env_vars" in error.message


@pytest.mark.parametrize(
    "line",
    ['# postgres://me:hidden@db.example/x', '[tool.other]\nurl = "https://me:hidden@x.example/"',
     '[tool.envfabric.runtime-env.env_vars]\nA = "redis://:hidden@x.example/0"',
     '[tool.envfabric.runtime-env]\nworking_dir = "https://me:hidden@x.example/a.zip"'],
)  # fmt: skip
def test_password_in_a_url_is_refused(line: str) -> None:
    """The files of a spec are kept on the NAS for everybody: a password in one is told of, and not repeated."""
    error = refusal(f"{HEAD}{line}\n")
    last = 3 + line.count("\n") + 1
    assert error.message.startswith(f"wf/a/pyproject.toml:{last}: a URL with a password")
    assert "hidden" not in error.message


def test_password_in_a_lock_is_refused() -> None:
    """A committed lock is kept on the NAS, too."""
    error = refusal(HEAD, uv_lock=b'version = 1\nx = "https://me:hidden@x.example/"\n')
    assert error.message.startswith("wf/a/uv.lock:2: a URL with a password")


@pytest.mark.parametrize(
    "url",
    ["https://me@x.example/", "postgres://me:$PASSWORD@x/", "https://<user>:<password>@x/", "http://x:80/@y"],
)
def test_no_password_is_no_secret(url: str) -> None:
    """A user's name, or what stands there for a password, is none."""
    accepted(f'{HEAD}[tool.envfabric.runtime-env.env_vars]\nA = "{url}"\n')


def test_uv_keys_come_from_the_policy() -> None:
    """A shorter list refuses what the default one allows, a longer one the other way round; the message names it."""
    text = f'{HEAD}[tool.uv]\nprerelease = "allow"\n'
    accepted(text)
    error = refusal(text, Policy(uv_keys=frozenset({"sources"})))
    assert "tool.uv.prerelease is not allowed" in error.message
    assert "policy.uv_keys" in error.message
    assert "Allowed are: sources." in error.message
    accepted(f"{HEAD}[tool.uv]\nmanaged = true\n", Policy(uv_keys=frozenset({"managed"})))


@pytest.mark.parametrize(
    "table",
    ["[tool.uv]\nexclude-newer-package = { alpha = false }\n",
     '[[tool.uv.index]]\nurl = "https://x.example/simple"\nexclude-newer = "2099-01-01"\n'],
)  # fmt: skip
def test_no_exception_to_a_cooldown(table: str) -> None:
    """Where releases have to be old, no spec makes one of its own an exception."""
    indexes = ("https://x.example/simple",)
    accepted(HEAD + table, Policy(indexes=indexes))
    error = refusal(HEAD + table, Policy(indexes=indexes, cooldown=1.0))
    assert (error.reason, "policy.cooldown" in error.message) == (Reason.POLICY, True)


def test_runtime_env_is_bounded_as_a_whole() -> None:
    """What every reader of the index has to read of one spec is bounded, and refused with the table's line."""
    head = dependencies() + "[tool.envfabric.runtime-env]\nenv_vars = { "
    accepted(head + ", ".join(f'A{n} = "{"x" * 300}"' for n in range(100)) + " }\n")
    error = refusal(head + ", ".join(f'A{n} = "{"x" * 300}"' for n in range(110)) + " }\n")
    assert error.reason is Reason.INVALID_SPEC
    assert "wf/a/pyproject.toml:5: tool.envfabric.runtime-env: has 34" in error.message
    assert "at most 32768 are read" in error.message
