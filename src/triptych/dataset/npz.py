import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from triptych.dataset.base import Dataset
from triptych.dataset.cache import Writer, cached, fingerprint


class NPZ(Dataset):
    """Images in NumPy archives, such as the ADM evaluator's, or ImageNet 64 x 64 of Chrabaszcz et al. 2017.

    uint8 in any of [N, H, W, C], [N, C, H, W], [N, H, W] or flat [N, C H W]. Copied once into a memory-mapped cache.

    Args:
        train, test: a file in root, or a pattern for several ("train_data_batch_*.npz"); test is None if there is none.
        images, labels: the names of the arrays; labels is None if there are none.
        first_label: the number of the first class.
    """

    def __init__(
        self,
        train: str,
        test: str | None = None,
        images: str = "images",
        labels: str | None = "labels",
        first_label: int = 0,
        **shared: Any,
    ) -> None:
        self.splits = ("train",) if test is None else ("train", "test")
        super().__init__(**shared)
        self.patterns = {"train": train, "test": test}
        self.names, self.first_label = (images, labels), first_label

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray | None]:
        pattern = str(self.patterns[split])
        files = sorted(self.root.glob(pattern), key=lambda path: (len(path.name), path.name))  # batch_2 before batch_10
        if not files:
            raise FileNotFoundError(
                f"There is no {self.root / pattern}: give dataset.root=<folder> and dataset.{split}."
            )
        key = {"files": fingerprint(files, self.root), "names": self.names, "first_label": self.first_label}

        def build(writer: Writer) -> None:
            for file in files:
                writer.add(*self._read(file))

        return cached(self.cache, key, self.shape, build)

    def _read(self, file: Path) -> tuple[np.ndarray, list[int] | None]:
        name, label_name = self.names
        try:
            with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as archive:
                arrays = {n: archive[n] for n in (name, label_name) if n in archive.files}
                names = archive.files
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, AttributeError) as error:
            raise ValueError(f"{file} is damaged, or no archive of plain arrays ({error}).") from error
        missing = [n for n in (name, label_name) if n is not None and n not in arrays]
        if missing:
            raise ValueError(
                f"{file} has no array {missing[0]!r} but {', '.join(names)}: "
                "type dataset.images=<name> dataset.labels=<name or null>."
            )
        images = arrays[name]
        labels = None if label_name is None else arrays[label_name].reshape(-1)
        if images.dtype != np.uint8:
            raise ValueError(f"{file} holds {images.dtype} images: they must be uint8, 0 to 255.")
        if images.ndim == 0:
            raise ValueError(f"{file} holds a single number as {name!r} and no images.")
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"{file} holds {len(images)} images but {len(labels)} labels.")
        return self._channels_first(images, file), None if labels is None else (labels - self.first_label).tolist()

    def _channels_first(self, images: np.ndarray, file: Path) -> np.ndarray:
        channels, height, width = self.shape
        layout = images.shape[1:]
        if layout == (height, width, channels):
            return images.transpose(0, 3, 1, 2)
        if layout in ((channels, height, width), (channels * height * width,)) or (channels, *layout) == self.shape:
            return images.reshape(-1, *self.shape)
        raise ValueError(
            f"{file} holds images of shape {list(layout)}, which is not {channels} channels of {height} x {width}: "
            "type dataset.channels and dataset.resolution."
        )
