"""In a driver: decides which environment a runtime_env written by hand means, before Ray sends it to the nodes.

    RAY_RUNTIME_ENV_HOOK=envfabric.client.driver.hook

`ray.init` calls the hook with the job's runtime_env, the one place that Ray offers; from then on `RuntimeEnv` itself
decides for tasks and actors of this process, too. Without the hook a value without a digest is refused by the node.
"""

import functools
from collections.abc import Mapping
from typing import Any

from envfabric.client.api import answered
from envfabric.client.fitting import refuse_absent
from envfabric.client.runtime import runtime_env
from envfabric.client.wanted import KEY, parse

_MARK = "_envfabric_decides"


def hook(given: Mapping[str, Any] | None) -> Any:
    """The runtime_env of `ray.init`, with the environment decided. Raises what `envfabric.runtime_env` raises."""
    decide_for_tasks()
    return given if given is None else decided(given)


def decided(given: Mapping[str, Any]) -> Any:
    """A runtime_env in which the key has its digest, py_executable and env_vars; itself where it has no such key.

    Itself, too, where it was made by `envfabric.runtime_env`; then it is only seen that its interpreter is still there.
    """
    value = given.get(KEY)
    if value is None:
        return given
    wanted = parse(value)
    if wanted.named_by(given.get("py_executable")):
        python = f"{wanted.root}/store/{wanted.digest}/.venv/bin/python"
        answered(wanted.timeout, lambda: refuse_absent(python, ray=True), python)
        return given
    rest = {name: one for name, one in given.items() if name != KEY}
    spec_id = wanted.id if wanted.digest is None else f"{wanted.id}@{wanted.digest}"
    options = {name: one for name, one in wanted.told().items() if name not in {"id", "digest"}}
    overrides: dict[str, Any] = {**rest, KEY: options}
    return runtime_env(spec_id, **overrides)


def decide_for_tasks() -> None:
    """Lets every runtime_env that this process makes for a task or an actor be decided as `ray.init`'s is.

    Ray has no hook for them, so its `RuntimeEnv` is made to. Those of decorators that ran before are as they were.
    """
    from ray.runtime_env import RuntimeEnv

    original = RuntimeEnv.__init__
    if getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def init(self: Any, **given: Any) -> None:
        # Where Ray reads one that it has written, `_validate` is False: it was decided by whoever wrote it.
        original(self, **(decided(given) if given.get("_validate", True) else given))

    setattr(init, _MARK, True)
    RuntimeEnv.__init__ = init  # type: ignore[method-assign]
