from pathlib import Path
from typing import Any

import numpy as np

from triptych.dataset.archive import unpack
from triptych.dataset.base import Dataset
from triptych.download import fetch


class CIFAR(Dataset):
    """CIFAR-10 and CIFAR-100 in their official binary files (no pickle). Krizhevsky 2009.

    A record is its label bytes, of which the last is used (CIFAR-100: coarse, fine), and 3 x 32 x 32 bytes.

    Args:
        address: the archive, downloaded if root does not hold the files.
        md5: its official checksum.
        folder: the archive's folder; the files are looked for in it and in root itself.
        train, test: the files of each split.
        label_bytes: 1 for CIFAR-10, 2 for CIFAR-100.
    """

    def __init__(
        self,
        address: str,
        md5: str,
        folder: str,
        train: list[str],
        test: list[str],
        label_bytes: int = 1,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.address, self.md5, self.folder, self.label_bytes = address, md5, folder, label_bytes
        self.files = {"train": list(train), "test": list(test)}

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray | None]:
        place = self._place_of_files()
        records = np.concatenate([self._records(place / name) for name in self.files[split]])
        labels = records[:, self.label_bytes - 1]
        return np.ascontiguousarray(records[:, self.label_bytes :]).reshape(-1, 3, 32, 32), labels

    def _place_of_files(self) -> Path:
        names = self.files["train"] + self.files["test"]
        places = (self.root / self.folder, self.root)
        for place in places:
            missing = [name for name in names if not (place / name).exists()]
            if not missing:
                return place
            if len(missing) < len(names):
                raise FileNotFoundError(f"{place} lacks {', '.join(missing)}: delete the folder, or complete it.")
        archive = fetch(self.address, self.root / self.address.rsplit("/", 1)[-1], md5=self.md5)
        return unpack(archive, places[0])

    def _records(self, path: Path) -> np.ndarray:
        data, record = np.fromfile(path, np.uint8), self.label_bytes + 3 * 32 * 32
        if len(data) % record or not len(data):
            raise ValueError(f"{path} is damaged: {len(data)} bytes are no multiple of {record}. Delete its folder.")
        return data.reshape(-1, record)
