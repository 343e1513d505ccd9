"""Compiles sources for the bytecode store. Run by an environment's base interpreter, never imported.

    python -I -S -B compiler.py facts
    python -I -S -B compiler.py compile JOBS WORKERS

`facts` prints the interpreter's tag and what else is in its part of the keys, '-' as the tag of one that keeps
no compiled files. JOBS has a key, a source and a target for each job, each ended by a NUL. For each job that
was finished a line `<number> <outcome>` is printed: + compiled; - does not compile; ! has other content than
its key says; ? could not be told, for want of memory; or `<number> E <errno>` where a file could not be read
or written. A job without a line ended its worker.

No code of a source is run. Writes the targets, and `queue` in TMPDIR. Only the standard library, and only what
every Python 3 from 3.8 on has.
"""

import gc
import hashlib
import importlib.util
import marshal
import os
import struct
import sys

NUMBER = struct.Struct("<I")
NAME = "<compiled once>"
"""Stands for the source's path, which importing puts right: one source lies in many environments."""


def facts() -> str:
    """The tag and the interpreter's part of a key."""
    tag = sys.implementation.cache_tag or "-"
    # The magic number says what can be loaded; a patch release may compile the same source to other code.
    return f"{tag} {tag}-{importlib.util.MAGIC_NUMBER.hex()}-{sys.hexversion:x}"


def compiled(source: bytes, key: bytes) -> bytes:
    """The content of the compiled file: unchecked, so that no import looks at the source's time."""
    code = compile(source, NAME, "exec", dont_inherit=True, optimize=0)
    # Flag 1 alone: goes by a hash, and it is not checked.
    head = importlib.util.MAGIC_NUMBER + NUMBER.pack(1) + importlib.util.source_hash(source)
    body = head + marshal.dumps(code)
    return body + hashlib.sha256(body + key).digest()


def work(key: bytes, source: bytes, target: bytes) -> str:
    """Does one job. Raises `OSError`."""
    with open(source, "rb") as file:
        data = file.read()
    # The same bytes are hashed and compiled: what changes a moment later changes neither.
    if hashlib.sha256(data).hexdigest().encode() != key.partition(b".")[0]:
        return "!"
    try:
        content = compiled(data, key)
    except MemoryError:
        return "?"
    except Exception:
        # Python 2, templates, odd encodings: whoever imports it gets the error.
        return "-"
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
    with open(descriptor, "wb") as file:
        file.write(content)
    return "+"


def worker(jobs: list, queue: int) -> None:  # type: ignore[type-arg]
    """Takes jobs until there are none."""
    while True:
        # All workers share the offset of this open file, and reading moves it for one at a time.
        taken = os.read(queue, NUMBER.size)
        if len(taken) < NUMBER.size:
            return
        (number,) = NUMBER.unpack(taken)
        try:
            outcome = work(*jobs[number])
        except OSError as error:
            outcome = f"E {error.errno or 0}"
        # One write, shorter than what a pipe takes whole.
        os.write(1, f"{number} {outcome}\n".encode())
        if outcome[0] == "E":
            # A full disk is full for all.
            os.lseek(queue, 0, os.SEEK_END)
            return


def compile_all(path: str, workers: int) -> None:
    """Does all jobs in this many processes; one that a source ends is followed by another."""
    with open(path, "rb") as file:
        fields = file.read().split(b"\0")[:-1]
    jobs = list(zip(fields[::3], fields[1::3], fields[2::3]))  # noqa: B905 (3.8)
    queue = os.open(os.path.join(os.environ["TMPDIR"], "queue"), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(queue, b"".join(map(NUMBER.pack, range(len(jobs)))))
    os.lseek(queue, 0, os.SEEK_SET)
    gc.disable()
    running = 0
    for _ in range(min(workers, len(jobs))):
        running += start(jobs, queue)
    while running:
        _, status = os.wait()
        running -= 1
        if status != 0 and os.lseek(queue, 0, os.SEEK_CUR) < NUMBER.size * len(jobs):
            running += start(jobs, queue)


def start(jobs: list, queue: int) -> int:  # type: ignore[type-arg]
    """Starts one more worker."""
    if os.fork() == 0:
        code = 1
        try:
            worker(jobs, queue)
            code = 0
        finally:
            os._exit(code)
    return 1


if __name__ == "__main__":
    if sys.argv[1] == "facts":
        print(facts())  # noqa: T201
    else:
        compile_all(sys.argv[2], int(sys.argv[3]))
