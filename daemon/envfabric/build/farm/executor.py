"""The Ray executor: has each staging folder filled on a node of the cluster, and says which node it is.

It keeps one link to the cluster, a new one where the last was lost; which node is next is the line's to say
(`line`), and what becomes of a build there is followed by `remote`. Touches nothing of ROOT but its marker, which it
reads.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from envfabric.build.farm.line import Line, Terms
from envfabric.build.farm.link import PATIENCE, Link, Unreachable
from envfabric.build.farm.remote import Remote
from envfabric.build.farm.words import Node, Site
from envfabric.build.scope import Stopped, current
from envfabric.build.uv import Uv
from envfabric.core.errors import Reason, SpecError, hidden
from envfabric.telemetry.metrics import Metrics

__all__ = ["Farm", "Terms", "site_of"]

_AGAIN = 5.0
"""Seconds for which a cluster that could not be reached is not asked again."""


class Farm:
    """Fills staging folders on a Ray cluster's nodes. Safe for threads."""

    elsewhere = True

    def __init__(self, site: Callable[[], Site], terms: Terms, metrics: Metrics) -> None:
        """`site` gives what nodes are compared with, as it is now."""
        self._site = site
        self._terms = terms
        self._metrics = metrics
        self._line = Line(terms)
        self._stopping = threading.Event()
        self._link: Link | None = None
        self._linking = threading.Lock()

    @contextlib.contextmanager
    def host(self) -> Iterator[Remote]:
        """As `Executor.host`: a node."""
        with contextlib.ExitStack() as stack:
            # A cluster that is busy, or starting, is no fault of the build's.
            with current().paused():
                link, node = self._found(stack)
            yield Remote(link, node, self._line, self._site, self._terms, self._metrics, self._stopping)

    def stop(self) -> None:
        """Leaves the cluster, which ends what runs there, and lets nothing begin any more."""
        self._stopping.set()
        if (link := self._link) is not None:
            link.close()
        self._line.stop()

    def _found(self, stack: contextlib.ExitStack) -> tuple[Link, Node]:
        link = self._connected()
        try:
            return link, self._node(stack, link)
        except Unreachable as error:
            if not link.lost:
                raise self._unreachable(error) from None
        # It was lost while this one waited: that is no reason to fail what has not begun.
        link = self._connected()
        try:
            return link, self._node(stack, link)
        except Unreachable as error:
            raise self._unreachable(error) from None

    def _node(self, stack: contextlib.ExitStack, link: Link) -> Node:
        def ask() -> list[Node] | None:
            try:
                return link.nodes()
            except Unreachable:
                # A head that is away for a moment, as while it is started anew, is waited for: it would fail one
                # build of the line after the other.
                if link.lost or link.silent >= PATIENCE:
                    raise
                return None

        return stack.enter_context(self._line.node(ask))

    def _connected(self) -> Link:
        """The link to the cluster, a new one where the last is lost. Raises `SpecError` (internal), `Stopped`."""
        with self._linking:
            if self._stopping.is_set():
                raise Stopped
            link = self._link
            # Hundreds of builds need not each find out by themselves that the cluster can't be reached.
            if link is None or (link.lost and (link.unreached is None or link.unreached >= _AGAIN)):
                self._link = link = Link(self._terms.address)
                self._line.forget()
        if self._stopping.is_set():
            link.close()
        try:
            # Outside of the lock: whoever is cancelled meanwhile need not wait for the others.
            link.ready()
        except Unreachable as error:
            raise self._unreachable(error) from None
        return link

    def _unreachable(self, error: Unreachable) -> Exception:
        if self._stopping.is_set():
            return Stopped()
        return SpecError(
            Reason.INTERNAL,
            f"the Ray cluster of the build farm ({self._terms.address}) can't be reached: {error}. Check that Ray runs "
            "on the daemon's host and farm.address is right; the build is tried again by itself.",
        )


def site_of(uv: Uv, epoch: int, workers: int) -> Site:
    """What nodes are compared with and told, as it is now; `workers` as in `Site`. Raises `OSError`."""
    secrets = dict(uv.secrets)
    path = secrets.pop("NETRC", None)
    return Site(
        root=str(uv.root.path),
        marker=uv.root.marker.read_bytes(),
        uid=os.geteuid(),
        uv_version=uv.version(),
        epoch=epoch,
        index=uv.index,
        workers=workers,
        secrets=secrets,
        # The file lies on this host.
        netrc=None if path is None else Path(path).read_text("utf-8", "replace"),
        hidden=hidden(),
    )
