"""Official files: fetched once, resumed if interrupted, checked, and put in place in one move."""

import hashlib
import http.client
import os
import shutil
import stat
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

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


def fetch(url: str, path: Path, *, md5: str | None = None, sha256: str | None = None, timeout: float = 30.0) -> Path:
    """The file at `path`, downloaded if it is not there. Safe when several processes ask at once.

    Bytes arrive in `<path>.part`, which a later call continues (HTTP Range); only a complete file of the right
    checksum is renamed to `path`.
    """
    if path.exists():
        return path
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url} is not an http or https address.")
    make_folder(path.parent, path.name, url)
    with FileLock(f"{path}.lock"):
        if path.exists():  # another process has fetched it meanwhile
            return path
        part = path.with_name(path.name + ".part")
        resumed = part.exists()
        download(url, part, path, timeout)
        wrong = mismatch(part, md5, sha256)
        if wrong and resumed:  # what was there may have been another file's beginning
            part.unlink()
            download(url, part, path, timeout)
            wrong = mismatch(part, md5, sha256)
        if wrong:
            part.unlink()
            raise ValueError(
                f"{url} did not send the official {path.name}: {wrong}. Nothing was kept; try again later."
            )
        os.replace(part, path)
    return path


def download(url: str, part: Path, path: Path, timeout: float) -> None:
    """Fill `part` from where it ends, over several connections if they break."""
    reason: Exception | None = None
    for _ in range(ATTEMPTS):
        try:
            if transfer(url, part, timeout):
                return
            reason = ConnectionError("the connection broke")
        except urllib.error.HTTPError as error:
            raise FileNotFoundError(
                f"{path.name} cannot be had from {url} (HTTP {error.code}): put it at {path} yourself, "
                "or give dataset.root=<the folder that has it>."
            ) from error
        except (OSError, http.client.HTTPException) as error:  # no network, refused, reset, timed out
            reason = error
    kept = part.stat().st_size if part.exists() else 0
    raise FileNotFoundError(
        f"{path.name} is not at {path} and {url} cannot be reached ({getattr(reason, 'reason', reason)}): "
        "download it elsewhere and put it there, or give dataset.root=<the folder that has it>."
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
    """What is wrong with a file's checksum, or None."""
    for name, expected in (("md5", md5), ("sha256", sha256)):
        if expected:
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, name).hexdigest()
            if found != expected.lower():
                return f"its {name} is {found}, not {expected}"
    return None


def unpack(archive: Path, folder: Path) -> Path:
    """The folder of that name out of a tar or zip archive, put in place in one move.

    An archive without a top folder of that name is unpacked into it. A member that would land elsewhere ("..", an
    absolute path, a link) is refused, and then nothing is kept.
    """
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return folder
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name, source in members(archive):
                target = temporary.joinpath(*PurePosixPath(name).parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file, BLOCK)
            os.chmod(temporary, 0o755)  # mkdtemp's own is for nobody else
            inner = temporary / folder.name
            os.replace(inner if inner.is_dir() else temporary, folder)
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{archive} cannot be unpacked ({reason}): delete it, and it will be downloaded again."
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The regular files of an archive, each checked before it is handed out."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                if not info.is_dir():
                    link = stat.S_ISLNK(info.external_attr >> 16)
                    yield safe(archive, info.filename, not link), opened.open(info)
        return
    with tarfile.open(archive) as opened:
        for member in opened:
            if not member.isdir():
                safe(archive, member.name, member.isreg())
                file = opened.extractfile(member)
                assert file is not None  # a regular file
                yield member.name, file


def safe(archive: Path, name: str, regular: bool) -> str:
    path = PurePosixPath(name)
    if not regular or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise ValueError(f"{archive} is refused: its member {name!r} is a link or leads out of the folder.")
    return name


def make_folder(folder: Path, name: str, url: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ValueError(
            f"{name} is not in {folder}, which cannot be written: put it there (it comes from {url}), "
            "or give dataset.root=<a folder you can write>."
        )
