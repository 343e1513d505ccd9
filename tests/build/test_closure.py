"""A closure's digest covers what gets installed and nothing else; its wheels are those that uv takes."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from envfabric.build.closure import Closure, Distribution, closure_from_inputs, install_options, make_closure
from envfabric.build.interpreters import Interpreter
from envfabric.build.lockfile import Lock, read_lock
from envfabric.build.resolve import Resolver
from envfabric.build.uv import Uv
from envfabric.core.errors import Reason, SpecError
from envfabric.specs.policy import UV_KEYS, Policy
from envfabric.specs.spec import Spec, read_spec
from support.simple_index import SimpleIndex

PYTHON = Interpreter(
    "/opt/python3.11", "3.11.7", "cpython", "cpython-311-x86_64-linux-gnu", "linux-x86_64", "glibc-2.36"
)
ONE = Distribution("one", "1.0", "one-1.0-py3-none-any.whl", "sha256:11")
TWO = Distribution("two", "1.0", "two-1.0-py3-none-any.whl", "sha256:22")


def entry(name: str, version: str, *wheels: str) -> dict[str, Any]:
    """A package of a lock; each wheel's hash is its name."""
    files = [{"url": f"https://x.example/{wheel}", "hash": f"sha256:{wheel}"} for wheel in wheels]
    return {"name": name, "version": version, "source": {"registry": "https://x.example"}, "wheels": files}


@pytest.mark.parametrize(
    "other",
    [Closure(replace(PYTHON, version="3.11.8"), (ONE, TWO)), Closure(replace(PYTHON, path="/usr/bin/p"), (ONE, TWO)),
     Closure(replace(PYTHON, platform="linux-aarch64"), (ONE, TWO)), Closure(replace(PYTHON, abi="x"), (ONE, TWO)),
     Closure(replace(PYTHON, libc="glibc-2.31"), (ONE, TWO)), Closure(replace(PYTHON, implementation="p"), (ONE, TWO)),
     Closure(PYTHON, (ONE,)), Closure(PYTHON, (ONE, replace(TWO, version="1.1"))),
     Closure(PYTHON, (ONE, replace(TWO, hash="sha256:23"))), Closure(PYTHON, (ONE, replace(TWO, wheel="two.whl"))),
     Closure(PYTHON, (ONE, replace(TWO, name="three")))],
    ids=["python-version", "python-path", "platform", "abi", "libc", "implementation", "fewer", "version", "hash",
         "wheel", "name"],
)  # fmt: skip
def test_digest_covers_what_is_installed(other: Closure) -> None:
    """Another version, wheel hash, interpreter, platform or libc is another closure."""
    assert other.digest != Closure(PYTHON, (ONE, TWO)).digest


def test_digest_is_a_name_that_stays() -> None:
    """The digest is 40 hexadecimal digits and the same on every host and in every later release."""
    assert Closure(PYTHON, (ONE, TWO)).digest == "7fcd738619add773c2767cd75d1e753a0c72bf27"


def test_order_of_what_applies_does_not_matter() -> None:
    """uv's order of the distributions, and the lock's, make no other closure."""
    packages = (
        entry("one", "1.0", ONE.wheel),
        entry("two", "1.0", TWO.wheel),
        entry("idle", "1", "idle-1-x.whl"),
    )
    forward = make_closure([("one", "1.0"), ("two", "1.0")], Lock("", packages), PYTHON)
    back = make_closure([("two", "1.0"), ("one", "1.0")], Lock("", packages[::-1]), PYTHON)
    assert forward == back
    assert [one.name for one in forward.distributions] == ["one", "two"]
    assert (forward.version_of("two"), forward.version_of("idle")) == ("1.0", None)


def resolved(resolver: Resolver, spec: Spec, python: Interpreter) -> Closure:
    return resolver.resolve(spec, python, None).closure


def test_equal_outcomes_are_one_closure(resolver: Resolver, make_spec: Any, python: Interpreter) -> None:
    """Names, order, bounds that lead to the same versions, and what other platforms need, don't count."""
    wanted = resolved(resolver, make_spec("one", ["beta", "gamma"]), python)
    assert [one.name for one in wanted.distributions] == ["alpha", "beta", "gamma"]
    tail = '[project.optional-dependencies]\nmore = ["alpha"]\n'
    same = [
        make_spec("zzz", ["beta", "gamma"]),
        make_spec("one", ["gamma", "beta", "alpha"]),
        make_spec("one", ["gamma==2.0", "beta>=1"]),
        make_spec("one", ["beta", "gamma; sys_platform != 'win32'"]),
        make_spec("one", ["beta", "gamma==2.*"]),
        make_spec("one", ["beta", "gamma"], tail=tail),
    ]
    assert {resolved(resolver, spec, python).digest for spec in same} == {wanted.digest}
    assert resolved(resolver, make_spec("one", ["beta", "gamma<2"]), python).digest != wanted.digest


def test_packages_of_other_platforms_do_not_count(
    resolver: Resolver, make_spec: Any, python: Interpreter, index: SimpleIndex
) -> None:
    """A package that is locked for another platform, without a wheel for this one, is left out."""
    index.add_wheel("windowed", "1.0", tag="cp311-cp311-win_amd64")
    resolution = resolver.resolve(
        make_spec("one", ["alpha", "windowed; sys_platform == 'win32'"]), python, None
    )
    assert b"windowed" in resolution.lock
    assert resolution.closure == resolved(resolver, make_spec("two", ["alpha"]), python)


def test_equal_versions_of_other_content_differ(
    resolver: Resolver, make_spec: Any, python: Interpreter, index: SimpleIndex
) -> None:
    """A wheel of the same name and version with other bytes is another closure."""
    before = resolved(resolver, make_spec("one", ["alpha"]), python)
    index.add_wheel("alpha", "1.0", modules={"alpha/__init__.py": "VERSION = 'other'\n"})
    assert resolved(resolver, make_spec("two", ["alpha"]), python).digest != before.digest


def minor(python: Interpreter) -> str:
    return "".join(python.version.split(".")[:2])


def tags(python: Interpreter) -> list[str]:
    """Wheels of one version as they occur on indexes: for every kind of tag, and some that don't fit here."""
    cp, machine = f"cp{minor(python)}", python.platform.removeprefix("linux-")
    return [
        "py3-none-any", "py2.py3-none-any", f"py{minor(python)}-none-any", f"{cp}-none-any", "py30-none-any",
        f"{cp}-abi3-manylinux_2_17_{machine}.manylinux2014_{machine}", f"cp37-abi3-manylinux_2_5_{machine}",
        f"cp38-abi3-manylinux2014_{machine}", f"{cp}-{cp}-manylinux_2_17_{machine}", f"cp37-abi3-manylinux1_{machine}",
        f"{cp}-{cp}-manylinux_2_28_{machine}", f"{cp}-{cp}-manylinux2014_{machine}",
        f"py3-none-manylinux_2_17_{machine}", f"{cp}-none-manylinux_2_12_{machine}",
        f"{cp}-{cp}-manylinux_2_12_{machine}.manylinux2010_{machine}",
        "1-py3-none-any", "10-py3-none-any", "2-py3-none-any", "2a-py3-none-any", "2b-py3-none-any",
        f"3-{cp}-{cp}-manylinux_2_17_{machine}", f"20-{cp}-{cp}-manylinux_2_17_{machine}",
        f"{cp}-{cp}-manylinux_2_99_{machine}", f"{cp}-{cp}-win_amd64", "cp27-cp27m-manylinux1_x86_64",
        f"{cp}-{cp}-musllinux_1_1_{machine}", f"{cp}-{cp}-linux_{machine}", f"py3-none-linux_{machine}",
        f"cp37-abi3-linux_{machine}",
    ]  # fmt: skip


def installed(uv: Uv, folder: Path, python: Interpreter) -> str | None:
    """The tag of the wheel that uv installs from the lock in `folder`; None where none fits."""
    sync = ["sync", "--frozen", "--no-install-project", "--reinstall", "--python", python.path]
    if uv.run(sync, cwd=folder).code != 0:
        return None
    (module,) = (folder / ".venv").glob("lib/python*/site-packages/many.py")
    return module.read_text()


@pytest.mark.parametrize("version", ["1.0", "1.0+cpu.1"])
def test_wheels_are_chosen_as_uv_does(
    resolver: Resolver,
    uv: Uv,
    make_spec: Any,
    python: Interpreter,
    index: SimpleIndex,
    tmp_path: Path,
    version: str,
) -> None:
    """Of any set of wheels, the closure names the one that uv installs: the best tag, then the highest build."""
    offered = tags(python)
    for tag in offered:
        index.add_wheel("many", version, tag=tag, modules={"many.py": tag})
    spec = make_spec("one", ["many"])
    text = resolver.resolve(spec, python, None).lock.decode()
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pyproject.toml").write_bytes(spec.pyproject)
    chosen: list[str] = []
    # The best wheel is taken away again and again: the whole order is compared, not one winner.
    while True:
        (folder / "uv.lock").write_text(text)
        taken = installed(uv, folder, python)
        if taken is None:
            break
        (ours,) = make_closure(
            [("many", version)], read_lock(text.encode(), "wf/a/uv.lock"), python
        ).distributions
        assert unquote(ours.wheel) == f"many-{version}-{taken}.whl", f"after {chosen}"
        chosen.append(taken)
        lines = text.splitlines(keepends=True)
        text = "".join(line for line in lines if f"/{ours.wheel}" not in line)
    with pytest.raises(SpecError) as caught:
        make_closure([("many", version)], read_lock(text.encode(), "wf/a/uv.lock"), python)
    assert caught.value.reason is Reason.POLICY
    assert len(chosen) >= 20
    misfits = [tag for tag in offered if re.search("win_amd64|cp27m|_2_99_|musllinux", tag)]
    assert set(chosen) == set(offered) - set(misfits)


def test_one_version_of_two_indexes_is_the_one_for_here(
    resolver: Resolver, uv: Uv, python: Interpreter, index: SimpleIndex, tmp_path: Path
) -> None:
    """Where markers give one version two sources, the digest is of the wheel that uv installs here."""
    digests = set()
    with SimpleIndex(tmp_path / "second") as second:
        second.add_wheel("many", "1.0", modules={"many.py": "second"})
        index.add_wheel("many", "1.0", modules={"many.py": "first"})
        for name, here, elsewhere in (("one", index, second), ("two", second, index)):
            spec = of_two_indexes(name, here.url, elsewhere.url)
            resolution = resolver.resolve(spec, python, None)
            assert resolution.lock.count(b'name = "many"\nversion = "1.0"\n') == 2
            (ours,) = resolution.closure.distributions
            wheel = here.folder / ours.wheel
            assert ours.hash == f"sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"
            folder = tmp_path / name
            folder.mkdir()
            (folder / "pyproject.toml").write_bytes(spec.pyproject)
            (folder / "uv.lock").write_bytes(resolution.lock)
            assert installed(uv, folder, python) == ("first" if here is index else "second")
            digests.add(resolution.closure.digest)
    assert len(digests) == 2


def of_two_indexes(name: str, here: str, elsewhere: str) -> Spec:
    """A spec that takes `many` from one index on Linux and from another one on all other platforms."""
    text = (
        f'[project]\nname = "{name}"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["many"]\n'
        '[tool.uv.sources]\nmany = [{ index = "here", marker = "sys_platform == \'linux\'" },\n'
        '{ index = "elsewhere", marker = "sys_platform != \'linux\'" }]\n'
        f'[[tool.uv.index]]\nname = "here"\nurl = "{here}"\nexplicit = true\n'
        f'[[tool.uv.index]]\nname = "elsewhere"\nurl = "{elsewhere}"\nexplicit = true\n'
    )
    files = {"pyproject.toml": text.encode()}
    return read_spec(f"wf/{name}", "0" * 40, files, Policy(indexes=(here, elsewhere)))


@pytest.mark.parametrize(
    "wheels", [[], ["one-1.0-cp27-cp27m-win32.whl"], ["one-1.0.zip", "one-1.0-none.whl"]]
)
def test_no_wheel_is_refused_by_policy(wheels: list[str]) -> None:
    """A distribution without a wheel for this interpreter is refused, by name, version and platform."""
    with pytest.raises(SpecError) as caught:
        make_closure([("one", "1.0")], Lock("", (entry("one", "1.0", *wheels),)), PYTHON)
    assert caught.value.reason is Reason.POLICY
    for words in ("one 1.0 has no wheel", PYTHON.abi, PYTHON.platform, "Require a version that has one"):
        assert words in caught.value.message


def test_wheel_without_hash_is_known_by_its_address() -> None:
    """Where the index gave no hash, the wheel's URL stands in for it."""
    package = entry("one", "1.0", ONE.wheel)
    del package["wheels"][0]["hash"]
    (found,) = make_closure([("one", "1.0")], Lock("", (package,)), PYTHON).distributions
    assert found.hash == f"https://x.example/{ONE.wheel}"


@pytest.mark.parametrize(
    "table",
    [{"no-binary": True}, {"no-binary-package": ["one"]}, {"config-settings": {"a": "b"}},
     {"config-settings-package": {"one": {"a": "b"}}}, {"no-build-isolation": True},
     {"no-build-isolation-package": ["one"]}, {"extra-build-dependencies": {"one": ["x"]}},
     {"extra-build-variables": {"one": {"A": "1"}}}],
    ids=lambda table: next(iter(table)),
)  # fmt: skip
def test_build_keys_are_covered(table: dict[str, Any]) -> None:
    """Each key of [tool.uv] by which something is built otherwise makes another closure, and policy refuses it."""
    other = Closure(PYTHON, (ONE, TWO), install_options(table))
    assert other.digest != Closure(PYTHON, (ONE, TWO)).digest
    assert other.inputs["options"] == table
    assert not set(table) & UV_KEYS


def test_keys_that_change_nothing_installed_are_not_covered() -> None:
    """Indexes, constraints, resolution settings and unset build keys leave a closure as it is; order, too."""
    table = {"index": [{"url": "x"}], "constraint-dependencies": ["a"], "no-build": True, "no-binary": False,
             "no-binary-package": [], "build-constraint-dependencies": ["hatchling<2"]}  # fmt: skip
    assert install_options(table) == {}
    assert install_options({**table, "no-binary": True}) == {
        "no-binary": True,
        "build-constraint-dependencies": ["hatchling<2"],
    }
    assert install_options({"no-binary-package": ["b", "a"]}) == install_options(
        {"no-binary-package": ["a", "b"]}
    )


def test_every_key_that_policy_admits_is_judged() -> None:
    """A key that policy admits some day has to be judged: it changes what is installed, or it does not."""
    harmless = UV_KEYS - {"no-build", "package"}
    assert all(install_options({key: ["x"]}) == {} for key in harmless)


@pytest.mark.parametrize("options", [{}, {"no-binary-package": ["one"]}])
def test_closure_is_read_back_from_its_inputs(options: dict[str, Any]) -> None:
    """What metadata.json keeps is enough to have the closure again, with the same digest."""
    closure = Closure(PYTHON, (ONE, TWO), options)
    again = closure_from_inputs(json.loads(json.dumps(closure.inputs)))
    assert (again, again.digest) == (closure, closure.digest)


INPUTS = Closure(PYTHON, (ONE,)).inputs


@pytest.mark.parametrize(
    "damaged",
    [{}, {**INPUTS, "schema": 2}, {**INPUTS, "more": 1}, {**INPUTS, "distributions": [{"name": "one"}]},
     {**INPUTS, "interpreter": {}}, {**INPUTS, "interpreter": None}, {**INPUTS, "distributions": None},
     {**INPUTS, "options": {}}, {**INPUTS, "options": []}, {key: INPUTS[key] for key in INPUTS if key != "libc"}],
)  # fmt: skip
def test_inputs_that_are_none_are_refused(damaged: dict[str, Any]) -> None:
    """Inputs that are not of this form never give a closure of another digest."""
    with pytest.raises(ValueError, match="inputs of a closure"):
        closure_from_inputs(damaged)


def test_extras_and_groups_count_by_what_they_select(
    resolver: Resolver, make_spec: Any, python: Interpreter
) -> None:
    """The same distributions by way of an extra, a group or a plain line are one closure, lines for others none."""
    extra = '[project.optional-dependencies]\nx = ["gamma"]\n[tool.envfabric]\nextras = ["x"]\n'
    group = '[dependency-groups]\ng = ["gamma"]\n[tool.envfabric]\ngroups = ["g"]\n'
    unused = '[project.optional-dependencies]\nx = ["beta"]\n'
    digests = {
        resolved(resolver, spec, python).digest
        for spec in (
            make_spec("plain", ["alpha", "gamma"]),
            make_spec("extra", ["alpha"], tail=extra),
            make_spec("group", ["alpha"], tail=group),
            make_spec("unused", ["alpha", "gamma"], tail=unused),
            make_spec("marked", ["alpha", "gamma", "beta; python_version < '3'"]),
        )
    }
    assert len(digests) == 1


def test_other_files_of_a_spec_do_not_count(resolver: Resolver, make_spec: Any, python: Interpreter) -> None:
    """A README, a description and .python-version's way of saying the same change no digest."""
    readme = {"README.md": b"# words\n"}
    tail = 'description = "words"\n[tool.ruff]\nline-length = 3\n'
    specs = [
        make_spec("a", ["gamma"]),
        make_spec("b", ["gamma"], files=readme),
        make_spec("c", ["gamma"], tail=tail),
    ]
    assert len({resolved(resolver, spec, python).digest for spec in specs}) == 1
