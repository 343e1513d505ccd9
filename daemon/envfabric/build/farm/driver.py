"""The farm's process in the cluster: connects to Ray, and submits what the daemon says. Run as a program.

    python -m envfabric.build.farm.driver DESCRIPTOR ADDRESS

It is a child of the daemon, and speaks with it over the socket DESCRIPTOR: when that is closed, however the daemon
ended, it ends, and Ray then ends the tasks of its job. Losing the cluster may end it, too, which is why it is no part
of the daemon. The one module of the daemon's side that imports ray. Touches nothing of ROOT.
"""

import contextlib
import os
import queue
import socket
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

import ray
from ray.exceptions import RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from envfabric.build.farm import node
from envfabric.build.farm.words import Node, Word, packed

_ANSWER = 10.0
"""Seconds in which the cluster's address has to take a connection."""


class Driver:
    """What is submitted now. Safe for threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._running: dict[int, Any] = {}
        """What was submitted, by key; None until it is."""
        self._cancelled: set[int] = set()
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Word] = queue.SimpleQueue()
        self._asked: queue.SimpleQueue[int] = queue.SimpleQueue()
        """Questions for the nodes that nobody has answered yet."""
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self, address: str) -> None:
        """Connects, and does what the daemon says until it is gone."""
        try:
            _check(address)
            ray.init(address=address, log_to_driver=False, namespace="envfabric")
        except Exception as error:
            self._say({"failed": f"{type(error).__name__}: {error}"})
            return
        self._say({"ready": ray.__version__})
        # A head that hangs keeps who asks it for as long as it hangs: submissions and cancels must not wait for that.
        threading.Thread(target=self._answer, daemon=True).start()
        while True:
            asked = self._inbox.get()
            if "nodes" in asked:
                self._asked.put(asked["nodes"])
            elif "cancel" in asked:
                self._cancel(asked["cancel"])
            else:
                with self._lock:
                    self._running[asked["key"]] = None
                threading.Thread(target=self._submit, args=(asked,), daemon=True).start()

    def _listen(self) -> None:
        # A thread of its own from the start: the daemon may go while the cluster is waited for.
        while True:
            try:
                self._inbox.put(self._connection.recv())
            except (EOFError, OSError):
                os._exit(0)

    def _say(self, word: Word) -> None:
        # An OSError means that the daemon is gone: `_listen` hears that, too.
        with self._sending, contextlib.suppress(OSError):
            self._connection.send_bytes(packed(word))

    def _answer(self) -> None:
        while True:
            keys = [self._asked.get()]
            # Those that came while the head did not answer have one answer.
            with contextlib.suppress(queue.Empty):
                while True:
                    keys.append(self._asked.get_nowait())
            told = _told_nodes()
            for key in keys:
                self._say({"key": key, **told})

    def _submit(self, asked: Word) -> None:
        key = asked["key"]
        try:
            self._follow(key, asked)
        except TaskCancelledError:
            self._say({"key": key, "lost": "it was cancelled"})
        except RayTaskError as error:
            # Nothing of ours fails there but being imported.
            self._say({"key": key, "broken": str(error)})
        except Exception as error:
            first = str(error).strip().splitlines()
            told = f"{type(error).__name__}: {first[0] if first else ''}"
            self._say({"key": key, "lost": told})
        finally:
            with self._lock:
                self._running.pop(key, None)
                self._cancelled.discard(key)

    def _follow(self, key: int, asked: Word) -> None:
        task = ray.remote(node.build).options(
            name=asked["name"],
            num_cpus=asked["cpus"],
            resources=asked["resources"],
            num_returns="streaming",
            # What becomes of a build whose node is lost is the daemon's to say: it needs another staging folder.
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(asked["node"], soft=False),
        )
        said: Any = task.remote(asked["release"], asked["task"])
        with self._lock:
            self._running[key] = said
            cancelled = key in self._cancelled
        if cancelled:
            self._cancel(key)
        for one in said:
            self._say({"key": key, "said": ray.get(one).decode()})
        self._say({"key": key, "over": True})

    def _cancel(self, key: int) -> None:
        with self._lock:
            running = self._running.get(key)
            if key in self._running:
                # It may come between the word and the submission.
                self._cancelled.add(key)
        if running is not None:
            # By force: the worker waits in a system call, and its hand hears that it is gone.
            with contextlib.suppress(Exception):
                ray.cancel(running, force=True)


def _check(address: str) -> None:
    """Raises `OSError` at once where nobody listens at HOST:PORT: Ray would try for more than a minute."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), _ANSWER).close()


def _told_nodes() -> Word:
    try:
        return {"nodes": [one.told() for one in nodes()]}
    except Exception as error:
        # The cluster's head may be away for a moment: no reason to end what runs on its nodes.
        return {"failed_nodes": f"{type(error).__name__}: {error}"}


def nodes() -> list[Node]:
    """The live nodes of the cluster."""
    cluster: Any = ray
    free = cluster._private.state.available_resources_per_node()
    return [
        Node(one["NodeID"], _name(one), one["Resources"], free.get(one["NodeID"], {}))
        for one in cluster.nodes()
        if one["Alive"]
    ]


def _name(node: Word) -> str:
    address = node["NodeManagerAddress"]
    # Without `ray start --node-name` Ray calls a node by its address.
    name = node["NodeManagerHostname"] if node["NodeName"] in {"", address} else node["NodeName"]
    return f"{name} ({address}, {node['NodeID'][:8]})"


if __name__ == "__main__":
    Driver(Connection(int(sys.argv[1]))).run(sys.argv[2])
