"""Writers that are killed, run out of disk or memory, may not write, or write at once: old state or new, nothing else.

    python -m support.faults --kills 200 --json out/faults.json

counts, for everything that chipfit writes, what lies there after each fault. Forks, so Linux and macOS only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from chipfit.errors import ChipfitError
from chipfit.reading import SUMS, check_sum, digest_of, sums_of
from support.writers import DEMOS, WRITERS, large


@dataclass
class Counts:
    """What lay there after faults."""

    faults: int = 0
    old: int = 0
    new: int = 0
    absent: int = 0
    wrong: int = 0
    litter: int = 0
    killed_while_writing: int = 0

    @property
    def fine(self) -> bool:
        """Whether all is as it was before or after, and the next writing cleared what was left."""
        return not self.wrong and not self.litter


def state(folder: Path) -> dict[str, str] | None:
    """Sums of all files of a folder; None where there is none."""
    if not folder.is_dir():
        return None
    files = [path for path in folder.rglob("*") if path.is_file() and ".writing" not in str(path.relative_to(folder))]
    return {path.relative_to(folder).as_posix(): digest_of(path) for path in sorted(files)}


def consistent(folder: Path) -> bool:
    """Whether all sums in a folder are right, and list every file."""
    listed: set[Path] = set()
    for path in folder.rglob(SUMS):
        sums = sums_of(path.parent) or {}
        for name in sums:
            check_sum((path.parent / name).read_bytes(), sums, name, path.parent)
            listed.add(path.parent / name)
        listed.add(path)
    return {path for path in folder.rglob("*") if path.is_file()} <= listed


def litter(room: Path) -> list[Path]:
    """What writers leave when they are killed."""
    return [path for path in room.rglob("*.writing")]


def forked(work: Callable[[], None]) -> int:
    """Run something in a copy of this process, which ends with status 0, 3 (an error of ours) or 1; its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except ChipfitError:
        status = 3
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


def kills(write: Callable[[Path, int], None], count: int, seed: int = 0, whole: bool = True) -> Counts:
    """Kill a writer, half of the times at random moments, half of the times before a random call of the file system.

    Args:
        write: The writer.
        count: How often.
        seed: Of the moments.
        whole: Compare whole states; otherwise only whether the sums are right.
    """
    counts, rng = Counts(count), random.Random(seed)
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room) / "out"
        write(folder, 1)  # what is compiled and cached at the first time is not killed
        seconds, steps = _seconds(lambda: write(folder, 0), 3 if whole else 1), _steps(lambda: write(folder, 0))
        fresh = [Path(room) / f"state{which}" for which in (0, 1)]
        for which in (0, 1) if whole else ():
            write(fresh[which], which)
        states = [state(path) for path in fresh]
        for number in range(count):
            before = number % 2
            if number % 10 == 9:  # now and then nothing was there before
                shutil.rmtree(folder, ignore_errors=True)
            elif whole and state(folder) != states[before]:
                write(folder, before)
            step = rng.randint(1, steps) if rng.random() < 0.5 else 0
            child, done = _started(_killed_at(step, lambda: write(folder, 1 - before)))  # noqa: B023  # called at once
            if not step:
                time.sleep(rng.uniform(0, seconds))
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            counts.killed_while_writing += os.read(done, 1) == b""
            os.close(done)
            found = state(folder)
            if found is None or not found:
                counts.absent += 1
                counts.wrong += number % 10 != 9
            elif not whole:
                counts.wrong += not _is_consistent(folder)
                counts.new += 1
            elif found in states:
                counts.old += found == states[before]
                counts.new += found == states[1 - before]
            else:
                counts.wrong += 1
        write(folder, 0)
        counts.litter = len(litter(Path(room)))
    return counts


def _started(work: Callable[[], None]) -> tuple[int, int]:
    """Fork, and wait until the child is about to work; its number, and a pipe that ends or speaks when it is done."""
    ready, told = os.pipe()

    def tell() -> None:
        os.write(told, b"1")
        work()
        os.write(told, b"2")

    child = forked(tell)
    os.close(told)
    os.read(ready, 1)
    return child, ready


def _killed_at(step: int, work: Callable[[], None]) -> Callable[[], None]:
    """The work, that ends itself before its n-th call of the file system; not at all where n is 0."""
    left = step

    def hook(event: str, _: object) -> None:
        nonlocal left
        if event == "open" or event.startswith(("os.", "shutil.")):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def killed() -> None:
        if step:
            sys.addaudithook(hook)  # in the forked process alone
        work()

    return killed


def _steps(work: Callable[[], None]) -> int:
    """How many calls of the file system the work makes."""
    ready, told = os.pipe()
    count = 0

    def hook(event: str, _: object) -> None:
        nonlocal count
        count += event == "open" or event.startswith(("os.", "shutil."))

    def counted() -> None:
        sys.addaudithook(hook)
        work()
        os.write(told, str(count).encode())

    os.waitpid(forked(counted), 0)
    os.close(told)
    with os.fdopen(ready) as told_back:
        return int(told_back.read())


def _seconds(work: Callable[[], None], times: int) -> float:
    """What the work takes in a forked process, the median of a few times."""
    found = []
    for _ in range(times):
        (child, done), started = _started(work), time.perf_counter()
        os.read(done, 1)
        found.append(time.perf_counter() - started)
        os.close(done)
        os.waitpid(child, 0)
    return sorted(found)[times // 2]


def _is_consistent(folder: Path) -> bool:
    try:
        return consistent(folder)
    except (ChipfitError, OSError):
        return False


def two_writers(write: Callable[[Path, int], None], rounds: int) -> Counts:
    """Two processes write one folder at once, again and again."""
    counts = Counts(rounds)
    with tempfile.TemporaryDirectory() as room:
        folder, fresh = Path(room) / "out", [Path(room) / f"state{which}" for which in (0, 1)]
        for which in (0, 1):
            write(fresh[which], which)
        states = [state(path) for path in fresh]
        for _ in range(rounds):
            children = [forked(lambda which=which: write(folder, which)) for which in (0, 1)]  # type: ignore[misc]
            ended = [os.waitpid(child, 0)[1] for child in children]
            found = state(folder)
            counts.new += found in states
            counts.wrong += found not in states or any(ended)
        counts.litter = len(litter(Path(room)))
    return counts


def _after(write: Callable[[Path, int], None], folder: Path, limit: Callable[[], None] | None = None) -> str:
    """Write the new state where something hinders it; 'old', 'new' or what is wrong."""
    before = state(folder)

    def work() -> None:
        if limit is not None:
            limit()
        write(folder, 1)

    _, status = os.waitpid(forked(work), 0)
    ended, found = os.waitstatus_to_exitcode(status), state(folder)
    if ended == 0:
        return "new"
    return "old" if found == before else f"neither, and it ended with {ended}"


@contextmanager
def small_disk(room: Path) -> Iterator[Path]:
    """A file system of 2 MiB.

    Raises:
        PermissionError: this process may not mount one.
    """
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(room)], capture_output=True)
    if mounted.returncode:
        raise PermissionError(mounted.stderr.decode().strip())
    try:
        yield room
    finally:
        subprocess.run(["umount", "-l", str(room)], check=True)


def full_disk(write: Callable[[Path, int], None], room: Path, first: Callable[[Path, int], None] | None = None) -> str:
    """Write where 4 KiB are left of 2 MiB; `first` writes the old state, where it is another writer."""
    with small_disk(room):
        (first or write)(room / "out", 0)
        free = shutil.disk_usage(room).free
        (room / "filler").write_bytes(b"\0" * (free - 4096))
        return _after(write, room / "out")


def read_only(write: Callable[[Path, int], None], room: Path) -> str:
    """Write where nothing may be written: root is stopped by the file system alone."""
    with small_disk(room):
        write(room / "out", 0)
        subprocess.run(["mount", "-o", "remount,ro", str(room)], check=True)
        return _after(write, room / "out")


def out_of_memory(write: Callable[[Path, int], None], room: Path, mib: float) -> str:
    """Write with only so much memory left."""
    write(room / "out", 0)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = used + int(mib * 2**20)
    return _after(write, room / "out", lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most)))


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--demo-kills", type=int, default=20)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, Counts] = {}
    print("| fault | faults | old state | new state | absent | wrong | litter left |\n|---|---|---|---|---|---|---|")

    def show(name: str, c: Counts) -> None:
        found[name] = c
        print("|", " | ".join(map(str, (name, c.faults, c.old, c.new, c.absent, c.wrong, c.litter))), "|", flush=True)

    for name, write in WRITERS.items():
        show(f"kill: {name}", kills(write, given.kills))
        show(f"two writers: {name}", two_writers(write, given.kills // 8))
    for name, write in DEMOS.items():
        show(f"kill: {name}", kills(write, given.demo_kills, whole=False))
    for label, fault in (("full disk", full_disk), ("read-only", read_only)):
        for name, write in WRITERS.items():
            with tempfile.TemporaryDirectory() as room:
                said = fault(write, Path(room))
                show(f"{label}: {name}", Counts(1, said == "old", said == "new", 0, said not in ("old", "new")))
    counts = Counts()
    for mib in (0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0):
        with tempfile.TemporaryDirectory() as room:
            said = out_of_memory(large, Path(room), mib)
            counts.faults += 1
            counts.old += said == "old"
            counts.new += said == "new"
            counts.wrong += said not in ("old", "new")
    show("out of memory: save_program", counts)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({name: asdict(c) for name, c in found.items()}, indent=2), encoding="utf-8")
    return int(not all(c.fine for c in found.values()))


if __name__ == "__main__":
    sys.exit(_main())
