import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from triptych.dataset.base import Dataset
from triptych.download import fetch


class IDX(Dataset):
    """MNIST and its relatives in their official IDX files. LeCun, Cortes, Burges 1998.

    A resolution above the files' own pads with black, equally on all sides (28 -> 32).

    Args:
        address: where the files are downloaded from, if root does not hold them.
        md5: the official checksum of each file, which also names them: images and labels of train, then of test.
    """

    def __init__(self, address: str, md5: dict[str, str], **shared: Any) -> None:
        super().__init__(**shared)
        self.address, self.md5 = address, dict(md5)

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray | None]:
        names = list(self.md5)
        images, labels = (read(self._find(name)) for name in (names[:2] if split == "train" else names[2:]))
        if images.ndim != 3 or labels.ndim != 1:
            raise ValueError(f"{names} in {self.root} must hold images and labels, in this order.")
        margin = (self.resolution or 0) - images.shape[-1]
        if margin > 0:
            before, after = margin // 2, margin - margin // 2
            images = np.pad(images, ((0, 0), (before, after), (before, after)))
        return images[:, None], labels

    def _find(self, name: str) -> Path:
        for path in (
            self.root / name,
            self.root / name.removesuffix(".gz"),
        ):  # as downloaded, or unpacked by hand
            if path.exists():
                return path
        return fetch(f"{self.address.rstrip('/')}/{name}", self.root / name, md5=self.md5[name])


def read(path: Path) -> np.ndarray:
    """One IDX file: two zeros, the type (8 = uint8), the number of dimensions, each big-endian uint32, the data."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and it will be downloaded again.") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise ValueError(f"{path} is not an IDX file of bytes.")
    shape = tuple(np.frombuffer(data, ">u4", data[3], 4).tolist())
    begin = 4 + 4 * data[3]
    if len(data) - begin != math.prod(shape):
        raise ValueError(
            f"{path} is damaged: {len(data) - begin} bytes of data and not {math.prod(shape)}. "
            "Delete it, and it will be downloaded again."
        )
    return np.frombuffer(data, np.uint8, offset=begin).reshape(shape)
