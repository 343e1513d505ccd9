"""The dashboard of storage and sharing: what is on ROOT, what sharing saves, and how much room is left."""

from grafana_foundation_sdk.builders.dashboard import Dashboard
from parts import Ask, board, graph, grown, number, of, writers


def storage() -> Dashboard:
    """What the store takes and saves."""
    made = board(
        "envfabric-storage",
        "Environment Fabric: storage and sharing",
        "What environments take on the NAS, what they share, how much room is left, and what the collector gives back.",
        "envfabricdisklow",
    )
    asked, found = (
        f"sum(increase({of(f'envfabric_closure_{one}_total')}[$__range]))" for one in ("requests", "hits")
    )
    logical, saved = (f"sum{writers(f'envfabric_{one}_bytes')}" for one in ("store_logical", "disk_saved"))
    made.with_panel(
        number(
            "Shared",
            "Of the closures that specs needed within the time shown, those that were in the store already; and of "
            "what all environments would take alone, what is saved.",
            "percentunit",
            [Ask(f"{found} / {asked}", "found in the store"), Ask(f"{saved} / {logical}", "disk saved")],
            width=12,
        )
    )
    made.with_panel(
        number(
            "Room left",
            "What is free of ROOT's file system, in space and in inodes. The collector hurries below gc.min_free, "
            "5 % by default. Without inodes where the file system does not count them.",
            "percentunit",
            [
                Ask(f"min({of('envfabric_root_free_bytes')} / {of('envfabric_root_size_bytes')})", "space"),
                Ask(
                    f"min({of('envfabric_root_free_inodes')} / ({of('envfabric_root_inodes')} > 0))", "inodes"
                ),
            ],
            width=12,
            steps=((None, "red"), (0.05, "orange"), (0.1, "green")),
        )
    )
    made.with_panel(
        graph(
            "Disk",
            "logical: what every served spec would take alone. physical: what the store's inodes take, each once. "
            "saved: the difference. bytecode: compiled files, of which most are in physical, too. free: of ROOT's file "
            "system.",
            "bytes",
            [
                Ask(f"sum{writers('envfabric_store_logical_bytes')}", "logical"),
                Ask(f"sum{writers('envfabric_store_physical_bytes')}", "physical"),
                Ask(f"sum{writers('envfabric_disk_saved_bytes')}", "saved"),
                Ask(f"sum{writers('envfabric_bytecode_bytes')}", "bytecode"),
                Ask(f"sum{writers('envfabric_root_free_bytes')}", "free"),
            ],
        )
    )
    made.with_panel(
        graph(
            "Closures",
            "Sealed closures in the store, and those that leases hold.",
            "short",
            [
                Ask(f"sum{writers('envfabric_store_closures')}", "in the store"),
                Ask(f"sum{writers('envfabric_leased_closures')}", "leased"),
            ],
        )
    )
    made.with_panel(
        graph(
            "Inodes",
            "Distinct inodes under store/, and compiled files in bytecode/, counted by the collector's last walk.",
            "short",
            [
                Ask(f"sum{writers('envfabric_store_inodes')}", "store"),
                Ask(f"sum{writers('envfabric_bytecode_inodes')}", "bytecode"),
            ],
        )
    )
    made.with_panel(
        graph(
            "Bytecode",
            "Compiled files that new environments got by a link, and sources that had to be compiled for them. Builds "
            "on the nodes of a farm are not counted here.",
            "short",
            [
                Ask(f"sum({grown('envfabric_bytecode_linked_total')})", "linked"),
                Ask(f"sum({grown('envfabric_bytecode_compiled_total')})", "compiled"),
            ],
            bars=True,
            stacked=True,
        )
    )
    made.with_panel(
        graph(
            "Copies and drift",
            "Files that were copied where a hardlink was wanted: each takes its space again. And what was found not to "
            "be as it was left, and mended.",
            "short",
            [
                Ask(f"sum({grown('envfabric_link_fallbacks_total')})", "copied, not linked"),
                Ask(f"sum by (kind) ({grown('envfabric_drift_total')})", "drift: {{kind}}"),
            ],
            bars=True,
        )
    )
    made.with_panel(
        graph(
            "Collector",
            "Collections, those that failed, closures that they removed, and the bytes that came back.",
            "short",
            [
                Ask(f"sum({grown('envfabric_gc_runs_total')})", "collections"),
                Ask(f"sum({grown('envfabric_gc_failures_total')})", "failed"),
                Ask(f"sum({grown('envfabric_gc_removed_total')})", "closures removed"),
                Ask(f"sum({grown('envfabric_gc_reclaimed_bytes_total')})", "given back"),
            ],
            bars=True,
            units=[("given back", "bytes")],
        )
    )
    return made
