"""What a spec may not say: each refusal gives a reason, the file and line, and what to do instead."""

import re
import tracemalloc

import pytest

from envfabric.core.errors import Reason, SpecError
from envfabric.specs.policy import Policy
from envfabric.specs.spec import read_spec

HEAD = '[project]\nname = "wf-a"\nversion = "0.1.0"\n'
INDEX = "https://packages.example/simple"
INVALID, POLICY = Reason.INVALID_SPEC, Reason.POLICY


def refusal(text: str | bytes) -> SpecError:
    """What is said of a spec that is refused."""
    raw = text.encode() if isinstance(text, str) else text
    with pytest.raises(SpecError) as caught:
        read_spec("wf/a", "0" * 40, {"pyproject.toml": raw}, Policy(indexes=(INDEX,)))
    return caught.value


def line_of(text: str, part: str) -> int:
    """The number of the one line that has `part`."""
    (number,) = [number for number, line in enumerate(text.splitlines(), 1) if part in line]
    return number


def check(text: str, part: str, reason: Reason, says: list[str]) -> None:
    """The refusal has this reason, names file and line of `part`, and says these words."""
    error = refusal(text)
    assert error.reason is reason, error.message
    assert error.message.startswith(f"wf/a/pyproject.toml:{line_of(text, part)}: "), error.message
    for words in says:
        assert words in error.message


@pytest.mark.parametrize(
    ("text", "line"),
    [(HEAD + 'x = "unclosed\n', 4), (HEAD + "dependencies = [\n'a'\n'b'\n]\n", 6), ("[project\n", 1),
     (HEAD + 'name = "twice"\n', 4), ("\ufeff" + HEAD, 1)],
)  # fmt: skip
def test_broken_toml_names_its_line(text: str, line: int) -> None:
    """TOML that can't be parsed is refused with the line where it breaks off."""
    error = refusal(text)
    assert error.reason is INVALID
    assert error.message.startswith(f"wf/a/pyproject.toml:{line}: not valid TOML: ")
    assert "at line" not in error.message


def test_other_encoding_is_refused() -> None:
    """A pyproject.toml in another encoding than UTF-8 is refused, and says so."""
    error = refusal(HEAD.encode() + 'description = "Ü"\n'.encode("latin-1"))
    assert error.reason is INVALID
    assert error.message.startswith("wf/a/pyproject.toml is not UTF-8")


@pytest.mark.parametrize("text", ["", "[tool.uv]\n", 'project = "x"\n', "[[project]]\n"])
def test_project_table_is_required(text: str) -> None:
    """Without a [project] table there is no spec; the message says what to add."""
    error = refusal(text)
    assert error.reason is INVALID
    assert "wf/a/pyproject.toml" in error.message
    assert "add one with name, version and dependencies" in error.message


@pytest.mark.parametrize(
    "name", ['""', '"-a"', '"a-"', '"a b"', '"a/b"', '"a\\n"', '"é"', "3", '["a"]', '"../a"']
)
def test_name_must_be_a_package_name(name: str) -> None:
    """A name that no package can have is refused: it is written into locks."""
    text = f'[project]\nname = {name}\nversion = "1"\n'
    check(text, "name", INVALID, ["project.name must be a package name"])


def test_missing_name_is_refused() -> None:
    """A project without a name is refused."""
    error = refusal('[project]\nversion = "1"\n')
    assert (error.reason, "project.name must be" in error.message) == (INVALID, True)


@pytest.mark.parametrize(
    "line", ["", "version = 1\n", 'version = ""\n', 'version = "one"\n', 'version = "1.0.x"\n']
)
def test_version_must_be_written_down(line: str) -> None:
    """A missing or impossible version is refused, with an example of a good one."""
    error = refusal(f'[project]\nname = "wf-a"\n{line}')
    assert error.reason is INVALID
    assert "project.version " in error.message
    assert '"0.1.0"' in error.message
    assert error.message.startswith("wf/a/pyproject.toml")


@pytest.mark.parametrize("fields", ['["version"]', '["dependencies"]', '["version", "readme"]'])
def test_dynamic_metadata_is_refused_by_policy(fields: str) -> None:
    """`dynamic` would run the project's own backend while locking; the message says what to write."""
    text = f'[project]\nname = "wf-a"\ndynamic = {fields}\n'
    check(text, "dynamic", POLICY, ["would run the project's own build backend", 'version = "0"'])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("suspended = true", "did you mean 'suspend'?"),
        ("extra = []", "did you mean 'extras'?"),
        ('validation = "minimal"', "did you mean 'validate'?"),
        ("runtime_env = {}", "did you mean 'runtime-env'?"),
        ("zzz = 1", "known keys are: python, extras, groups, suspend, ray, validate"),
        ("runtime-env = { envvars = {} }", "did you mean 'env_vars'?"),
    ],
)
def test_unknown_key_names_the_nearest(line: str, says: str) -> None:
    """An unknown key of the own table is an error that names the nearest known one."""
    error = refusal(f"{HEAD}[tool.envfabric]\n{line}\n")
    assert error.reason is INVALID
    assert says in error.message
    assert error.message.startswith("wf/a/pyproject.toml:")


@pytest.mark.parametrize(
    "line",
    ["python = 3.11", 'extras = "gpu"', 'groups = { a = 1 }', 'suspend = "yes"', "suspend = 1", 'ray = "yes"',
     'validate = "some"', 'imports = ["a b"]', 'command = "python -V"', 'imports = ["os;x"]',
     "runtime-env = { env_vars = { A = 4 } }", 'runtime-env = { env_vars = { "A B" = "4" } }',
     "runtime-env = { working_dir = 1 }", 'runtime-env = { excludes = "*.log" }', 'python = "latest"',
     'python = "/usr/bin/python3"', 'python = ""', 'python = "3"', 'python = "cpython3.11"'],
)  # fmt: skip
def test_wrong_types_are_refused(line: str) -> None:
    """A value of another type or form than the key takes is refused by the key's name, without guessing."""
    error = refusal(f"{HEAD}[tool.envfabric]\n{line}\n")
    assert error.reason is INVALID
    assert f"tool.envfabric.{line.split(' ')[0]}" in error.message
    assert error.message.startswith("wf/a/pyproject.toml:")


def test_own_table_must_be_a_table() -> None:
    """[tool.envfabric] that is no table is refused."""
    check(f"{HEAD}[tool]\nenvfabric = 3\n", "envfabric", INVALID, ["[tool.envfabric] must be a table"])


@pytest.mark.parametrize(
    ("key", "declared"),
    [("extras", "[project.optional-dependencies]"), ("groups", "[dependency-groups]")],
)
def test_chosen_names_must_exist(key: str, declared: str) -> None:
    """An extra or group that the project does not define is refused with those that it does."""
    text = f'{HEAD}{declared}\nfirst = []\nsecond = []\n[tool.envfabric]\n{key} = ["wanting"]\n'
    check(text, "wanting", INVALID, [f"tool.envfabric.{key}", "'wanting'", "first, second"])


@pytest.mark.parametrize("mode", ["full", "custom"])
def test_executing_validation_is_refused_by_policy(mode: str) -> None:
    """Validation that runs the packages' code is refused, and the message names what is allowed."""
    text = f'{HEAD}[tool.envfabric]\nvalidate = "{mode}"\n'
    check(text, "validate", POLICY, ["on the builder", '"minimal"'])


@pytest.mark.parametrize(
    "source",
    ['{ path = "../lib" }', '{ git = "https://git.example/x" }', '{ url = "https://x.example/x.whl" }',
     "{ workspace = true }", '{ path = ".", editable = true }', '{ index = "a", path = "." }',
     '[{ index = "a" }, { git = "https://git.example/x" }]'],
)  # fmt: skip
def test_sources_outside_an_index_are_refused(source: str) -> None:
    """Path, git, URL, workspace and editable sources are refused, one in a list of good ones too."""
    text = f"{HEAD}[tool.uv.sources]\nlibrary = {source}\n"
    check(text, "library", POLICY, ["tool.uv.sources.library", "Publish the package"])


@pytest.mark.parametrize(
    "place",
    ["dependencies = {}", "[project.optional-dependencies]\nx = {}", "[dependency-groups]\nx = {}",
     "[tool.uv]\nconstraint-dependencies = {}", "[tool.uv]\noverride-dependencies = {}",
     "[tool.uv]\ndev-dependencies = {}", "[tool.uv]\nbuild-constraint-dependencies = {}"],
)  # fmt: skip
@pytest.mark.parametrize(
    "target", ["https://files.example/bad.whl", "file:///srv/bad.whl", "git+https://x.example/y"]
)
def test_direct_urls_are_refused_wherever_they_stand(place: str, target: str) -> None:
    """A requirement that names a URL or path is refused in every list that uv reads requirements from."""
    text = HEAD + place.format(f'["good", "bad @ {target}"]') + "\n"
    check(text, "bad @", POLICY, ["'bad' comes from a URL or path", "require a version"])


@pytest.mark.parametrize("text", ["not a requirement", "a >", "", "./lib", "a; nonsense"])
@pytest.mark.parametrize("place", ["dependencies = [{}]", "[dependency-groups]\nx = [{}]"])
def test_broken_requirements_are_refused(place: str, text: str) -> None:
    """What is no requirement is refused with the parser's reason, before uv sees it."""
    error = refusal(HEAD + place.format(f'"{text}"') + "\n")
    assert error.reason is INVALID
    assert f"{text!r} is no requirement" in error.message
    assert re.match(r"wf/a/pyproject\.toml:\d+: ", error.message)


@pytest.mark.parametrize(
    "line",
    ["dependencies = {}", 'dependencies = "a"', "dependencies = [3]", "optional-dependencies = []",
     'optional-dependencies = { x = "a" }', "requires-python = 3.11", 'requires-python = "3.11+"',
     'requires-python = "snake"'],
)  # fmt: skip
def test_project_keys_have_their_types(line: str) -> None:
    """Standard keys of another type than the standard's are refused by name."""
    check(f"{HEAD}{line}\n", line, INVALID, [line.split(" ")[0]])


@pytest.mark.parametrize(
    "line",
    ['no-binary-package = ["x"]', "no-binary = true", "workspace = {}", 'find-links = ["/srv"]', 'cache-dir = "/x"',
     'extra-index-url = ["https://x.example"]', 'index-url = "https://x.example"', 'link-mode = "copy"',
     "no-build-isolation = true", "dependency-metadata = []", 'python-preference = "system"', "managed = false",
     'allow-insecure-host = ["x"]', 'keyring-provider = "subprocess"', "no-build-package = []", "pip = {}",
     'build-backend = {}', 'anything-new = 1'],
)  # fmt: skip
def test_uv_keys_are_allowed_by_name(line: str) -> None:
    """A [tool.uv] key that is not on the list is refused, a new one of a later uv too."""
    key = line.split(" ")[0]
    check(
        f"{HEAD}[tool.uv]\n{line}\n", line, POLICY, [f"tool.uv.{key} is not allowed", "remove it", "sources"]
    )


@pytest.mark.parametrize(
    ("content", "reason", "says"),
    [
        ('url = "https://other.example/simple"', POLICY, "is not allowed; remove it, or have it added"),
        (f'url = "{INDEX}/../other"', POLICY, "is not allowed; remove it"),
        ('url = "https://user:hidden@packages.example/simple"', POLICY, "without credentials"),
        ('url = "file:///srv/wheels"', POLICY, "must be an http(s) URL"),
        ('url = "../wheels"', POLICY, "must be an http(s) URL"),
        ('url = "ssh://packages.example/simple"', POLICY, "must be an http(s) URL"),
        (f'url = "{INDEX}"\nauthenticate = "always"', POLICY, "tool.uv.index.authenticate is not allowed"),
        ('name = "no-url"', INVALID, "needs a url"),
        ("url = 3", INVALID, "needs a url"),
    ],
)
def test_indexes_come_from_the_policy(content: str, reason: Reason, says: str) -> None:
    """Only the policy's indexes may be named, over http(s), and no password is repeated in a message."""
    error = refusal(f"{HEAD}[[tool.uv.index]]\n{content}\n")
    assert (error.reason, says in error.message) == (reason, True), error.message
    assert "hidden" not in error.message + str(error)


@pytest.mark.parametrize("url", [INDEX, INDEX + "/"])
def test_allowed_index_and_its_sources_are_accepted(url: str) -> None:
    """An index of the policy may be named, with or without its last slash, and packages mapped to it."""
    text = (
        f'{HEAD}[[tool.uv.index]]\nname = "own"\nurl = "{url}"\nexplicit = true\n[tool.uv.sources]\n'
        'torch = [{ index = "own", marker = "sys_platform == \'linux\'" }]\n'
    )
    files = {"pyproject.toml": text.encode()}
    assert read_spec("wf/a", "0" * 40, files, Policy(indexes=(INDEX,))).name == "wf-a"


def test_monstrous_number_is_refused() -> None:
    """An integer of thousands of digits, which Python does not convert, is one spec's error."""
    error = refusal(f"{HEAD}x = {'1' * 5000}\n")
    assert error.reason is INVALID
    assert error.message.startswith("wf/a/pyproject.toml")
    assert len(error.message) < 500


@pytest.mark.parametrize("url", ["http://[x", "http://[x/simple", "http://[::1", "https://]"])
def test_index_that_is_no_url_is_refused(url: str) -> None:
    """A broken address of an index is refused like a wrong one, and never an unexpected error."""
    error = refusal(f'{HEAD}[[tool.uv.index]]\nurl = "{url}"\n')
    assert error.reason in {INVALID, POLICY}
    assert error.message.startswith("wf/a/pyproject.toml")


@pytest.mark.parametrize("value", ["3", '"x"', "[]", "true"])
def test_tool_must_be_a_table(value: str) -> None:
    """A `tool` that is no table is refused: what it should have said may not be passed over."""
    error = refusal(f"tool = {value}\n{HEAD}")
    assert (error.reason, "tool must be a table" in error.message) == (INVALID, True)
    assert error.message.startswith("wf/a/pyproject.toml:1: ")


def nested(levels: int) -> str:
    """Tables in tables, by keys of many parts on many lines: deeper than brackets alone can get."""
    key = ".".join("a" * 60)
    return f"{key} = [\n{{" * levels + f"{key} = 1" + "}]" * levels


@pytest.mark.parametrize(
    "conflicts",
    [
        "conflicts = " + "[" * 3000 + "]" * 3000,
        "conflicts." + "a." * 2999 + "a = 1",
        "conflicts." + nested(60),
    ],
    ids=["brackets", "one-key", "many-keys"],
)
def test_nesting_without_end_is_refused(conflicts: str) -> None:
    """A value that is nested thousands deep, in any way that TOML has, is one spec's error."""
    error = refusal(f"{HEAD}[tool.uv]\n{conflicts}\n")
    assert error.reason is INVALID
    assert error.message.startswith("wf/a/pyproject.toml")


@pytest.mark.parametrize("line", ["{} = 1", "[{}]", "[tool.x.{}]", "x = {{ {} = 1 }}"])
def test_key_of_a_thousand_parts_takes_no_memory(line: str) -> None:
    """A dotted key without end is refused by its line, before the parser's memory grows with its square."""
    text = HEAD + line.format(".".join("k" * 4000)) + "\n"
    tracemalloc.start()
    try:
        error = refusal(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error.reason is INVALID
    assert error.message.startswith("wf/a/pyproject.toml:4: a key of more than ")
    assert peak < 4_000_000


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[project]\nname = "a"\nversion = "1"\nrequires-python = ">=3.11"\n[tool.envfabric]\npyhton = "3.11"\n', 6),
        (f'{HEAD}[tool.envfabric]\nray = true\nextras = [1]\n', 6),
        (f'{HEAD}# extras = [1]\n[tool.envfabric]\nray = true\nextras = [1]\n', 7),
    ],
    ids=["like-another-key", "number-in-the-key", "comment"],
)  # fmt: skip
def test_line_is_that_of_the_key(text: str, line: int) -> None:
    """The line that a refusal names has the key that it is about, and not only a word that looks like it."""
    error = refusal(text)
    assert error.reason is INVALID
    assert error.message.startswith(f"wf/a/pyproject.toml:{line}: "), error.message
