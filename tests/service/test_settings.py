"""Settings: where they come from, which source wins, and what is said of a wrong one."""

import os
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from envfabric.client import index as client
from envfabric.core.errors import ConfigError
from envfabric.service.settings import (
    FarmSettings,
    FetchSettings,
    GcSettings,
    PolicySettings,
    PruneSettings,
    RaySettings,
    Settings,
    SignatureSettings,
    address,
    load_settings,
    variables,
)


@pytest.fixture(autouse=True)
def nothing_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, no settings file of the machine, no variable of the one who runs the tests."""
    for name in list(os.environ):
        if name.upper().startswith("ENVFABRIC_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(client, "CONFIG_FILES", (Path("envfabric.toml"), tmp_path / "etc" / "envfabric.toml"))
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "envfabric.toml") -> Path:
    path = Path.cwd() / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_defaults_without_a_file() -> None:
    """With nothing given, the contract's defaults hold: loopback, port 9466, no repository, no ROOT."""
    settings = load_settings(None, {})
    assert settings.listen == "127.0.0.1:9466"
    assert (settings.repo, settings.root, settings.branch, settings.path) == (None, None, None, "")
    assert settings.policy.indexes == []
    assert settings.ray.version is None


def test_flag_over_variable_over_file_over_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each source wins over the one after it, key by key."""
    write('branch = "file"\npath = "file"\nlog_level = "debug"\n')
    monkeypatch.setenv("ENVFABRIC_BRANCH", "variable")
    monkeypatch.setenv("ENVFABRIC_PATH", "variable")
    settings = load_settings(None, {"branch": "flag", "path": None, "root": None})
    assert settings.branch == "flag"
    assert settings.path == "variable"
    assert settings.log_level == "debug"
    assert settings.interval == 10.0


def test_nested_settings_come_from_every_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table's keys are variables with two underscores; one key from there leaves the file's others."""
    write('[ray]\nversion = "2.50.0"\nrequired = true\n[policy]\nindexes = ["https://a/simple"]\n')
    monkeypatch.setenv("ENVFABRIC_RAY__VERSION", "2.60.0")
    settings = load_settings(None, {})
    assert settings.ray.version == "2.60.0"
    assert settings.ray.required is True
    monkeypatch.setenv("ENVFABRIC_POLICY__INDEXES", '["https://b/simple", "https://c/simple"]')
    assert load_settings(None, {}).policy.indexes == ["https://b/simple", "https://c/simple"]


@pytest.mark.parametrize(
    ("name", "value", "setting", "expected"),
    [
        ("ENVFABRIC_ROOT", "/mnt/nas", "root", Path("/mnt/nas")),
        ("ENVFABRIC_INTERVAL", "0.5", "interval", 0.5),
        ("ENVFABRIC_BUILDERS", "3", "builders", 3),
        ("ENVFABRIC_LISTEN", "[::1]:0", "listen", "[::1]:0"),
        ("ENVFABRIC_PYTHON", "3.12.1", "python", "3.12.1"),
        ("ENVFABRIC_PYTHONS", '["/usr/bin/python3"]', "pythons", ["/usr/bin/python3"]),
    ],
)
def test_variables_have_the_settings_types(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, setting: str, expected: object
) -> None:
    """A variable's text becomes a number, a path or a list as the setting asks."""
    monkeypatch.setenv(name, value)
    assert getattr(load_settings(None, {}), setting) == expected


def test_every_setting_has_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever can stand in the file is a variable, too, tables by their keys, and each is accepted."""
    known = variables()
    tables: dict[str, type[BaseModel]] = {
        "ray": RaySettings,
        "policy": PolicySettings,
        "gc": GcSettings,
        "fetch": FetchSettings,
    }
    tables |= {"prune": PruneSettings, "signatures": SignatureSettings, "farm": FarmSettings}
    plain = [name for name in Settings.model_fields if name not in tables]
    assert {f"ENVFABRIC_{name.upper()}" for name in plain} <= set(known)
    for table, kind in tables.items():
        assert {f"ENVFABRIC_{table}__{name}".upper() for name in kind.model_fields} <= set(known)
        assert f"ENVFABRIC_{table.upper()}" not in known


@pytest.mark.parametrize("place", ["flag", "variable", "here", "etc"])
def test_file_is_found(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """--config, else ENVFABRIC_CONFIG, else the current folder's file, else the machine's."""
    given = None
    for number, each in enumerate(("etc", "here", "variable", "flag")):
        names = {"etc": "etc/envfabric.toml", "here": "envfabric.toml"}
        path = write(f'branch = "{each}"\n', names.get(each, f"{number}.toml"))
        if each == "variable":
            monkeypatch.setenv("ENVFABRIC_CONFIG", str(path))
        if each == "flag":
            given = path
        if each == place:
            break
    assert load_settings(given, {}).branch == place


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('brnach = "x"', r"brnach is not a known setting; did you mean 'branch'\?"),
        ("[ray]\nverison = '2.60.0'", r"ray\.verison is not a known setting; did you mean 'version'\?"),
        ("[policy]\nindex = []", r"policy\.index is not a known setting; did you mean 'indexes'\?"),
        ("[polcy]\nindexes = []", r"polcy is not a known setting; did you mean 'policy'\?"),
        ("qqqqqqq = 1", r"qqqqqqq is not a known setting; known keys are: repo, path, branch"),
    ],
)
def test_unknown_key_names_the_nearest(text: str, told: str) -> None:
    """A mistyped key is an error that helps: it names the nearest known one, and the file."""
    path = write(text)
    with pytest.raises(ConfigError, match=told) as caught:
        load_settings(None, {})
    assert str(path.name) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ENVFABRIC_BRNACH", "ENVFABRIC_BRANCH"),
        ("ENVFABRIC_RAY_VERSION", "ENVFABRIC_RAY__VERSION"),
        ("ENVFABRIC_POLICY__INDEX", "ENVFABRIC_POLICY__INDEXES"),
        ("ENVFABRIC_CONFG", "ENVFABRIC_CONFIG"),
    ],
)
def test_unknown_variable_names_the_nearest(monkeypatch: pytest.MonkeyPatch, name: str, nearest: str) -> None:
    """A mistyped variable is an error, too, and never silently without effect."""
    monkeypatch.setenv(name, "x")
    with pytest.raises(ConfigError, match=f"{name} is not a known setting; did you mean '{nearest}'"):
        load_settings(None, {})


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("interval = 0", "interval"),
        ("interval = 4000", "interval"),
        ("interval = 'soon'", "interval"),
        ("builders = 0", "builders"),
        ("build_timeout = -1", "build_timeout"),
        ("python = '2.7'", "python"),
        ("python = 'python3'", "python"),
        ("listen = 'localhost'", "listen"),
        ("listen = '::1:9466'", "listen"),
        ("listen = '127.0.0.1:port'", "listen"),
        ("log_level = 'loud'", "log_level"),
        ("pythons = '/usr/bin'", "pythons"),
        ("root = 3", "root"),
        ("leases = 3", "leases"),
        ("[prune]\nconfirmed = ''", "prune.confirmed"),
        ("[prune]\nconfirmed = 'abcdef'", "prune.confirmed"),
        ("[prune]\nconfirmed = 'main-branch'", "prune.confirmed"),
        ("[prune]\nconfirmed = 'abcdef0 '", "prune.confirmed"),
        ("[gc]\ngrace = -1", "gc.grace"),
        ("[gc]\ngenerations = 0", "gc.generations"),
        ("[gc]\nmin_free = 100", "gc.min_free"),
        ("[gc]\nscan = 'perhaps'", "gc.scan"),
        ("[ray]\nversion = '2'", "ray.version"),
        ("[ray]\nversion = 'newest'", "ray.version"),
        ("[ray]\nrequired = 'perhaps'", "ray.required"),
        ("ray = 'yes'", "ray"),
    ],
)
def test_wrong_value_names_its_setting(text: str, setting: str) -> None:
    """A value that can't be used is refused at the start, by its setting's name."""
    write(text)
    with pytest.raises(ConfigError, match=rf"^{setting} = "):
        load_settings(None, {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("index = 'htp:/x'", "must be an https://, http:// or file:// address, or an absolute path"),
        ("[ray]\nversion = '2'", "must be a version in full, such as 2.60.0"),
        ("[ray]\npython = '3.11'", "must be a Python's version in full, such as 3.11.7"),
        ("[ray]\nrequired = 'perhaps'", "must be true or false, without quotes"),
        ("gc = '3'", "must be a table"),
        ("listen = 'localhost'", "must be HOST:PORT, such as 127.0.0.1:9466"),
    ],
)
def test_wrong_value_is_told_with_what_is_allowed(text: str, words: str) -> None:
    """In words for the one who wrote the file; an index that uv would take for a folder of its own is none."""
    write(text)
    with pytest.raises(ConfigError, match=rf": {re.escape(words)} \(settings: "):
        load_settings(None, {})


@pytest.mark.parametrize("commit", ["0123abc", "ABCDEF0", "0" * 40, "f" * 64])
def test_commit_that_is_confirmed(commit: str) -> None:
    """As git writes it, in full or the first 7 digits or more."""
    write(f"[prune]\nconfirmed = '{commit}'")
    assert load_settings(None, {}).prune.confirmed == commit


def test_wrong_variable_names_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of variables are checked like those of the file; a list must be JSON."""
    monkeypatch.setenv("ENVFABRIC_BUILDERS", "many")
    with pytest.raises(ConfigError, match=r"^builders = 'many'"):
        load_settings(None, {})
    monkeypatch.setenv("ENVFABRIC_BUILDERS", "2")
    monkeypatch.setenv("ENVFABRIC_PYTHONS", "/usr/bin/python3")
    with pytest.raises(ConfigError, match="ENVFABRIC_PYTHONS must be written as JSON"):
        load_settings(None, {})


@pytest.mark.parametrize("through", ["flag", "variable"])
def test_missing_file_is_an_error(monkeypatch: pytest.MonkeyPatch, through: str) -> None:
    """A file that was named and is not there is never passed over; nor is a folder taken for one."""
    for path in (Path.cwd() / "missing.toml", Path.cwd()):
        if through == "variable":
            monkeypatch.setenv("ENVFABRIC_CONFIG", str(path))
        with pytest.raises(ConfigError, match=f"{path} can't be read"):
            load_settings(path if through == "flag" else None, {})


@pytest.mark.parametrize("raw", [b"branch = ", b"branch = 'a'\nbranch = 'b'\n", b"branch = '\xff'"])
def test_bad_toml_names_the_file(raw: bytes) -> None:
    """What is no TOML is an error that names the file."""
    path = write("")
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=r"envfabric\.toml: not valid TOML"):
        load_settings(None, {})


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("127.0.0.1:9466", ("127.0.0.1", 9466)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:9466", ("::1", 9466)),
        ("[2001:db8::1]:80", ("2001:db8::1", 80)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
    ],
)
def test_address_of_listen(listen: str, expected: tuple[str, int]) -> None:
    """host:port and [IPv6]:port are taken apart."""
    assert address(load_settings(None, {"listen": listen}).listen) == expected


@pytest.mark.parametrize(
    "text",
    ["pythons = 'https://user:hid@den@x.example/simple'", "index = ['https://user:hid@den@x.example/simple']",
     "[policy]\nindexes = 'https://user:hid@den@x.example/simple'"],
)  # fmt: skip
def test_credentials_of_a_wrong_value_are_not_repeated(text: str) -> None:
    """A value that is refused is shown without the user and the password of a URL in it."""
    write(text)
    with pytest.raises(ConfigError, match=r"https://\*\*\*@x\.example") as caught:
        load_settings(None, {})
    assert "hid" not in str(caught.value)
    assert "den" not in str(caught.value)
    assert "user" not in str(caught.value)


@pytest.mark.parametrize("name", ["envfabric_rot", "Envfabric_Rot", "envfabric_ray_version"])
def test_unknown_variable_in_any_case_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Variables are understood in any case, and so a mistyped one is refused in any case."""
    monkeypatch.setenv("envfabric_branch", "prod")
    assert load_settings(None, {}).branch == "prod"
    monkeypatch.setenv(name, "x")
    with pytest.raises(ConfigError, match=f"{name} is not a known setting"):
        load_settings(None, {})


def test_file_that_can_not_be_read_is_an_error() -> None:
    """A settings file that is there and can't be read is an error that names it and says why."""
    # A regular file whose reading fails for root as well: nothing is mapped at its beginning.
    path = Path("/proc/self/mem")
    assert path.is_file()
    with pytest.raises(ConfigError, match=f"{path} can't be read: Input/output error"):
        load_settings(path, {})
