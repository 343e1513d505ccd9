"""A lock for each key that is in use: one holder at a time, keys independent, nothing left behind."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from envfabric.loop.realise import KeyedLocks


def test_one_key_has_one_holder() -> None:
    """Of many threads that want a key, one at a time has it, and each gets it."""
    locks = KeyedLocks()
    guard = threading.Lock()
    turns: list[int] = []

    def work(number: int) -> None:
        with locks.holding("key"):
            assert guard.acquire(blocking=False), "two holders"
            turns.append(number)
            guard.release()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(300)))
    assert sorted(turns) == list(range(300))
    assert locks._locks == {}


def test_second_waits_for_the_first() -> None:
    """Who wants a key that is held goes on only after it is given back."""
    locks = KeyedLocks()
    order: list[str] = []
    wants = threading.Event()

    def second() -> None:
        wants.set()
        with locks.holding("key"):
            order.append("second")

    with locks.holding("key"):
        thread = threading.Thread(target=second)
        thread.start()
        assert wants.wait(10)
        thread.join(0.05)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_other_keys_do_not_wait() -> None:
    """A key that is held stops nobody who wants another one."""
    locks = KeyedLocks()
    done = threading.Event()

    def other() -> None:
        with locks.holding("two"):
            done.set()

    with locks.holding("one"):
        thread = threading.Thread(target=other)
        thread.start()
        assert done.wait(10)
    thread.join(10)


def test_failure_gives_the_key_back() -> None:
    """An error inside leaves the key free for those who wait, and for the next."""
    locks = KeyedLocks()
    with pytest.raises(ValueError, match="inside"), locks.holding("key"):
        raise ValueError("inside")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: locks.holding("key").__enter__() is None).result(10)


def test_nothing_is_kept_of_unused_keys() -> None:
    """A daemon that runs for years has no lock of each key it ever saw."""
    locks = KeyedLocks()
    for number in range(100):
        with locks.holding(f"{number}"), locks.holding("outer"):
            pass
    assert locks._locks == {}
