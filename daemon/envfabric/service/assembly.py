"""Puts the rooms together: all that one turn as the writer of one ROOT needs, from the settings."""

import math
import queue
from collections.abc import Callable, Iterable
from functools import partial

from packaging.utils import canonicalize_name

from envfabric.build import cache
from envfabric.build.compiling import Compiled, Compiling
from envfabric.build.environment import Builder
from envfabric.build.farm.executor import Farm, Terms, site_of
from envfabric.build.interpreters import Interpreters
from envfabric.build.preflight import Cluster
from envfabric.build.pythons import Pythons, Sources
from envfabric.build.resolve import Resolver
from envfabric.build.trials import Trials
from envfabric.build.uv import Uv
from envfabric.index.publisher import Publisher
from envfabric.loop.again import Again
from envfabric.loop.board import Board
from envfabric.loop.collecting import Collecting, Schedule
from envfabric.loop.counting import Counting
from envfabric.loop.drift import Drift
from envfabric.loop.gate import Gate, Limits
from envfabric.loop.orders import Orders
from envfabric.loop.realise import Realiser
from envfabric.loop.reconciler import Reconciler
from envfabric.loop.repair import Repair
from envfabric.loop.trail import Trail
from envfabric.loop.work import Work
from envfabric.service.settings import Settings
from envfabric.specs.policy import Policy
from envfabric.specs.repository import Repository
from envfabric.specs.signatures import Signatures
from envfabric.store.bytecode import Bytecode
from envfabric.store.claims import Claims
from envfabric.store.closures import Closures
from envfabric.store.collect import Collector
from envfabric.store.files import Files
from envfabric.store.generations import Generations
from envfabric.store.history import History
from envfabric.store.leases import Leases
from envfabric.store.pins import Pins
from envfabric.store.requests import Inbox
from envfabric.store.retention import Holdings, Retention, Rules, Served, Serving
from envfabric.store.root import Root
from envfabric.store.usage import Usage
from envfabric.store.writer import Writer
from envfabric.telemetry.metrics import Metrics

_FRESH = 3600.0
"""Seconds for which an unused wheel stays in uv's cache even at low space: somebody may be about to link it."""


def assemble(
    settings: Settings,
    root: Root,
    files: Files,
    repository: Repository,
    writer: Writer,
    uv: Uv,
    metrics: Metrics,
    *,
    once: bool,
    adopt: bool = False,
    behind: Callable[[], str | None] = lambda: None,
    counted: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Reconciler, Publisher]:
    """The loop for one turn as the writer, and what publishes for it.

    `adopt`: the first revision may remove what it removes, see loop/gate; `behind` says why the repository may not be
    the newest, see loop/fetching; `counted` hears of each closure of a full count, see store/usage.
    """
    inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    closures, claims = Closures(root, files), Claims()
    generations, pins = Generations(root, files), Pins(root, files)
    usage, history = Usage(root, files, counted), History(root, files, writer.check)
    publisher = Publisher(root, files, writer, generations)
    board = Board(root, files, metrics, lambda: publisher.want(outcome=True), history.note)
    counting = Counting(usage, metrics, history.note)

    def mend(name: str) -> None:
        def begin() -> None:
            repair.begin([name], lambda _: True)

        # A validation changed it: it is made again for all that it serves, as any damage is.
        inbox.put(begin)

    def compiled(done: Compiled) -> None:
        metrics.bytecode_linked.inc(done.linked)
        metrics.bytecode_compiled.inc(done.compiled)

    compiling = Compiling(Bytecode(root, files), files, uv, told=compiled)
    farm = farm_of(settings, uv, writer.epoch, metrics)
    validate = metrics.build_duration.labels("validate").observe
    trials = Trials(root, files, closures, validate, mend)
    builder = Builder(
        closures, files, uv, compiling if settings.bytecode else None, farm, settings.farm.retries
    )
    realiser = Realiser(
        root,
        policy_of(settings),
        Cluster(settings.ray.version, settings.ray.python),
        interpreters_of(settings, root, files, uv, closures),
        Resolver(
            root,
            files,
            uv,
            closures.staging,
            settings.resolution_max_age,
            policy_of(settings),
            settings.exclude_newer,
        ),
        builder,
        trials,
        closures,
        generations,
        pins,
        claims,
        writer.check,
    )
    bounds = settings.builders, settings.build_timeout
    work = Work(board, repository, realiser, counting, metrics, *bounds, inbox.put)

    def serving() -> Served | None:
        published = publisher.published
        if published is None:
            return None
        found: dict[str, list[Serving]] = {one: [now] for one, now in board.serving().items()}
        # What the index on the NAS names counts until it is replaced.
        for spec_id, entry in published.entries.items():
            found.setdefault(spec_id, []).append(Serving(entry.serving, entry.generation))
        return found

    def check() -> None:
        collecting.still_writing()
        writer.check()

    def prune_cache(hurry: bool) -> cache.Evicted:
        # What left the store an hour ago may come back with the next commit; at low space it has to go.
        age = _FRESH if hurry else max(_FRESH, settings.gc.grace)
        try:
            return cache.prune(uv, root, files, age, check)
        except cache.CacheInUse:
            return cache.Evicted(0, 0, 0)
        finally:
            # What was unpacked once may have to be again: one build at a time.
            builder.forgotten()

    def forget(names: Iterable[str]) -> None:
        # First, and whatever becomes of the cache: what was read before the damage is not believed again. A rebuilt
        # closure would get the damaged file once more, with the digest that it had when it was whole.
        closures.distrust()
        compiling.distrust()
        try:
            cache.forget(uv, root, names)
        finally:
            builder.forgotten()

    retention = retention_of(settings, root, files, closures, generations, pins, serving)
    collector = Collector(retention, claims, check)
    schedule = Schedule(settings.gc.interval, settings.gc.min_free, prune_cache)
    collecting = Collecting(root, collector, usage, metrics, history, schedule, inbox.put)
    repair = Repair(root, board, work, closures, generations, history, forget, writer.check, inbox.put)
    if left := trials.unseen.names:
        # Killed in the middle of a validation: at what that changed nobody has looked.
        repair.begin(left, lambda _: True, partial(trials.unseen.proven, left))
    signed, prune = settings.signatures, settings.prune
    signatures = Signatures(signed.required, signed.allowed_signers, signed.gnupg_home)
    limits = Limits(prune.share, prune.count, prune.confirmed)
    gate = Gate(root, repository, partial(signatures.check, repository), limits, metrics, adopt=adopt)
    again = Again(board, work, realiser.asks, generations, claims)
    drift = Drift(root, board, work, realiser, publisher, closures, generations, repair, metrics, inbox.put)
    orders = Orders(
        board,
        work,
        publisher,
        closures,
        generations,
        pins,
        collecting,
        repair,
        again,
        gate,
        claims,
        Inbox(root, files, writer.check),
        history,
    )
    reconciler = Reconciler(
        repository,
        writer,
        closures,
        usage,
        pins,
        retention.closures_left,
        board,
        work,
        publisher,
        orders,
        collecting,
        repair,
        gate,
        drift,
        history,
        Trail(history, repository, generations, signatures.signer, counting.figures),
        metrics,
        inbox,
        interval=settings.interval,
        once=once,
        behind=behind,
    )
    return reconciler, publisher


def interpreters_of(settings: Settings, root: Root, files: Files, uv: Uv, closures: Closures) -> Interpreters:
    """Which interpreters these settings allow, and whether missing ones are brought to ROOT/pythons."""
    pythons: Pythons | None = None
    if settings.python_downloads != "never":
        sources = Sources(settings.python_install_mirror, settings.python_downloads_json_url)
        pythons = Pythons(root, files, uv, closures.staging, sources)
    return Interpreters(
        root,
        files,
        uv,
        settings.python,
        tuple(settings.pythons),
        pythons=pythons,
        only_managed=settings.python_preference == "only-managed",
    )


def farm_of(settings: Settings, uv: Uv, epoch: int, metrics: Metrics) -> Farm | None:
    """What builds on a cluster's nodes, where the settings want that."""
    told = settings.farm
    if told.executor == "local":
        return None
    terms = Terms(told.address, told.cpus, told.resources, told.per_node)
    # A task uses as many processors as Ray was asked for.
    workers = max(1, math.ceil(told.cpus)) if settings.bytecode else 0
    return Farm(partial(site_of, uv, epoch, workers), terms, metrics)


def policy_of(settings: Settings) -> Policy:
    """What specs may ask for by these settings."""
    told = settings.policy
    return Policy(
        indexes=tuple(told.indexes),
        ray=settings.ray.required,
        uv_keys=frozenset(told.uv_keys),
        sources=tuple(told.sources),
        build_from_source=frozenset(map(canonicalize_name, told.build_from_source)),
        max_packages=told.max_packages,
        max_bytes=told.max_bytes,
        cooldown=told.cooldown,
        validation=frozenset({"minimal", *told.validation}),
    )


def retention_of(
    settings: Settings,
    root: Root,
    files: Files,
    closures: Closures,
    generations: Generations,
    pins: Pins,
    serving: Callable[[], Served | None],
) -> Retention:
    """What is retained on ROOT by these settings; reading it needs no lock."""
    gc = settings.gc
    rules = Rules(
        gc.grace, gc.generations, gc.generation_age, gc.trash_age, gc.scan, settings.resolution_max_age
    )
    return Retention(Holdings(root, files, closures, generations, pins, Leases(root, files), rules, serving))
