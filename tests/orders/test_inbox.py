"""requests/ as its two sides see it: each request once, the senseless answered, and nothing in the way of others."""

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from envfabric.store.files import Files
from envfabric.store.prepare import init_root
from envfabric.store.requests import FORGOTTEN, Answer, Asker, Inbox, Request
from envfabric.store.root import Root


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return init_root(tmp_path / "nas", Files())


def ask(root: Root, command: str = "gc") -> Asker:
    asker = Asker(root, Files())
    asker.ask(command, {"id": "wf/a"})
    return asker


def put(root: Root, content: bytes) -> Path:
    """A request made by hand."""
    path = root.requests / f"{uuid.uuid4().hex}.json"
    path.write_bytes(content)
    return path


def names(root: Root) -> list[str]:
    return sorted(os.listdir(root.requests))


def age(path: Path, seconds: float) -> None:
    status = path.lstat()
    times = (status.st_mtime - seconds, status.st_mtime - seconds)
    os.utime(path, times, follow_symlinks=False)


def test_request_and_answer(root: Root) -> None:
    """What was asked is taken once, with who asked; the answer arrives whole, and nothing is left."""
    asker, inbox = ask(root, "rollback"), Inbox(root, Files())
    assert asker.answer() is None
    (request,) = inbox.take()
    assert (request.command, request.arguments) == ("rollback", {"id": "wf/a"})
    assert request.by.endswith(f"@{os.uname().nodename}")
    assert inbox.take() == []
    assert asker.answer() is None
    assert not asker.withdraw()
    answer = Answer(False, "no", {"more": [1]})
    inbox.answer(request, answer)
    assert asker.answer() == answer
    asker.close()
    assert names(root) == []


def test_withdrawn_request_is_not_carried_out(root: Root) -> None:
    """Who takes it back knows that nobody else has it."""
    asker = ask(root)
    assert asker.withdraw()
    assert Inbox(root, Files()).take() == []
    assert names(root) == []


def test_request_that_nobody_renews_is_dropped(root: Root) -> None:
    """Nobody waits for it any more: it is removed, not carried out; a renewed one is carried out."""
    forgotten, waited_for = ask(root), ask(root)
    for path in root.requests.glob("*.json"):
        age(path, FORGOTTEN + 5)
    waited_for.renew()
    (request,) = Inbox(root, Files()).take()
    inbox = Inbox(root, Files())
    inbox.answer(request, Answer(True, "done"))
    assert waited_for.answer() == Answer(True, "done")
    assert not forgotten.withdraw()
    assert forgotten.answer() is None


def test_what_a_dead_writer_took_is_answered_by_the_next(root: Root) -> None:
    """Nobody waits for ever for a writer that was killed: the next one says that it is not known to be done."""
    asker = ask(root)
    assert len(Inbox(root, Files()).take()) == 1
    assert Inbox(root, Files()).take() == []
    answer = asker.answer()
    assert answer is not None
    assert not answer.ok
    assert "the daemon ended before it answered" in answer.message
    asker.close()
    assert names(root) == []


SENSELESS: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "no text": b"\xff\xfe",
    "no command": b'{"arguments": {}}',
    "no arguments": b'{"command": "gc"}',
    "arguments of another kind": b'{"command": "gc", "arguments": []}',
    "too nested": b"[" * 60_000,
    "huge": b" " * 100_000,
}


@pytest.mark.parametrize("name", SENSELESS)
def test_senseless_request_is_answered(root: Root, name: str) -> None:
    """It is told what is wrong, is gone, and the request beside it is taken."""
    path = put(root, SENSELESS[name])
    ask(root)
    assert [one.command for one in Inbox(root, Files()).take()] == ["gc"]
    assert not path.exists()
    answer = json.loads(path.with_suffix(".answer").read_bytes())
    assert answer["ok"] is False
    assert "can't be understood" in answer["message"]


def link(path: Path) -> None:
    target = path.with_name("target")
    target.write_text('{"command": "gc", "arguments": {}}')
    path.symlink_to(target)


ODD: dict[str, Callable[[Path], object]] = {
    "symlink": link,
    "dangling symlink": lambda path: path.symlink_to("nowhere"),
    "fifo": os.mkfifo,
    "folder": lambda path: (path / "in").mkdir(parents=True),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("suffix", ["json", "taken"])
def test_what_is_no_file_is_no_request(root: Root, name: str, suffix: str) -> None:
    """It is not followed, not waited for, and stops nothing, also when it can't be removed."""
    path = root.requests / f"{'0' * 32}.{suffix}"
    ODD[name](path)
    ask(root)
    inbox = Inbox(root, Files())
    assert [one.command for one in inbox.take()] == ["gc"]
    assert os.path.lexists(path) is (name == "folder")
    ask(root)
    assert len(inbox.take()) == 1


def test_request_that_can_not_be_removed_is_not_carried_out(root: Root) -> None:
    """Else it would be carried out in each round; those beside it are."""
    bad = put(root, b'{"command": "bad", "arguments": {}}')
    ask(root)

    def step(operation: str, path: Path) -> None:
        if operation in {"rename", "unlink"} and path.stem == bad.stem:
            raise PermissionError(1, "Operation not permitted", str(path))

    inbox = Inbox(root, Files(step))
    assert [one.command for one in inbox.take()] == ["gc"]
    ask(root)
    assert [one.command for one in inbox.take()] == ["gc"]
    assert bad.exists()


def test_request_that_can_not_be_read_is_answered(root: Root) -> None:
    """A file that may not be read, or can't be, is told so."""
    path = put(root, b'{"command": "bad", "arguments": {}}')
    path.chmod(0)
    ask(root)
    if os.geteuid() == 0:
        # Root reads it all the same: then it is a request like any other.
        assert len(Inbox(root, Files()).take()) == 2
        return
    assert [one.command for one in Inbox(root, Files()).take()] == ["gc"]
    assert "can't be understood" in path.with_suffix(".answer").read_text()


def test_what_lies_there_for_long_is_cleared(root: Root) -> None:
    """Answers that nobody fetched and stray files go after an hour, younger ones stay."""
    for name in ("old", "young"):
        (root.requests / f"{name}.answer").write_text("{}")
        (root.requests / f"{name}.txt").write_text("")
    for path in root.requests.glob("old.*"):
        age(path, 3700)
    Inbox(root, Files()).take()
    assert names(root) == ["young.answer", "young.txt"]


def test_what_lies_there_costs_no_operation_in_each_round(root: Root) -> None:
    """A folder in the way and an unfetched answer are not asked for their age again and again."""
    seen: list[str] = []
    inbox = Inbox(root, Files(lambda operation, path: seen.append(operation)))
    (root.requests / f"{'0' * 32}.json").mkdir()
    (root.requests / "stray").write_text("")
    inbox.take()
    assert seen
    seen.clear()
    for _ in range(50):
        assert inbox.take() == []
    assert seen == []


@pytest.mark.parametrize("times", [1, 20])
def test_many_requests_are_all_taken(root: Root, times: int) -> None:
    """However many there are, each is taken once and answered by its own name."""
    askers = [ask(root) for _ in range(times)]
    inbox = Inbox(root, Files())
    for number, request in enumerate(inbox.take()):
        inbox.answer(request, Answer(True, str(number)))
    answers = [asker.answer() for asker in askers]
    assert sorted(int(one.message) for one in answers if one) == list(range(times))


def test_answer_to_one_who_is_gone_ends_nothing(root: Root) -> None:
    """The asker was interrupted: the answer lies there until it is cleared."""
    asker, inbox = ask(root), Inbox(root, Files())
    (request,) = inbox.take()
    asker.close()
    assert names(root) == []
    inbox.answer(request, Answer(True, "done"))
    assert names(root) == [f"{request.id}.answer"]
    assert inbox.take() == []


def test_request_says_no_more_than_it_was_given(root: Root) -> None:
    """A request without a name of who asks is taken; what else it has does not matter."""
    put(root, b'{"command": "gc", "arguments": {}, "more": 1}')
    (request,) = Inbox(root, Files()).take()
    assert request == Request(request.id, "gc", {}, "")
