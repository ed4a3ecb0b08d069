import hashlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.progress import Progress

CHUNK = 1 << 20


def fetch(address: str, given: str | Path | None, variable: str) -> Path:
    """Where a published file lies: `given`, else the path in the environment's `variable`, else torch's hub folder.

    If it is in none of them it is downloaded into the hub folder, once: with progress, going on where an earlier
    attempt stopped, one process at a time. The start of its sha256 stands in its name, as torch's hub has it, and
    is checked.
    """
    given = given or os.environ.get(variable)
    if given:
        if not Path(given).is_file():
            raise FileNotFoundError(f"There is no file {given}; it can be downloaded from {address}.")
        return Path(given)
    name = address.rsplit("/", 1)[1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{name}.part")
        with _alone(path.with_name(f"{name}.lock")):
            if not path.is_file():
                try:
                    _download(address, partial)
                except (urllib.error.URLError, OSError) as error:
                    raise FileNotFoundError(
                        f"{name} is not here and could not be downloaded ({getattr(error, 'reason', error)}): fetch "
                        f"{address} and put it at {path}, or name its place by metric.extractor.weights=<path> or "
                        f"{variable}=<path>."
                    ) from error
                check_sha256(partial, name)
                os.replace(partial, path)
    return path


def check_sha256(path: Path, name: str) -> None:
    """Refuses, and removes, a file whose sha256 does not begin as its name says: `<anything>-<hex>.pth`."""
    match = re.search(r"-([0-9a-f]{8,})\.[^.]+$", name)
    digest = sha256_of(path)
    if match and not digest.startswith(match[1]):
        path.unlink()
        raise ValueError(f"The download of {name} is damaged (its sha256 begins {digest[:8]}): start it again.")


def sha256_of(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(address: str, partial: Path) -> None:
    done = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        resumed = answer.status == 206
        done = done if resumed else 0
        total = done + int(answer.headers.get("Content-Length", 0))
        with open(partial, "ab" if resumed else "wb") as file, Progress() as progress:
            task = progress.add_task(address.rsplit("/", 1)[1], total=total or None, completed=done)
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
        if total and partial.stat().st_size < total:
            raise OSError("the connection ended early; the next attempt goes on from there")


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time, where the system has file locks."""
    with open(lock, "w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass
        yield
