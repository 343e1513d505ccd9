"""The dashboard of build health: is it working, what fails, how long from a commit to the index."""

from grafana_foundation_sdk.builders.dashboard import Dashboard
from parts import Ask, board, graph, grown, number, of, writers

_PUBLISH = "envfabric_commit_to_publish_seconds"
_PHASE = "envfabric_build_duration_seconds"


def _publish(share: float) -> str:
    buckets = f"rate({of(_PUBLISH + '_bucket')}[$__rate_interval])"
    return f"histogram_quantile({share}, sum by (le) ({buckets}))"


def _mean(metric: str, by: str = "") -> str:
    total, count = (f"sum{by} (rate({of(metric + end)}[$__rate_interval]))" for end in ("_sum", "_count"))
    return f"{total} / {count}"


def health() -> Dashboard:
    """Whether the daemons work, and what becomes of the commits."""
    made = board(
        "envfabric-health",
        "Environment Fabric: build health",
        "Whether the daemons work, which environments fail and why, and how long a commit takes to reach the index.",
        "envfabricreconcilestuck",
    )
    made.with_panel(
        number(
            "Environments",
            "The specs of the revision by state. stale serves its last good generation, failed serves nothing.",
            "short",
            [Ask(f"sum by (state) {writers('envfabric_specs')}", "{{state}}")],
            width=10,
        )
    )
    made.with_panel(
        number(
            "Daemons",
            "One writes for each ROOT, others stand by. held back is 1 while the newest revision waits for somebody.",
            "short",
            [
                Ask(f"sum({of('envfabric_writer')})", "writing"),
                Ask(f"count({of('envfabric_writer')} == 0) or vector(0)", "standing by"),
                Ask(f"max({of('envfabric_revision_held_back')})", "held back"),
            ],
            width=8,
        )
    )
    made.with_panel(
        number(
            "Age",
            "Since the repository was last looked at with success, and since index.json was last replaced. The second "
            "grows while nobody commits.",
            "s",
            [
                Ask(
                    f"time() - max({writers('envfabric_reconcile_last_success_timestamp_seconds')} > 0)",
                    "last good look",
                ),
                Ask(f"time() - max({of('envfabric_index_last_publish_timestamp_seconds')} > 0)", "index"),
            ],
            width=6,
        )
    )
    made.with_panel(
        graph(
            "Commit to index",
            "From the first sight of a commit to the index that makes its change true, and the part of it in which the "
            "revision is read and planned.",
            "s",
            [
                Ask(_publish(0.5), "median"),
                Ask(_publish(0.95), "95 %"),
                Ask(_mean("envfabric_reconcile_duration_seconds"), "read and plan, mean"),
            ],
        )
    )
    made.with_panel(
        graph(
            "Builds and failures",
            "Closures that were attempted, and specs whose content could not be made ready, by reason.",
            "short",
            [
                Ask(f"sum({grown('envfabric_builds_total')})", "builds"),
                Ask(f"sum by (reason) ({grown('envfabric_build_failures_total')}) > 0", "{{reason}}"),
            ],
            bars=True,
        )
    )
    made.with_panel(
        graph(
            "Build time",
            "The mean time of each phase of a build.",
            "s",
            [Ask(_mean(_PHASE, " by (phase)"), "{{phase}}")],
        )
    )
    made.with_panel(
        graph(
            "Queue",
            "Specs, questions to uv and closures that wait for a slot, and builds that run.",
            "short",
            [
                Ask(f"sum({of('envfabric_build_queue_length')})", "waiting"),
                Ask(f"sum({of('envfabric_builds_in_progress')})", "building"),
            ],
        )
    )
    made.with_panel(
        graph(
            "Looks, fetches and restarts",
            "Looks at the repository that found something new or failed, fetches from a remote one, those of both that "
            "failed, and starts of the daemons.",
            "short",
            [
                Ask(f"sum({grown('envfabric_reconciles_total')})", "looks"),
                Ask(f"sum({grown('envfabric_reconcile_failures_total')})", "looks failed"),
                Ask(f"sum({grown('envfabric_fetches_total')})", "fetches"),
                Ask(f"sum({grown('envfabric_fetch_failures_total')})", "fetches failed"),
                Ask(
                    f"sum(changes({of('process_start_time_seconds')}[$__rate_interval]) and on (job, instance) "
                    f"{of('envfabric_build_info')})",
                    "restarts",
                ),
            ],
            bars=True,
        )
    )
    return made
