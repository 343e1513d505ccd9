"""A spec's own table, `[tool.envfabric]`: its keys, their types and what is said of a wrong one."""

import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from envfabric.core.ids import shown

ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Text = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f]*$")]
"""Line ends and tabs are the only control characters: a NUL would end a process's start, an escape paints terminals."""
_MOST = Field(max_length=500)
MAX_RUNTIME_ENV = 32 * 1024
"""Most bytes of a runtime-env table as JSON: all who read the index read it."""


class RuntimeEnv(BaseModel):
    """`[tool.envfabric.runtime-env]`: what a consumer adds to the interpreter."""

    model_config = ConfigDict(extra="forbid", strict=True)

    env_vars: Annotated[dict[VariableName, Text], _MOST] = Field(default_factory=dict)
    working_dir: Text | None = None
    excludes: Annotated[list[Text], _MOST] = Field(default_factory=list)

    @model_validator(mode="after")
    def _bounded(self) -> "RuntimeEnv":
        size = len(json.dumps(self.model_dump()))
        if size > MAX_RUNTIME_ENV:
            told = f"has {size} bytes as JSON; at most {MAX_RUNTIME_ENV} are read. Put what is long into working_dir"
            raise PydanticCustomError("too_large", "{told}", {"told": told})
        return self


class SpecTable(BaseModel):
    """`[tool.envfabric]`; every key is optional."""

    model_config = ConfigDict(extra="forbid", strict=True)

    python: Text | None = None
    extras: Annotated[list[Text], _MOST] = Field(default_factory=list)
    groups: Annotated[list[Text], _MOST] = Field(default_factory=list)
    suspend: bool = False
    ray: bool | None = None
    validation: Literal["minimal", "full", "custom"] = Field("minimal", alias="validate")
    imports: Annotated[list[ModuleName], _MOST] = Field(default_factory=list)
    command: Annotated[list[Text], _MOST] = Field(default_factory=list)
    runtime_env: RuntimeEnv = Field(default_factory=RuntimeEnv, alias="runtime-env")


_IN_WORDS = dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false, without quotes")
_IN_WORDS |= dict.fromkeys(("int_type", "int_parsing", "float_type", "float_parsing"), "must be a number")
_IN_WORDS |= dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "must be a table")
_IN_WORDS |= {
    "string_type": "must be a text, in quotes",
    "list_type": 'must be a list, such as ["one", "two"]',
}
"""By pydantic's types of errors: its own words are for those who write programs."""


def read_table(raw: Any) -> SpecTable:
    """The checked table. Raises `ValueError` whose text names the key, and the nearest known one."""
    if not isinstance(raw, dict):
        raise ValueError(f"[tool.envfabric] must be a table, not {type(raw).__name__}")  # noqa: TRY004
    try:
        return SpecTable.model_validate(raw)
    except ValidationError as error:
        raise ValueError(_explain(error)) from None


def nearest(unknown: str, known: list[str]) -> str:
    """What to say of an unknown key: the nearest known one, or all that there are."""
    # Its time grows with the square of a long text.
    close = difflib.get_close_matches(unknown[:100], known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known keys are: {', '.join(known)}"


def in_words(found: Mapping[str, Any]) -> str:
    """What is wrong with one value, for the one who wrote it in a TOML file."""
    return _IN_WORDS.get(found["type"]) or str(found["msg"]).removeprefix("Value error, ")


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(["tool.envfabric", *(shown(str(part), 60) for part in first["loc"])])
    if first["type"] == "extra_forbidden":
        model: type[BaseModel] = RuntimeEnv if len(first["loc"]) > 1 else SpecTable
        known = [info.alias or name for name, info in model.model_fields.items()]
        return f"{where} is not a known key; {nearest(str(first['loc'][-1]), known)}"
    return f"{where}: {in_words(first)}"
