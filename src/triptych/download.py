"""Published files: fetched once, resumed if interrupted, checked, and put in place in one move."""

import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

ATTEMPTS = 3  # connections in a row that may break before we give up
BLOCK = 1 << 20


def fetch(
    url: str,
    path: Path,
    *,
    md5: str | None = None,
    sha256: str | None = None,
    otherwise: str = "give dataset.root=<the folder that has it>",
    timeout: float = 30.0,
) -> Path:
    """The file at `path`, downloaded if it is not there. Safe when several processes ask at once.

    Bytes arrive in `<path>.part`, which a later call continues (HTTP Range); only a complete file of the right
    checksum is renamed to `path`.

    Args:
        md5, sha256: the whole checksum, or its beginning.
        otherwise: what else the user may do without a network, in words.
    """
    if path.exists():
        return path
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url} is not an http or https address.")
    make_folder(path.parent, path.name, url, otherwise)
    with FileLock(f"{path}.lock"):
        if path.exists():  # another process has fetched it meanwhile
            return path
        part = path.with_name(path.name + ".part")
        resumed = part.exists()
        download(url, part, path, otherwise, timeout)
        wrong = mismatch(part, md5, sha256)
        if wrong and resumed:  # what was there may have been another file's beginning
            part.unlink()
            download(url, part, path, otherwise, timeout)
            wrong = mismatch(part, md5, sha256)
        if wrong:
            part.unlink()
            raise ValueError(
                f"{url} did not send the official {path.name}: {wrong}. Nothing was kept; try again later."
            )
        os.replace(part, path)
    return path


def download(url: str, part: Path, path: Path, otherwise: str, timeout: float) -> None:
    """Fill `part` from where it ends, over several connections if they break."""
    reason: Exception | None = None
    for _ in range(ATTEMPTS):
        try:
            if transfer(url, part, timeout):
                return
            reason = ConnectionError("the connection broke")
        except urllib.error.HTTPError as error:
            raise FileNotFoundError(
                f"{path.name} cannot be had from {url} (HTTP {error.code}): put it at {path} yourself, or {otherwise}."
            ) from error
        except (OSError, http.client.HTTPException) as error:  # no network, refused, reset, timed out
            reason = error
    kept = part.stat().st_size if part.exists() else 0
    raise FileNotFoundError(
        f"{path.name} is not at {path} and {url} cannot be reached ({getattr(reason, 'reason', reason)}): "
        f"download it elsewhere and put it there, or {otherwise}."
        + (f" {kept} bytes are kept and will be continued." if kept else "")
    ) from reason


def transfer(url: str, part: Path, timeout: float) -> bool:
    """One connection. Whether the file is complete."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing beyond what we have: the checksum decides
            error.close()
            return True
        raise
    with response:
        if response.status != 206:  # the server sends the whole file again
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with open(part, "ab" if have else "wb") as file, progress(part.stem, total, have) as advance:
            while block := response.read(BLOCK):
                file.write(block)
                advance(len(block))
            file.flush()
            os.fsync(file.fileno())
    return total is None or part.stat().st_size >= total


class progress:
    """A bar on a terminal, nothing elsewhere. `with progress(…) as advance: advance(bytes)`."""

    def __init__(self, what: str, total: int | None, done: int) -> None:
        columns = (
            TextColumn(what),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        self.task = self.bar.add_task(what, total=total, completed=done)

    def __enter__(self) -> "progress":
        self.bar.start()
        return self

    def __call__(self, amount: int) -> None:
        self.bar.advance(self.task, amount)

    def __exit__(self, *error: object) -> None:
        self.bar.stop()


def mismatch(path: Path, md5: str | None, sha256: str | None) -> str | None:
    """What is wrong with a file's checksum, of which the beginning may be known, or None."""
    for name, expected in (("md5", md5), ("sha256", sha256)):
        if expected:
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, name).hexdigest()
            if not found.startswith(expected.lower()):
                return f"its {name} is {found}, not {expected}"
    return None


def make_folder(folder: Path, name: str, url: str, otherwise: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ValueError(
            f"{name} is not in {folder}, which cannot be written: put it there (it comes from {url}), or {otherwise}."
        )
