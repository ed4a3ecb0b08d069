import logging
import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from triptych.dataset.base import Dataset
from triptych.dataset.cache import cached, fingerprint
from triptych.dataset.decode import Item, decode
from triptych.dataset.picture import Picture

log = logging.getLogger(__name__)

SUFFIXES = frozenset(".png .jpg .jpeg .webp .bmp .gif .tif .tiff .ppm .pgm .jp2 .avif".split())


class ImageFolder(Dataset):
    """Any folder of pictures. Decoded once into a memory-mapped cache; a later start reads nothing but the file list.

    With num_classes > 0 the first level of sub-folders are the classes, numbered in the order of their names;
    otherwise sub-folders mean nothing.

    Args:
        train, test: folders inside root ("." for root itself); test is None if there is no test split.
        crop, filter: see `Picture`.
        corrupt: "refuse" or "skip" what cannot be read; either way it is named and counted.
        partition: a file of lines "name number" that says which split a picture belongs to, as CelebA's
            list_eval_partition.txt; train and test are then numbers, and the pictures lie in `folder`.
        folder: where they lie if there is a partition.
    """

    def __init__(
        self,
        train: str | int = "train",
        test: str | int | None = "test",
        crop: int | None = None,
        filter: str = "lanczos",
        corrupt: str = "refuse",
        partition: str | None = None,
        folder: str = ".",
        **shared: Any,
    ) -> None:
        self.splits = ("train",) if test is None else ("train", "test")
        super().__init__(**shared)
        self.picture = Picture(channels=self.channels, resolution=self.resolution or 0, crop=crop, filter=filter)
        self.places = {"train": train, "test": test}
        self.partition, self.folder, self.corrupt = partition, folder, corrupt

    def transform(self) -> dict[str, object]:
        return super().transform() | self.picture.key

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray | None]:
        folder = self._folder(split)
        files = self._listed(folder, split) if self.partition else pictures(folder)
        if not files:
            raise FileNotFoundError(f"{folder} holds no pictures ({' '.join(sorted(SUFFIXES))}) for the {split} split.")
        labels = self._labels(folder, files)
        key = self.picture.key | {
            "files": fingerprint(files, folder),
            "labels": None if labels is None else sorted(set(labels)),
            "corrupt": self.corrupt,
        }
        names = [file.relative_to(folder).as_posix() for file in files]
        items: list[Item] = [
            (name, partial(Path, file), label)
            for name, file, label in zip(names, files, labels or [-1] * len(files), strict=True)
        ]
        return cached(
            self.cache,
            key,
            self.shape,
            lambda writer: decode(items, len(items), self.picture, self.corrupt, writer),
        )

    def _folder(self, split: str) -> Path:
        folder = self.root / (self.folder if self.partition else str(self.places[split]))
        if not folder.is_dir():
            hint = (
                "dataset.train=<its sub-folder> (. for root itself)."
                if split == "train"
                else "dataset.test=<its sub-folder>, or dataset.test=null dataset.holdout=0.05 if there is none."
            )
            raise FileNotFoundError(
                f"There is no folder {folder} for the {split} pictures: give dataset.root=<folder> and {hint}"
            )
        return folder

    def _listed(self, folder: Path, split: str) -> list[Path]:
        """The files that the partition counts to a split, in its order."""
        listing = self.root / str(self.partition)
        if not listing.is_file():
            raise FileNotFoundError(f"There is no {listing}: it comes with the data set; dataset.partition names it.")
        lines = [line.split() for line in listing.read_text().splitlines() if line.strip()]
        files = [folder / name for name, number in lines if int(number) == int(self.places[split])]  # type: ignore
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of the {len(files)} pictures in {listing} are not in {folder}, the first {missing[0]}."
            )
        return files

    def _labels(self, folder: Path, files: list[Path]) -> list[int] | None:
        if self.num_classes == 0:
            return None
        parts = [file.relative_to(folder).parts for file in files]
        loose = [p[0] for p in parts if len(p) == 1]
        if len(loose) == len(files) and not self.conditional:
            return None
        if loose:
            raise ValueError(
                f"{len(loose)} pictures in {folder} are in no class folder, such as {loose[0]}: move them, "
                "or type dataset.num_classes=0 to do without classes."
            )
        # the training folders name the classes, so that a test split that lacks one does not shift the rest
        home = folder if self.partition else self._folder("train")
        names = {f.relative_to(home).parts[0] for f in (files if home == folder else pictures(home))}
        classes = {name: k for k, name in enumerate(sorted(names))}
        unknown = sorted({p[0] for p in parts} - set(classes))
        if unknown:
            raise ValueError(f"{folder} has the class {unknown[0]}, which {home} lacks.")
        return [classes[p[0]] for p in parts]


def pictures(folder: Path) -> list[Path]:
    """All picture files below a folder, in the order of their names; hidden ones and the cache are passed over.

    Symbolic links are followed, but not back to a folder that leads to them.
    """
    found: list[Path] = []
    other: Counter[str] = Counter()
    above = {str(folder): {os.path.realpath(folder)}}  # of a folder: itself and all that lead to it
    for place, folders, names in os.walk(folder, followlinks=True):
        chain = above.pop(place)
        real = {name: os.path.realpath(os.path.join(place, name)) for name in folders if not name.startswith(".")}
        folders[:] = [name for name in real if real[name] not in chain]
        above |= {os.path.join(place, name): chain | {real[name]} for name in folders}
        for name in names:
            if not name.startswith("."):
                suffix = os.path.splitext(name)[1].lower()
                if suffix in SUFFIXES:
                    found.append(Path(place, name))
                else:
                    other[suffix or name] += 1
    for ours in (".bin", ".json", ".npy", ".lock"):
        other.pop(ours, None)
    if other and found:
        log.info("In %s, not pictures: %s.", folder, ", ".join(f"{n} {suffix}" for suffix, n in other.items()))
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())
