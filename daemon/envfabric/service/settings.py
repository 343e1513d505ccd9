"""The daemon's settings: envfabric.toml, ENVFABRIC_… variables, flags; each declared once, here.

A flag wins over a variable, a variable over the file. An unknown key is an error that names the
nearest known one.
"""

import os
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from envfabric.client.index import find_config
from envfabric.core.errors import ConfigError, redact
from envfabric.specs.addresses import parse_address
from envfabric.specs.policy import UV_KEYS
from envfabric.specs.table import in_words, nearest

PREFIX = "ENVFABRIC_"
_OTHER_VARIABLES = {"CONFIG"}


def _host_and_port(text: str) -> str:
    if not re.fullmatch(r"(?:[^:\s]+|\[[^\]\s]+\]):\d{1,5}", text):
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:9466")
    return text


def _address(text: str) -> str:
    # One that can't be read would allow nothing, without a word.
    parse_address(text, git=text.startswith(("git+", "ssh:")))
    return text


def _commit(text: str) -> str:
    # As loop/gate compares it; any other would confirm nothing, without a word.
    if not re.fullmatch(r"[0-9a-fA-F]{7,64}", text):
        raise ValueError("must be a commit's id, or at least its first 7 digits")
    return text


def _moment(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or (len(text) > len("2026-01-31") and moment.tzinfo is None):
        raise ValueError("must be a date such as 2026-01-31, or a moment with its zone, 2026-01-31T12:00:00Z")
    return text


def _version(text: str) -> str:
    try:
        full = re.match(r"\d+\.\d+\.\d+", text) and Version(text)
    except InvalidVersion:
        full = None
    if not full:
        raise ValueError("must be a version in full, such as 2.60.0")
    return text


def _python(text: str) -> str:
    if not re.fullmatch(r"3\.\d+\.\d+", text, re.ASCII):
        raise ValueError("must be a Python's version in full, such as 3.11.7")
    return text


def _index(text: str) -> str:
    # uv takes anything else for a folder below the one that it runs in, and finds no package there.
    if not re.match(r"/|https?://|file://", text):
        raise ValueError("must be an https://, http:// or file:// address, or an absolute path")
    return text


class RaySettings(BaseModel):
    """`[ray]`: the cluster that the environments are for."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[str, AfterValidator(_version)] | None = None
    """The cluster's Ray, in full, such as 2.60.0."""
    python: Annotated[str, AfterValidator(_python)] | None = None
    """The cluster's Python, in full, such as 3.11.7: the default of specs that require Ray, which get its minor."""
    required: bool = False
    """Whether a spec that says nothing must contain Ray."""


class PolicySettings(BaseModel):
    """`[policy]`: what specs may ask for."""

    model_config = ConfigDict(extra="forbid")

    indexes: list[str] = Field(default_factory=list)
    """Package indexes, besides the default one, that a spec's [[tool.uv.index]] may name."""
    uv_keys: list[str] = Field(default_factory=lambda: sorted(UV_KEYS))
    """The keys of [tool.uv] that a spec may have."""
    sources: list[Annotated[str, AfterValidator(_address)]] = Field(default_factory=list)
    """How the address of a git or URL source must begin, such as https://wheels.example/team/; none by default."""
    build_from_source: list[str] = Field(default_factory=list)
    """Names of packages whose source distributions may be built, which runs their code; none by default."""
    max_packages: Annotated[int, Field(ge=1)] = 1000
    """The most packages of one environment."""
    max_bytes: Annotated[int, Field(ge=1)] = 32 * 1024**3
    """The most bytes of one environment."""
    cooldown: Annotated[float, Field(ge=0)] = 0.0
    """Seconds that a release has to be old before it is taken."""
    validation: list[Literal["minimal", "full", "custom"]] = ["minimal"]
    """What a spec's `validate` may say; "minimal" always may. The others run packages' code on the builder."""


class FetchSettings(BaseModel):
    """`[fetch]`: how a remote spec repository is followed."""

    model_config = ConfigDict(extra="forbid")

    interval: Annotated[float, Field(gt=0, le=86400)] = 30.0
    """Seconds between two fetches that nobody asked for, a tenth more or less."""
    timeout: Annotated[float, Field(gt=0)] = 300.0
    """Seconds after which a fetch is ended."""
    state: Path | None = None
    """The local folder for mirrors; $STATE_DIRECTORY, else envfabric/ in $XDG_STATE_HOME or ~/.local/state."""


class PruneSettings(BaseModel):
    """`[prune]`: a revision that removes more than both, or all specs, is held back until it is confirmed."""

    model_config = ConfigDict(extra="forbid")

    share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """The share of the specs that one revision may remove."""
    count: Annotated[int, Field(ge=0)] = 10
    """The number of specs that one revision may remove, whatever their share."""
    confirmed: Annotated[str, AfterValidator(_commit)] | None = None
    """A commit that may remove what it removes: its id, or the first 7 digits of it or more."""


class SignatureSettings(BaseModel):
    """`[signatures]`: whose commits are made true."""

    model_config = ConfigDict(extra="forbid")

    required: bool = False
    """Whether the revision's commit must carry a good signature of a listed key."""
    allowed_signers: Path | None = None
    """For ssh signatures: the list of keys, as `ssh-keygen` reads it."""
    gnupg_home: Path | None = None
    """For gpg signatures: a GnuPG home whose keyring holds the allowed keys and no other."""


class GcSettings(BaseModel):
    """`[gc]`: what is kept although nothing uses it, and when the collector runs."""

    model_config = ConfigDict(extra="forbid")

    grace: Annotated[float, Field(ge=0)] = 14 * 86400.0
    """Seconds for which a closure stays after its last use: plain readers of index.json hold no lease."""
    generations: Annotated[int, Field(ge=1)] = 10
    """The newest generations of a spec that are retained, whatever their age."""
    generation_age: Annotated[float, Field(ge=0)] = 30 * 86400.0
    """Seconds for which every generation is retained, and those of a spec that was removed."""
    trash_age: Annotated[float, Field(ge=0)] = 3600.0
    """Seconds between a closure's way into trash/ and its deletion."""
    interval: Annotated[float, Field(ge=0)] = 3600.0
    """Seconds between two collections; 0 for none by itself."""
    min_free: Annotated[float, Field(ge=0, lt=100)] = 5.0
    """Free space or inodes, in percent, below which a collection begins at once."""
    scan: bool = True
    """Whether the processes of the daemon's host are looked at."""


def _amount(amount: float) -> float:
    # As Ray has it; it would refuse each build.
    if amount > 1 and amount % 1:
        raise ValueError("must be a whole number where it is above 1")
    return amount


def _own_resource(name: str) -> str:
    if name in {"CPU", "GPU", "memory", "object_store_memory"}:
        raise ValueError("is no custom resource: farm.cpus is what a build is given of Ray's own")
    return name


class FarmSettings(BaseModel):
    """`[farm]`: where environments are built."""

    model_config = ConfigDict(extra="forbid")

    executor: Literal["local", "ray"] = "local"
    """On the daemon's host, or on the nodes of a Ray cluster that mount ROOT."""
    address: str = "auto"
    """The cluster that the daemon's host is a node of, as HOST:PORT; "auto" is the one that runs on it."""
    cpus: Annotated[float, Field(ge=0), AfterValidator(_amount)] = 1.0
    """The CPUs that Ray sets aside for each build, and that it compiles bytecode with."""
    resources: dict[
        Annotated[str, AfterValidator(_own_resource)],
        Annotated[float, Field(gt=0), AfterValidator(_amount)],
    ] = Field(default_factory=dict)
    """Other resources of Ray's that a build takes: only nodes that have them build."""
    per_node: Annotated[int, Field(ge=1)] = 2
    """Builds on one node at a time; `builders` counts all."""
    retries: Annotated[int, Field(ge=0, le=20)] = 3
    """Times that a build is begun anew because its node was lost."""


class Settings(BaseSettings):
    """Every setting of the daemon."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid")

    repo: str | None = None
    """The spec repository: on this machine a work tree's top folder or a bare repository, else its URL."""
    path: str = ""
    """The folder of the repository that holds the specs; its top by default."""
    branch: str | None = None
    """The branch to follow; what HEAD points at by default."""
    root: Path | None = None
    """The NAS folder."""
    listen: Annotated[str, AfterValidator(_host_and_port)] = "127.0.0.1:9466"
    """Address and port of the HTTP server; port 0 takes a free one."""
    interval: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """Seconds between two looks at the repository that no notification asked for."""
    builders: Annotated[int, Field(ge=1, le=256)] = max(2, os.cpu_count() or 2)
    """Closures that are built at a time."""
    bytecode: bool = True
    """Whether environments get compiled bytecode, each source compiled once for all of them."""
    build_timeout: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds after which a resolution or build is ended, with all its processes."""
    index: Annotated[str, AfterValidator(_index)] | None = None
    """The default package index where the daemon resolves; uv's own by default."""
    exclude_newer: Annotated[str, AfterValidator(_moment)] | None = None
    """Releases of this moment and later are not taken where the daemon resolves; a date, or date and time with zone."""
    resolution_max_age: Annotated[float, Field(ge=0)] = 86400.0
    """Seconds for which specs that ask for the same share one resolution."""
    python: Annotated[str, Field(pattern=r"^3\.\d+(\.\d+)?$")] = f"3.{sys.version_info.minor}"
    """The Python for specs that do not choose: a minor or a full version."""
    pythons: list[str] = Field(default_factory=list)
    """Interpreters, or folders of them, that may be used; by default all that uv finds."""
    python_preference: Literal["managed", "only-managed"] = "managed"
    """Those in ROOT/pythons before others, or no others."""
    python_downloads: Literal["never", "automatic"] = "never"
    """Whether uv brings a Python that no interpreter meets to ROOT/pythons."""
    python_install_mirror: str | None = None
    """Where uv downloads Pythons from; http(s):// or file://. What UV_PYTHON_INSTALL_MIRROR says by default."""
    python_downloads_json_url: str | None = None
    """The list of Pythons that can be downloaded, in place of uv's own; a path, file:// or http(s)://."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe log line that is written: debug, info, warning or error."""
    ray: RaySettings = Field(default_factory=RaySettings)
    leases: Path | None = None
    """Where consumers' leases lie; ROOT/leases by default."""
    reconcile_token: SecretStr | None = None
    """What POST /reconcile has to carry as its bearer token; without one it is taken from loopback only."""
    fetch: FetchSettings = Field(default_factory=FetchSettings)
    prune: PruneSettings = Field(default_factory=PruneSettings)
    signatures: SignatureSettings = Field(default_factory=SignatureSettings)
    policy: PolicySettings = Field(default_factory=PolicySettings)
    gc: GcSettings = Field(default_factory=GcSettings)
    farm: FarmSettings = Field(default_factory=FarmSettings)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then variables, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(config: Path | None, flags: dict[str, Any], *, discover: bool = True) -> Settings:
    """The settings in force; `discover` looks for a file where `config` names none.

    Raises `ConfigError` that names the wrong key and what is allowed.
    """
    file = find_config(config) if discover else config
    if file is not None:
        try:
            file.read_bytes()
        except OSError as error:
            raise ConfigError(f"the settings file {file} can't be read: {error.strerror}") from error
    _check_variables()

    class Loaded(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Loaded(**given)
    except ValidationError as error:
        raise ConfigError(_explain(error, file)) from None
    except SettingsError as error:
        name = match[1] if (match := re.search(r'field "(\w+)"', str(error))) else "a list"
        raise ConfigError(
            f'{PREFIX}{name.upper()} must be written as JSON, a list such as \'["one", "two"]\''
        ) from None
    except ValueError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None


def address(listen: str) -> tuple[str, int]:
    """Host and port of a `listen` setting."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


def variables() -> list[str]:
    """Every ENVFABRIC_… variable that is understood."""
    names = []
    for name, info in Settings.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += [f"{PREFIX}{name}__{inner}".upper() for inner in kind.model_fields]
        else:
            names.append(f"{PREFIX}{name}".upper())
    return names


def _check_variables() -> None:
    known = variables() + [PREFIX + name for name in _OTHER_VARIABLES]
    for name in os.environ:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            raise ConfigError(f"{name} is not a known setting; {nearest(name, known)}")


def _explain(error: ValidationError, file: Path | None) -> str:
    first = error.errors()[0]
    loc = [str(part) for part in first["loc"]]
    where = ".".join(loc)
    source = f" (settings: {file}, {PREFIX}… variables, flags)" if file else ""
    if first["type"] == "extra_forbidden":
        fields: Any = Settings.model_fields
        for part in loc[:-1]:
            fields = fields[part].annotation.model_fields
        return f"{where} is not a known setting; {nearest(loc[-1], list(fields))}{source}"
    # Redacted before it is cut: half of a URL no longer looks like one.
    shown = redact(re.sub(r"\s+", " ", str(first.get("input", ""))))[:80]
    return redact(f"{where} = {shown!r}: {in_words(first)}{source}")
