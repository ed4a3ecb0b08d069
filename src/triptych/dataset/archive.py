"""Archives unpacked safely: nothing lands elsewhere, and half of one is never seen."""

import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from filelock import FileLock

BLOCK = 1 << 20


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
