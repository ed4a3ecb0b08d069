"""Files that are there whole or not at all, and what a run does when the disk says no."""

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

TEMPORARY = re.compile(r"\..+\.(?P<host>[^.]+)\.(?P<pid>\d+)\.tmp")
SLACK = 5.0  # seconds: the clock of the kernel's start is a rounded one
_said: set[str] = set()


@contextlib.contextmanager
def replacing(path: Path | str, mode: str = "w", durable: bool = False, **options: Any) -> Iterator[IO[Any]]:
    """A new file that takes `path`'s place when the block ends, and leaves nothing behind if the block fails.

    A reader sees the old file or the new one, never half of one; two writers never share a temporary file.

    Args:
        mode, options: as of `open`.
        durable: survive a power failure: the file is on the disk before the rename, the rename before the return.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    try:
        with temporary.open(mode, **options) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        put(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    if durable:
        sync(path.parent)


def put(new: Path, path: Path) -> None:
    """Gives a file or a folder the name `path`.

    A file takes another's place at once. Where one of them is a folder, which no rename can do, the old one steps
    aside as previous-<name>, until the new one is there: at every moment one of the two is whole and has a name.
    """
    if not new.is_dir() and not path.is_dir():
        os.replace(new, path)
        return
    aside = path.with_name(f"previous-{path.name}")
    if path.exists():
        remove(aside)
        os.replace(path, aside)
    os.replace(new, path)
    sync(path.parent)
    remove(aside)


def temporary_of(path: Path) -> Path:
    """A name beside `path` that nobody else uses, and that `remove_stale` knows."""
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")


def sync(folder: Path) -> None:
    """Makes renames in a folder survive a power failure, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there; nobody sees half of a folder under its name."""
    if path.is_dir() and not path.is_symlink():
        doomed = path if TEMPORARY.fullmatch(path.name) else temporary_of(path)
        if doomed != path:
            remove(doomed)
            os.replace(path, doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def remove_stale(*folders: Path) -> list[Path]:
    """Removes the temporary files and folders that killed processes of this machine have left; returns them."""
    removed = []
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            owner = TEMPORARY.fullmatch(path.name)
            if owner and owner["host"] == _host() and not alive(int(owner["pid"])):
                with contextlib.suppress(OSError):
                    remove(path)
                    removed.append(path)
    return removed


def alive(pid: int, since: float | None = None) -> bool:
    """Whether a process of this machine is running; if since a time (of `time.time`), then one that is as old as that:
    numbers are given again, in containers soon."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        pass
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # from the third field on
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
        born = float(boot.split()[1]) + int(stat[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration):  # no Linux
        return True
    return stat[0] not in "ZX" and (since is None or born < since + SLACK)


@contextlib.contextmanager
def forgiving(what: str) -> Iterator[None]:
    """What cannot be written is said once, and training goes on: a full disk, a read-only folder, a lost mount.

    Args:
        what: "metrics.csv cannot be written", the sentence's beginning.
    """
    try:
        yield
    except OSError as error:
        if what not in _said:
            _said.add(what)
            print(f"{what} ({error.strerror or error}); the run goes on.", flush=True)
    else:
        _said.discard(what)


def _host() -> str:
    return socket.gethostname().partition(".")[0] or "localhost"
