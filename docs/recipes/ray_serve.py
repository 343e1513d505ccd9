"""A Serve deployment in an environment.

    serve run --working-dir . ray_serve:app
    curl "http://localhost:8000/?number=1234567"

The environment needs "ray[serve]". Replicas stay in the generation that they were started in; the same command
brings them to what is served then.
"""

import sys
from typing import Any

from ray import serve
from ray.serve import Application
from starlette.requests import Request


@serve.deployment
class InWords:
    def __init__(self) -> None:
        import humanize

        self.humanize = humanize

    async def __call__(self, request: Request) -> dict[str, str]:
        number = int(request.query_params["number"])
        return {"words": self.humanize.intcomma(number), "where": sys.prefix}


def app(_: dict[str, Any]) -> Application:
    # Here, and not above: replicas import this file, and their environment has no envfabric.
    import envfabric

    return InWords.options(ray_actor_options={"runtime_env": envfabric.runtime_env("forecast/score")}).bind()
