from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from triptych.dataset.base import Dataset
from triptych.dataset.cache import cached
from triptych.dataset.decode import Item, decode
from triptych.dataset.picture import Picture


class HuggingFace(Dataset):
    """A data set of the `datasets` library: a name on the hub, or a folder of parquet files or pictures on disk.

    Args:
        source: the name ("uoft-cs/cifar10") or folder. config: the configuration, where it has several.
        train, test: names of its splits; test is None if there is none.
        image, label: names of its columns; label is None if there is none.
        crop, filter: see `Picture`. corrupt: "refuse" or "skip" what cannot be read.
    """

    def __init__(
        self,
        source: str,
        config: str | None = None,
        train: str = "train",
        test: str | None = "test",
        image: str = "image",
        label: str | None = "label",
        crop: int | None = None,
        filter: str = "lanczos",
        corrupt: str = "refuse",
        **shared: Any,
    ) -> None:
        self.splits = ("train",) if test is None else ("train", "test")
        super().__init__(**shared)
        self.source, self.config, self.names = source, config, {"train": train, "test": test}
        self.image, self.label, self.corrupt = image, label, corrupt
        self.picture = Picture(channels=self.channels, resolution=self.resolution or 0, crop=crop, filter=filter)

    def transform(self) -> dict[str, object]:
        return super().transform() | self.picture.key | {"source": self.source, "config": self.config}

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray | None]:
        try:
            import datasets  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(
                "dataset=huggingface needs the datasets library: pip install triptych[huggingface]."
            ) from error
        try:
            rows = datasets.load_dataset(self.source, self.config, split=self.names[split])
        except (OSError, ValueError) as error:  # no such name, no such split, no network
            raise FileNotFoundError(
                f"The data set {self.source} (config {self.config}, split {self.names[split]}) cannot be had "
                f"({' '.join(str(error).split())}): check the names, or give dataset.source=<a folder on disk>."
            ) from error
        missing = [name for name in (self.image, self.label) if name is not None and name not in rows.column_names]
        if missing:
            raise ValueError(
                f"{self.source} has no column {missing[0]!r} but {', '.join(rows.column_names)}: "
                "type dataset.image=<name> dataset.label=<name or null>."
            )
        rows = rows.cast_column(self.image, datasets.Image(decode=False))  # bytes, so that our own rules decode them

        def items() -> Iterator[Item]:
            for k, row in enumerate(rows):
                yield (
                    f"row {k}",
                    partial(encoded, row[self.image]),
                    -1 if self.label is None else int(row[self.label]),
                )

        key = self.picture.key | {"rows": rows._fingerprint, "label": self.label, "corrupt": self.corrupt}
        return cached(
            self.cache,
            key,
            self.shape,
            lambda writer: decode(items(), len(rows), self.picture, self.corrupt, writer),
        )


def encoded(cell: dict[str, Any]) -> Path | bytes:
    return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"])
