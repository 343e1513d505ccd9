"""Ray Data in an environment, its driver as well, so that all of it has the same pyarrow and pandas.

    ray job submit --working-dir . --runtime-env-json "$(envfabric runtime-env forecast/batch)" -- python ray_data.py

The environment needs "ray[data,default]" (`default` for the driver of a submitted job) and not envfabric. From a
driver of your own: ray.init(runtime_env=envfabric.runtime_env("forecast/batch")).
"""

import sys
from typing import Any

import ray


def in_words(batch: dict[str, Any]) -> dict[str, Any]:
    import humanize

    batch["words"] = [humanize.intcomma(int(number)) for number in batch["id"]]
    batch["where"] = [sys.prefix] * len(batch["words"])
    return batch


def main() -> None:
    ray.init()
    rows = ray.data.range(2000, override_num_blocks=2).map_batches(in_words).take_all()
    print(rows[-1]["words"], "of", len(rows), "in", *sorted({row["where"] for row in rows} | {sys.prefix}))


if __name__ == "__main__":
    main()
