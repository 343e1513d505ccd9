"""Reading one spec: what is accepted and how its Python is chosen; what it asks for, and what it does not."""

import json
from collections.abc import Mapping

import pytest

from envfabric.core.errors import Reason, SpecError
from envfabric.specs.policy import Policy
from envfabric.specs.spec import PythonRequest, Spec, inputs_digest, read_spec
from envfabric.specs.toml import MAX_BYTES

HEAD = '[project]\nname = "wf-a"\nversion = "0.1.0"\n'
RANGE = 'requires-python = ">=3.11"\n'
INDEX = "https://packages.example/simple"


def read(
    text: str | bytes, files: Mapping[str, bytes] | None = None, *, policy: Policy | None = None
) -> Spec:
    """A spec `wf/a` whose pyproject.toml is `text`."""
    raw = text.encode() if isinstance(text, str) else text
    content = {"pyproject.toml": raw, **(files or {})}
    return read_spec("wf/a", "0" * 40, content, policy or Policy(indexes=(INDEX,)))


def refusal(text: str | bytes, files: Mapping[str, bytes] | None = None) -> SpecError:
    """What is said of a spec that is refused."""
    with pytest.raises(SpecError) as caught:
        read(text, files)
    return caught.value


def test_plain_spec_is_read() -> None:
    """A spec gives its normalised name, its requirements with those of extras and groups, and its bytes."""
    text = (
        '[project]\nname = "Wf_A.b"\nversion = "0.1.0"\n'
        'dependencies = ["NumPy>=2", "tom_li[x]; python_version > \'3.11\'"]\n'
        '[project.optional-dependencies]\ngpu = ["torch"]\n'
        '[dependency-groups]\ndev = ["pytest", { include-group = "docs" }]\ndocs = ["Sphinx"]\n'
        "[build-system]\nrequires = []\n"
    )
    spec = read(text, {"uv.lock": b"lock", "README.md": b""})
    assert (spec.id, spec.tree, spec.name) == ("wf/a", "0" * 40, "wf-a-b")
    assert spec.requirements == {"numpy", "tom-li", "torch", "pytest", "sphinx"}
    assert (spec.pyproject, spec.lock, spec.python_version) == (text.encode(), b"lock", None)


def test_own_table_is_read() -> None:
    """Every key of [tool.envfabric] reaches the spec under its own name, and none is required."""
    text = (
        HEAD
        + "[project.optional-dependencies]\nGPU_x = []\n[dependency-groups]\nDocs = []\n[tool.envfabric]\n"
        'python = "3.11.7"\nextras = ["gpu-x"]\ngroups = ["docs"]\nsuspend = true\nray = true\nvalidate = "minimal"\n'
        'imports = ["a.b"]\ncommand = ["python", "-V"]\n[tool.envfabric.runtime-env]\n'
        'env_vars = { OMP_NUM_THREADS = "4" }\nworking_dir = "s3://bucket/code.zip"\nexcludes = ["*.log"]\n'
    )
    spec = read(text)
    assert (spec.table.extras, spec.table.groups) == (["gpu-x"], ["docs"])
    assert (spec.table.suspend, spec.ray) == (True, True)
    assert spec.table.runtime_env.model_dump() == {
        "env_vars": {"OMP_NUM_THREADS": "4"},
        "working_dir": "s3://bucket/code.zip",
        "excludes": ["*.log"],
    }
    bare = read(HEAD)
    assert (bare.table.extras, bare.table.groups, bare.table.suspend) == ([], [], False)
    assert bare.table.runtime_env.model_dump() == {"env_vars": {}, "working_dir": None, "excludes": []}


@pytest.mark.parametrize("said", [None, True, False])
@pytest.mark.parametrize("default", [True, False])
def test_ray_is_the_settings_unless_the_spec_says(said: bool | None, default: bool) -> None:
    """`ray` in a spec wins over the fabric's setting, which holds where the spec is silent."""
    table = "" if said is None else f"[tool.envfabric]\nray = {json.dumps(said)}\n"
    assert read(HEAD + table, policy=Policy(ray=default)).ray is (default if said is None else said)


@pytest.mark.parametrize(
    ("table", "version_file", "requires", "text", "origin"),
    [
        ("3.11", b"3.12\n", RANGE, "3.11", "spec"),
        ("3.11.7", None, "", "3.11.7", "spec"),
        (">=3.11,<3.13", None, "", "<3.13,>=3.11", "spec"),
        ("3.11", b"/bin/sh", RANGE, "3.11", "spec"),
        (None, b"# pinned\n\n  3.12.1 \r\n", RANGE, "3.12.1", ".python-version"),
        (None, b"3.12", "", "3.12", ".python-version"),
        (None, None, RANGE, None, "requires-python"),
        (None, None, "", None, "default"),
    ],
)
def test_python_ladder(
    table: str | None, version_file: bytes | None, requires: str, text: str | None, origin: str
) -> None:
    """The own table decides, else .python-version, else requires-python, else the daemon's default."""
    own = f'[tool.envfabric]\npython = "{table}"\n' if table else ""
    files = {".python-version": version_file} if version_file is not None else {}
    wanted = PythonRequest(text, ">=3.11" if requires else "", origin)
    assert read(HEAD + requires + own, files).python == wanted


@pytest.mark.parametrize(
    "content",
    ["/usr/bin/python3", "./python", "../py", "cpython-3.11", "3.11\n3.12\n", "", "# none\n", "pypy@3.11", "4.1",
     "3", "3.11; rm", "3.11.7.1", "\xff\xfe", "3." + "1" * 5000],
    ids=lambda text: ascii(text[:12]),
)  # fmt: skip
def test_version_file_holds_one_version(content: str) -> None:
    """A .python-version that is anything but one version is refused: uv would execute a path in it."""
    error = refusal(HEAD, {".python-version": content.encode("latin-1")})
    assert error.reason is Reason.INVALID_SPEC
    assert error.message.startswith("wf/a/.python-version ")
    assert len(error.message) < 400


BASE = (
    '[project]\nname = "wf-a"\nversion = "0.1.0"\nrequires-python = ">=3.11"\ndependencies = ["one>1", "two"]\n'
    '[project.optional-dependencies]\nx = ["three"]\n[dependency-groups]\ny = ["four"]\n'
    '[tool.uv]\nprerelease = "allow"\n'
    "[tool.envfabric]\nextras = []\n"
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"wf-a"', '"other"'),
        ('"0.1.0"', '"7"'),
        ('["one>1", "two"]', '[\n  "two",  # the second\n  "one>1"\n]'),
        ('version = "0.1.0"', 'version = "0.1.0"\ndescription = "words"\nauthors = [{ name = "A" }]'),
        ("extras = []", "suspend = false\nray = false\nruntime-env = { working_dir = '/code' }"),
        ("[tool.envfabric]", "[tool.ruff]\nline-length = 1\n[tool.envfabric]"),
    ],
    ids=["name", "version", "order", "prose", "own-table", "other-tool"],
)
def test_ask_leaves_out_what_decides_nothing(old: str, new: str) -> None:
    """Specs that differ in name, version, order of requirements or prose ask for the same."""
    assert old in BASE
    assert read(BASE.replace(old, new)).ask == read(BASE).ask


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("one>1", "one>2"),
        ('"two"', '"two", "five"'),
        ('["three"]', '["three<9"]'),
        ('["four"]', '["four<9"]'),
        ("extras = []", 'extras = ["x"]'),
        ("extras = []", 'groups = ["y"]'),
        (">=3.11", ">=3.12"),
        ('"allow"', '"disallow"'),
        ("[tool.uv]", "[build-system]\nrequires = []\n[tool.uv]"),
    ],
)
def test_ask_covers_what_decides_a_resolution(old: str, new: str) -> None:
    """Another requirement, extra, group, Python bound, uv setting or kind of project is another request."""
    assert old in BASE
    assert read(BASE.replace(old, new)).ask != read(BASE).ask


def test_order_of_chosen_extras_does_not_matter() -> None:
    """Extras and groups are sets: their order asks for nothing else."""
    text = HEAD + "[project.optional-dependencies]\na = []\nb = []\n[tool.envfabric]\nextras = "
    assert read(text + '["a", "b"]\n').ask == read(text + '["b", "a"]\n').ask


def test_inputs_tell_every_file_apart() -> None:
    """Equal files have equal inputs; each file, its absence, and where one ends and the next begins count."""
    spec = read(HEAD, {"uv.lock": b"l", ".python-version": b"3.11"})
    assert spec.inputs == inputs_digest(HEAD.encode(), b"l", b"3.11")
    assert spec.inputs == read(HEAD, {"uv.lock": b"l", ".python-version": b"3.11", "x": b"x"}).inputs
    variants: list[tuple[bytes, bytes | None, bytes | None]] = [
        (b"ab", b"", b""), (b"ab", None, b""), (b"ab", b"", None), (b"a", b"b", b""), (b"a", b"", b"b"),
        (b"", b"ab", None), (b"ab", None, None), (b"ab-", None, None), (b"ab", b"1:-", None),
    ]  # fmt: skip
    assert len({inputs_digest(*variant) for variant in variants}) == len(variants)


@pytest.mark.parametrize("excess", [0, 1])
def test_longest_pyproject(excess: int) -> None:
    """A pyproject.toml of the greatest length is read, one byte more is refused with both numbers."""
    limit = MAX_BYTES["pyproject.toml"]
    text = (HEAD + "#").ljust(limit + excess, "x")
    if not excess:
        assert read(text).name == "wf-a"
        return
    error = refusal(text)
    assert error.reason is Reason.INVALID_SPEC
    assert error.message.startswith("wf/a/pyproject.toml ")
    assert f"{limit + 1} bytes" in error.message
    assert f"at most {limit}" in error.message


@pytest.mark.parametrize("opening", ["[", "{ a = "], ids=["lists", "tables"])
def test_deep_nesting_is_refused_not_fatal(opening: str) -> None:
    """TOML that is nested without end is one spec's error."""
    error = refusal(f"{HEAD}x = {opening * 30000}")
    assert error.reason is Reason.INVALID_SPEC
    assert "nested too deeply" in error.message


@pytest.mark.parametrize(
    ("written", "version"),
    [("v1.0", "1.0"), ("1.0-alpha", "1.0a0"), ("1.0\\n", "1.0"), (" 1.0 ", "1.0"), ("1.0.POST1", "1.0.post1"),
     ("1.0+Ubuntu-1", "1.0+ubuntu.1"), ("01.0", "1.0"), ("0.1.0", "0.1.0")],
)  # fmt: skip
def test_version_is_normalised(written: str, version: str) -> None:
    """A version in any accepted spelling is kept as uv writes it into a lock."""
    assert read(f'[project]\nname = "wf-a"\nversion = "{written}"\n').version == version


def test_text_may_have_dots() -> None:
    """Only keys are limited in their parts: a value with a thousand dots is text like any other."""
    assert read(f'{HEAD}description = "{"." * 1000}"\n').name == "wf-a"
    assert read(f"{HEAD}keywords = ['it\"s', '{'.a' * 1000}']\n").name == "wf-a"
