"""One job, two environments: a task and an actor, with versions of one package that exclude each other.

    ray job submit --working-dir . -- python ray_job.py

The job's own process runs in the nodes' Python, which has envfabric because the plugin is in it; ENVFABRIC_ROOT was set
there before `ray start`. What it starts runs
in the environments, which need ray and not envfabric.
"""

import sys

import ray

import envfabric


def report() -> str:
    # Imported here: only the environments have it.
    import humanize

    return f"humanize {humanize.__version__} in {sys.prefix}"


class Scorer:
    def score(self) -> str:
        return report()


def main() -> None:
    ray.init()
    # Asked for when it is needed, and not in a decorator: what is served now, whatever was when this was imported.
    # wait=600 would wait for an environment that is being built.
    train = envfabric.runtime_env("forecast/train")
    score = envfabric.runtime_env("forecast/score", env_vars={"MODE": "nightly"})
    trained = ray.remote(report).options(runtime_env=train).remote()
    scorer = ray.remote(Scorer).options(runtime_env=score).remote()
    print("forecast/train:", ray.get(trained))
    print("forecast/score:", ray.get(scorer.score.remote()))


if __name__ == "__main__":
    main()
