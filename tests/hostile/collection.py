"""A spec repository with all that somebody who means harm could commit, and what has to be said of each.

Written with git's plumbing: its everyday commands refuse some of it.
"""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from support.spec_repo import SpecRepo

PYPROJECT = "pyproject.toml"
FOREIGN = "https://foreign.example"
"""Nobody answers there, and nobody is asked."""


@dataclass(frozen=True)
class Case:
    """One spec folder, and what the index must say of it; `reason` is None for one that has to be ready."""

    files: Mapping[str, str | bytes | tuple[str, str]]
    """By name below the folder; a pair is a mode and the content."""
    reason: str | None = None
    words: tuple[str, ...] = ()
    line: str | None = None
    """What stands on the line of pyproject.toml that the message has to name."""


def project(name: str, rest: str = "", dependencies: str = '"alpha"') -> str:
    """A pyproject.toml; `rest` follows the project's table."""
    return (
        f'[project]\nname = "{name}"\nversion = "0.1.0"\nrequires-python = ">=3.11"\n'
        f"dependencies = [{dependencies}]\n{rest}\n"
    )


def one(
    name: str,
    rest: str,
    reason: str | None,
    *words: str,
    line: str | None = None,
    dependencies: str = '"alpha"',
) -> Case:
    return Case({PYPROJECT: project(name, rest, dependencies)}, reason, words, line)


def lock_for(name: str, index: str, url: str, *, source: str | None = None) -> str:
    """A committed lock of alpha, with its file at `url`."""
    place = source or '{ registry = "' + index + '" }'
    return (
        'version = 1\nrevision = 3\nrequires-python = ">=3.11"\n\n[[package]]\nname = "alpha"\nversion = "1.0"\n'
        f"source = {place}\n"
        f'wheels = [\n    {{ url = "{url}", hash = "sha256:{"0" * 64}" }},\n]\n\n'
        f'[[package]]\nname = "{name}"\nversion = "0.1.0"\nsource = {{ virtual = "." }}\n'
        'dependencies = [\n    { name = "alpha" },\n]\n\n[package.metadata]\nrequires-dist = [{ name = "alpha" }]\n'
    )


def with_lock(
    name: str, index: str, lock: str | bytes | tuple[str, str], reason: str | None, *words: str
) -> Case:
    rest = f'[[tool.uv.index]]\nurl = "{index}"\ndefault = true\n'
    return Case({PYPROJECT: project(name, rest), "uv.lock": lock}, reason, words)


def cases(index: str) -> dict[str, Case]:
    """Every case by its id; `index` is the address of the one allowed index."""
    host = index.removesuffix("/simple")
    found = {
        "good/plain": one("plain", "", None),
        "good/group": one("group", '[dependency-groups]\ndev = ["no-such-thing-unasked"]\n', "unresolvable"),
        # Read by nobody: uv would take build settings and another cache from it.
        "good/uv-toml": Case(
            {PYPROJECT: project("uv-toml"), "uv.toml": 'cache-dir = "cache"\nno-build = false\n'}, None
        ),
        "good/own-backend": Case(
            {
                PYPROJECT: project(
                    "own-backend",
                    '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
                    "[tool.uv]\npackage = true\n",
                ),
                "backend.py": 'import os\nopen(os.path.expanduser("~/ran-backend"), "w").write("x")\n',
            },
            None,
        ),
        "good/start-file": one("start-file", "", None, dependencies='"pth-wheel"'),
        "good/default-groups": one(
            "default-groups",
            '[dependency-groups]\ndev = ["gamma"]\n[tool.uv]\ndefault-groups = "all"\n',
            None,
        ),
        "good/lines-in-values": one(
            "lines-in-values", '[tool.envfabric.runtime-env]\nenv_vars = { A = "1\\n2" }\n', None
        ),
    }
    found |= {
        f"source/{key}": one(
            key, f"[tool.uv.sources]\nalpha = {value}\n", "policy", "sources.alpha", line="alpha ="
        )
        for key, value in {
            "path": '{ path = "../../../etc" }',
            "editable": '{ path = "../plain", editable = true }',
            "workspace": "{ workspace = true }",
            "git": '{ git = "https://foreign.example/alpha" }',
            "url": '{ url = "https://foreign.example/alpha-1.0-py3-none-any.whl" }',
            "file": '{ url = "file:///etc/passwd" }',
            "hidden": '[{ index = "x" }, { path = "." }]',
        }.items()
    }
    found |= {
        f"direct/{key}": one(
            key, rest, "policy", "from a URL or path", line="evil @", dependencies=dependencies
        )
        for key, (rest, dependencies) in {
            "requirement": ("", '"evil @ https://foreign.example/evil.whl"'),
            "file": ("", '"evil @ file:///etc/passwd"'),
            "git": ("", '"evil @ git+https://foreign.example/x"'),
            "extra": ('[project.optional-dependencies]\nx = ["evil @ file:///x"]\n', ""),
            "group": ('[dependency-groups]\nx = ["evil @ file:///x"]\n', ""),
            "constraint": ('[tool.uv]\nconstraint-dependencies = ["evil @ file:///x"]\n', ""),
            "override": ('[tool.uv]\noverride-dependencies = ["evil @ file:///x"]\n', ""),
        }.items()
    }
    found |= {
        f"index/{key}": one(key, f"[[tool.uv.index]]\n{line}\n", "policy", *words, line=line)
        for key, (line, words) in {
            "foreign": (f'url = "{FOREIGN}/simple"', ("is not allowed", "policy.indexes")),
            "longer": (f'url = "{index}.{FOREIGN[8:]}"', ("is not allowed",)),
            "climbing": (f'url = "{index}/../other"', ("is not allowed",)),
            "file": ('url = "file:///srv/wheels"', ("must be an http(s) URL",)),
            "credentials": (
                'url = "https://user:Pw-of-a-spec@foreign.example/simple"',
                ("without credentials",),
            ),
            "folder": ('url = "wheels"', ("must be an http(s) URL",)),
        }.items()
    }
    found |= {
        f"key/{key}": one(
            key, f"[tool.uv]\n{key} = {value}\n", "policy", f"tool.uv.{key} is not allowed", line=key
        )
        for key, value in {
            "cache-dir": '"/tmp/elsewhere"',
            "extra-build-dependencies": '{ alpha = ["gamma"] }',
            "find-links": '["/srv"]',
            "no-binary-package": '["alpha"]',
            "no-build-isolation": "true",
            "keyring-provider": '"subprocess"',
            "dependency-metadata": "[]",
            "workspace": '{ members = ["../*"] }',
            "python-install-mirror": '"file:///srv"',
            "pip": "{}",
        }.items()
    }
    tables = '[[tool.uv.index]]\nurl = "x"\n'
    found |= {
        "run/dynamic": Case(
            {PYPROJECT: '[project]\nname = "dynamic"\ndynamic = ["version"]\n'},
            "policy",
            ("build backend",),
            "dynamic",
        ),
        "run/validate": one(
            "validate", '[tool.envfabric]\nvalidate = "full"\n', "policy", "runs the", line="validate ="
        ),
        "run/command": one(
            "command",
            '[tool.envfabric]\nvalidate = "custom"\ncommand = ["touch", "/tmp/x"]\n',
            "policy",
            "runs the",
            line="validate =",
        ),
        "run/sdist": one("sdist", "", "policy", "evil-sdist", "not built here", dependencies='"evil-sdist"'),
        "run/version": one("version", '[tool.uv]\nrequired-version = "==0.1"\n', "unresolvable", "0.1"),
        "run/python-path": Case(
            {PYPROJECT: project("python-path"), ".python-version": "../../evil\n"},
            "invalid-spec",
            ("run/python-path/.python-version must hold one version",),
        ),
        "toml/long": Case(
            {PYPROJECT: b"# " + b"x" * 10_000_000}, "invalid-spec", ("has 10000002 bytes", "at most")
        ),
        "toml/arrays": one(
            "arrays", "[tool.x]\na = " + "[" * 5000 + "]" * 5000, "invalid-spec", "nested too deeply"
        ),
        "toml/arrays-100": one(
            "arrays-100", "[tool.x]\na = " + "[" * 100 + "]" * 100, "invalid-spec", "at most 32"
        ),
        "toml/inline": one(
            "inline", "[tool.x]\na = " + "{a=" * 3000 + "1" + "}" * 3000, "invalid-spec", "too deeply"
        ),
        "toml/dotted": one(
            "dotted",
            "[tool.x]\n" + ".".join("a" * 5000) + " = 1",
            "invalid-spec",
            "more than 64 parts",
            line="a.a.a",
        ),
        "toml/int": one("int", "[tool.x]\na = " + "1" * 5000, "invalid-spec", "toml/int/pyproject.toml"),
        "toml/bom": Case(
            {PYPROJECT: "\ufeff" + project("bom")}, "invalid-spec", ("pyproject.toml:1: not valid TOML",)
        ),
        "toml/utf-16": Case(
            {PYPROJECT: project("utf-16").encode("utf-16")}, "invalid-spec", ("is not UTF-8",)
        ),
        "toml/nul": Case(
            {PYPROJECT: project("nul", 'a = "\0"')}, "invalid-spec", ("pyproject.toml:6: not valid TOML",)
        ),
        "toml/escapes": one(
            "escapes",
            '[tool.envfabric]\n"\\u001b[2J\\nx" = 1',
            "invalid-spec",
            r"\x1b[2J\nx is not a known key",
        ),
        # A pattern with two ways to read a blank took minutes for one such line.
        "toml/blanks": one(
            "blanks",
            '[tool.x]\na = """\n[' + " " * 50_000 + '\n"""\n' + tables,
            "policy",
            "must be an http(s)",
            line='url = "x"',
        ),
        "toml/empty": Case({PYPROJECT: ""}, "invalid-spec", ("no [project] table",)),
        "name/long": one("a" * 100_000, "", "invalid-spec", "at most 200 characters", line="name ="),
        "name/dashes": one(
            "a" + "-" * 50_000 + "!", "", "invalid-spec", "must be a package name", line="name ="
        ),
        "name/requirement": one(
            "requirement", "", "invalid-spec", "is too long", dependencies=f'"{"a-" * 50_000}"'
        ),
        "name/escape": one("\\u001b[31m", "", "invalid-spec", "must be a package name", line="name ="),
        "env/name": one(
            "env-name",
            '[tool.envfabric.runtime-env.env_vars]\n"A\\nB" = "x"',
            "invalid-spec",
            "env_vars.A\\nB",
        ),
        "env/nul": one(
            "env-nul", '[tool.envfabric.runtime-env.env_vars]\nA = "\\u0000"', "invalid-spec", "env_vars.A"
        ),
        "env/number": one(
            "env-number", "[tool.envfabric.runtime-env.env_vars]\nA = 9223372036854775808", "invalid-spec"
        ),
        "env/password": one(
            "env-password",
            '[tool.envfabric.runtime-env.env_vars]\nDB = "postgres://me:Pw-of-a-spec@db.example/x"',
            "policy",
            "a URL with a password",
            line="DB =",
        ),
        "marker/wide": one(
            "wide",
            "",
            "invalid-spec",
            "different comparisons",
            dependencies=", ".join(
                f"\"alpha; '{n}' in platform_machine and '{n}' in platform_version\"" for n in range(20)
            ),
        ),
        "marker/deep": one(
            "deep",
            "",
            "invalid-spec",
            "opening brackets",
            dependencies=f"\"alpha; {'(' * 900}os_name == 'x'{')' * 900}\"",
        ),
        "marker/long": one(
            "long",
            "",
            "invalid-spec",
            "too long",
            dependencies='"alpha; ' + " or ".join(["os_name=='x'"] * 900) + '"',
        ),
        "marker/conflicts": one(
            "conflicts",
            "[project.optional-dependencies]\n"
            + "".join(f"a{n} = []\nb{n} = []\n" for n in range(12))
            + "[tool.uv]\nconflicts = ["
            + ", ".join(f'[{{ extra = "a{n}" }}, {{ extra = "b{n}" }}]' for n in range(12))
            + "]\n",
            "invalid-spec",
            "combinations",
            line="conflicts =",
        ),
        "lock/file": with_lock(
            "file", index, lock_for("file", index, "file:///etc/passwd"), "policy", "lock/file/uv.lock"
        ),
        "lock/relative": with_lock(
            "relative", index, lock_for("relative", index, "../x.whl"), "policy", "uv.lock"
        ),
        "lock/foreign-file": with_lock(
            "foreign-file",
            index,
            lock_for("foreign-file", index, f"{FOREIGN}/files/alpha-1.0-py3-none-any.whl"),
            "policy",
            "lock/foreign-file/uv.lock",
            "foreign.example",
        ),
        "lock/foreign-port": with_lock(
            "foreign-port",
            index,
            lock_for("foreign-port", index, "http://127.0.0.1:1/files/alpha-1.0-py3-none-any.whl"),
            "policy",
            "lock/foreign-port/uv.lock",
        ),
        "lock/foreign-index": with_lock(
            "foreign-index",
            index,
            lock_for("foreign-index", f"{FOREIGN}/simple", f"{host}/files/alpha-1.0-py3-none-any.whl"),
            "lock-stale",
            "lock/foreign-index/uv.lock",
        ),
        "lock/path": with_lock(
            "path",
            index,
            lock_for("path", index, f"{host}/x", source='{ directory = "../plain" }'),
            "policy",
            "uv.lock",
        ),
        "lock/git": with_lock(
            "git",
            index,
            lock_for("git", index, f"{host}/x", source='{ git = "https://foreign.example/x#1" }'),
            "policy",
        ),
        "lock/password": with_lock(
            "password",
            index,
            lock_for(
                "password", index, "https://user:Pw-of-a-spec@foreign.example/alpha-1.0-py3-none-any.whl"
            ),
            "policy",
            "lock/password/uv.lock:10",
            "a URL with a password",
        ),
        "lock/no-toml": with_lock(
            "no-toml", index, b"\0\1\2", "lock-stale", "lock/no-toml/uv.lock", "uv lock"
        ),
        "lock/deep": with_lock("deep", index, "a = " + "[" * 9000, "lock-stale", "lock/deep/uv.lock"),
        "mode/symlink": Case(
            {PYPROJECT: ("120000", "../../../../etc/passwd")}, "invalid-spec", ("is a symlink",)
        ),
        "mode/lock": with_lock(
            "mode-lock", index, ("120000", "../../x"), "invalid-spec", "mode/lock/uv.lock is a symlink"
        ),
        "mode/python": Case(
            {PYPROJECT: project("mode-python"), ".python-version": ("120000", "/bin/sh")},
            "invalid-spec",
            ("a symlink",),
        ),
        "mode/submodule": Case({PYPROJECT: ("160000", "")}, "invalid-spec", ("is a submodule",)),
        "mode/folder": Case(
            {PYPROJECT: project("mode-folder"), "uv.lock/inner": "x"},
            "invalid-spec",
            ("uv.lock is a folder",),
        ),
        "twin/node": Case({PYPROJECT: project("twin")}, "invalid-spec", ("differ only by case",)),
        "twin/Node": Case({PYPROJECT: project("twin")}, "invalid-spec", ("differ only by case",)),
        "dots/a": Case({PYPROJECT: project("dots")}, "invalid-spec", ("dots at the end",)),
        "dots/a.": Case({PYPROJECT: project("dots")}, "invalid-spec", ("dots at the end",)),
    }
    return found


PROBLEMS = {
    "climb\n/node": "can't be a spec id",
    "name/new\nline": "can't be a spec id",
    "name/\x1b[2J": "can't be a spec id",
    "name/a\u202eb": "can't be a spec id",
    "name/\u0430lpha": "can't be a spec id",
    "name/end ": "can't be a spec id",
    "name/git~1": "can't be a spec id",
    "name/$(touch x)": "can't be a spec id",
    "name/-flag": "can't be a spec id",
    "name/back\\slash": "can't be a spec id",
    "name/" + "a" * 3000: "can't be a spec id",
    "n" * 101 + "/node": "can't be a spec id",
}
"""Folders that have a pyproject.toml and can have no id."""

SILENT = ("../node", "wf/..", "./node", ".git/node", "name/.git", ".GIT/x", "name/" + "a" * 5000)
"""Dot folders, and a name that no file system takes: nobody's business, and never a way out."""


@dataclass
class Folder:
    """A tree to be written."""

    entries: dict[str, "Folder | tuple[str, bytes]"] = field(default_factory=dict)

    def put(self, parts: list[str], mode: str, content: bytes) -> None:
        inner: Any = self
        for part in parts[:-1]:
            inner = inner.entries.setdefault(part, Folder())
        inner.entries[parts[-1]] = (mode, content)

    def write(self, repo: SpecRepo) -> str:
        """Writes it and gives its id."""
        lines = []
        for name, entry in self.entries.items():
            if isinstance(entry, Folder):
                lines.append((f"{name}/", "40000", name, entry.write(repo)))
            elif entry[0] == "160000":
                lines.append((name, entry[0], name, "1" * 40))
            else:
                lines.append((name, entry[0], name, _object(repo, "blob", entry[1])))
        raw = b"".join(
            f"{mode} {name}".encode() + b"\0" + bytes.fromhex(oid)
            for _, mode, name, oid in sorted(lines, key=lambda one: one[0].encode())
        )
        return _object(repo, "tree", raw)


def _object(repo: SpecRepo, kind: str, raw: bytes) -> str:
    command = ["git", "hash-object", "-t", kind, "-w", "--literally", "--stdin"]
    return (
        subprocess.run(command, cwd=repo.path, input=raw, check=True, capture_output=True)
        .stdout.decode()
        .strip()
    )


def commit(repo: SpecRepo, found: Mapping[str, Case]) -> str:
    """Commits all of it at once."""
    top = Folder()
    for spec_id, case in found.items():
        for name, content in case.files.items():
            mode, text = content if isinstance(content, tuple) else ("100644", content)
            raw = text.encode() if isinstance(text, str) else text
            top.put([*spec_id.split("/"), *name.split("/")], mode, raw)
    for folder in (*PROBLEMS, *SILENT):
        top.put([*folder.split("/"), PYPROJECT], "100644", project("nobody").encode())
    top.put(["linked", "submodule"], "160000", b"")
    top.put(["linked", "symlink"], "120000", b"../good/plain")
    top.put(["workflow-submodule"], "160000", b"")
    top.put(["workflow-symlink"], "120000", b"good")
    made = repo.git("commit-tree", top.write(repo), "-m", "all of it")
    repo.git("update-ref", "refs/heads/main", made)
    return made
