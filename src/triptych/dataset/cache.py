"""Decoded images on disk: made once, memory-mapped ever after, named by a hash of all that shapes them."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock

FORMAT = 1  # raise it when the same key would give other bytes
Key = dict[str, object]


class Writer:
    """Collects uint8 images, a few at a time, and their labels, into a folder that is still private."""

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        self.folder, self.shape, self.count = folder, shape, 0
        self.labels: list[int] = []
        self.notes: list[str] = []  # what was left out or changed, for about.json
        self.file = open(folder / "images.bin", "wb")  # noqa: SIM115

    def add(self, images: np.ndarray, labels: list[int] | None = None) -> None:
        """uint8 [n, *shape]."""
        assert images.shape[1:] == self.shape and images.dtype == np.uint8, (images.shape, images.dtype)
        self.file.write(np.ascontiguousarray(images).data)
        self.count += len(images)
        self.labels += [] if labels is None else labels

    def close(self, key: Key) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        if self.labels:
            np.save(self.folder / "labels.npy", np.array(self.labels, np.int64))
        about = {
            "shape": [self.count, *self.shape],
            "labels": bool(self.labels),
            "notes": self.notes,
            "key": key,
        }
        (self.folder / "about.json").write_text(json.dumps(about, indent=1, default=str))


def cached(
    folder: Path, key: Key, shape: tuple[int, ...], build: Callable[[Writer], None]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The memory-mapped images uint8 [N, *shape] and labels [N] or None that `build` makes; built if not there yet.

    Whoever comes first builds, behind a file lock, in a temporary folder that is renamed when complete; the others
    wait. So a build that was killed leaves nothing that could be read.
    """
    key = {**key, "format": FORMAT, "shape": shape}
    name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
    own = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "triptych"
    places = [folder, own / hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]]
    entry = next((place / name for place in places if (place / name).exists()), None) or writable(places) / name
    if entry.is_symlink():
        raise ValueError(f"The cache {entry} is a symbolic link, which is not followed: delete it.")
    if not entry.exists():
        with FileLock(f"{entry}.lock"):
            if not entry.exists():
                for stale in entry.parent.glob(f".{name}-*"):  # of a build that was killed; we hold its lock
                    shutil.rmtree(stale, ignore_errors=True)
                make(entry, key, shape, build)
    return read(entry)


def make(entry: Path, key: Key, shape: tuple[int, ...], build: Callable[[Writer], None]) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    writer = Writer(temporary, shape)
    try:
        build(writer)
        writer.close(key)
        os.chmod(temporary, 0o755)  # mkdtemp's own is for nobody else
        os.replace(temporary, entry)
    except OSError as error:
        raise ValueError(
            f"The cache {entry.parent} cannot be written ({error.strerror or error}): "
            "make room, or give dataset.cache=<a folder you can write>."
        ) from error
    finally:
        writer.file.close()
        shutil.rmtree(temporary, ignore_errors=True)


def read(entry: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        about = json.loads((entry / "about.json").read_text())
        shape = tuple(about["shape"])
        size = (entry / "images.bin").stat().st_size
        labels = np.load(entry / "labels.npy", allow_pickle=False) if about["labels"] else None
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"The cache {entry} is damaged ({error}): delete it, and it will be made again.") from error
    if size != np.prod(shape):
        raise ValueError(
            f"The cache {entry} is damaged: images.bin has {size} bytes and not {np.prod(shape)}. "
            "Delete it, and it will be made again."
        )
    if shape[0] == 0:
        return np.empty(shape, np.uint8), labels
    return np.memmap(entry / "images.bin", np.uint8, mode="r", shape=shape), labels


def writable(places: list[Path]) -> Path:
    """The first folder that can be written, made if need be."""
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(place, os.W_OK):
            return place
    raise ValueError(
        f"None of {', '.join(map(str, places))} can be written: give dataset.cache=<a folder you can write>."
    )


def fingerprint(files: list[Path], root: Path) -> str:
    """A hash of names, sizes and times of change: what tells one set of files from another without reading them."""
    digest = hashlib.sha256()
    for file in files:
        try:
            status = file.stat()
            state = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:  # a link to nothing: whoever reads it says so
            state = "gone"
        digest.update(os.fsencode(file.relative_to(root)) + f"\0{state}\n".encode())
    return digest.hexdigest()
