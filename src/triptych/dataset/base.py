"""What every data set shares: splits, order, batches, ranges. A source adds `arrays` and nothing else."""

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor

from triptych.dataset.augment import PARAMETERS, augment
from triptych.dataset.batches import Batch, TrainBatches, ValidationBatches, per_device_batch_size
from triptych.dataset.order import AUGMENT, DEQUANTISE, Order, bits, held_out, uniforms
from triptych.dataset.pixels import Buffers, normalise
from triptych.dataset.store import MappedStore, Rows, Store
from triptych.image import dequantise

Cond = Tensor | dict[str, Tensor] | None
IN_MEMORY = 4 << 30  # bytes up to which a memory-mapped set is read into memory


class Dataset(LightningDataModule, ABC):
    """Images in [-1, 1] for a Trainer, uint8 for everybody else.

    A training batch is `(x_0, cond)`: x_0 float32 [B, C, H, W] (toy: [B, 2]); cond None, or int64 labels [B]
    if `conditional`, or if augmented a dict of "augment" [B, 9] and perhaps "label". What the global batch
    holds depends on (seed, optimizer step) alone.

    Args:
        channels: C.
        resolution: H = W; None for toy points.
        num_classes: labels are 0, ..., num_classes - 1; 0 if there are none.
        global_batch_size: images an optimizer step, over all processes and accumulated micro-batches (T-D1).
        flip: mirror training images at random.
        augment: the probability of each of EDM's non-leaky augmentations, which mirror as well; 0 for none.
        dequantise: train on uniformly dequantised grey levels, as likelihoods are computed on (T-K7).
        conditional: hand out labels as cond.
        holdout: the share of the training images kept for validation; 0 where the test split serves.
        root: where the files are, or are downloaded to (default: data/<name>).
        cache: where decoded images are kept (default: inside root).
        device_resident: keep the images on the GPU: true, false, or "auto": if they take an eighth of it at most.
        limit: use the first so many training images only.
        sigma_max, levels: the largest distance of two images in [-1, 1], and the number of noise levels that fits it
            (Techniques 1 and 2 of arXiv:2006.09011), for schedules that read them from the config.
        sigma_data: standard deviation of the images in [-1, 1], for EDM, which reads it from the config.
    """

    splits: tuple[str, ...] = ("train", "test")  # what the source's own files provide

    def __init__(
        self,
        *,
        name: str,
        channels: int,
        resolution: int | None,
        num_classes: int = 0,
        global_batch_size: int = 128,
        flip: bool = False,
        augment: float = 0.0,
        dequantise: bool = False,
        conditional: bool = False,
        holdout: float = 0.0,
        seed: int = 0,
        root: str | None = None,
        cache: str | None = None,
        device_resident: bool | str = "auto",
        limit: int | None = None,
        sigma_max: float | None = None,
        levels: int | None = None,
        sigma_data: float | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= holdout < 1:
            raise ValueError(
                f"dataset.holdout={holdout} must be a share of the training images in [0, 1), such as 0.1."
            )
        if conditional and not num_classes:
            raise ValueError(f"dataset {name} has no labels (num_classes: 0): type dataset.conditional=false.")
        if not 0 <= augment <= 1:
            raise ValueError(f"dataset.augment={augment} must be a probability in [0, 1], such as EDM's 0.12.")
        if flip and augment:
            raise ValueError("The augmentations mirror images already: type dataset.flip=false.")
        if resolution is None and (flip or augment or dequantise):
            raise ValueError(f"dataset {name} is points: flip, augment and dequantise are for images; leave them out.")
        if device_resident not in (True, False, "auto"):
            raise ValueError(f"dataset.device_resident={device_resident} must be auto, true or false.")
        if not holdout and "test" not in self.splits:
            raise ValueError(
                f"dataset {name} has no test split of its own: "
                "type dataset.holdout=0.1 to keep a share of the images for validation."
            )
        self.name, self.channels, self.resolution, self.num_classes = name, channels, resolution, num_classes
        self.global_batch_size, self.conditional = global_batch_size, conditional
        self.flip, self.augment, self.dequantise = flip, augment, dequantise
        self.sigma_max, self.levels, self.sigma_data = sigma_max, levels, sigma_data
        self.holdout, self.seed, self.device_resident, self.limit = holdout, seed, device_resident, limit
        self.root = Path(root).expanduser() if root else Path("data") / name
        self.cache = Path(cache).expanduser() if cache else self.root / "cache"
        self._arrays: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        self._folders: set[Path] = set()
        self._buffers = Buffers()
        self._origin = (0, 0)  # (optimizer step, stream position) from which positions are counted

    @abstractmethod
    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray | None]:
        """The source's "train" or "test" images, uint8 [N, C, H, W] (or a memory map), and labels [N] or None."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample; known without reading any file."""
        return (self.channels,) if self.resolution is None else (self.channels, self.resolution, self.resolution)

    def images(self, split: str) -> np.ndarray:
        """The raw images of a split, uint8 [N, C, H, W], in the order of the files: never augmented (T-F6).

        "train" is what is trained on; "val" the held-out images, or the test split if nothing is held out;
        "test" the source's own test split, or the held-out images if it has none. A part of a large set on disk is
        read as it is asked for (`store.Rows`).
        """
        return self._split(split)[0]

    def labels(self, split: str) -> np.ndarray | None:
        """The labels of a split, int64 [N], or None."""
        return self._split(split)[1]

    def test_images(self) -> np.ndarray:
        """`images("test")`."""
        return self.images("test")

    @property
    def transform_hash(self) -> str:
        """Identifies what shaped the raw images (source, resolution, crop, filter), for evaluation records."""
        return hashlib.sha256(repr(sorted(self.transform().items())).encode()).hexdigest()[:16]

    def transform(self) -> dict[str, object]:
        """What shapes the raw images, as plain values. A source with a crop or a filter adds them."""
        return {"name": self.name, "channels": self.channels, "resolution": self.resolution}

    def _split(self, split: str) -> tuple[np.ndarray, np.ndarray | None]:
        if split not in ("train", "val", "test"):
            raise ValueError(f"There is no split {split!r}: it is one of train, val, test.")
        own_test = "test" in self.splits
        if (split == "test" and own_test) or (split == "val" and not self.holdout):
            return self._load("test")
        images, labels = self._load("train")
        if not self.holdout:
            return images, labels
        kept = held_out(len(images), self.holdout) == (split != "train")
        mapped = isinstance(images, np.memmap) and images.nbytes > IN_MEMORY
        part: Any = Rows(images, np.flatnonzero(kept)) if mapped else images[kept]
        return part, None if labels is None else labels[kept]

    def _load(self, split: str) -> tuple[np.ndarray, np.ndarray | None]:
        """`arrays`, checked and remembered."""
        if split in self._arrays:
            return self._arrays[split]
        images, labels = self.arrays(split)
        if split == "train" and self.limit:
            images, labels = images[: self.limit], None if labels is None else labels[: self.limit]
        if images.shape[1:] != self.shape:
            raise ValueError(
                f"dataset {self.name} holds images of shape {list(images.shape[1:])} where channels and "
                f"resolution say {list(self.shape)}: type dataset.channels={images.shape[1]}"
                + (f" dataset.resolution={images.shape[-1]}." if images.ndim == 4 else ".")
            )
        if not len(images):
            raise ValueError(f"dataset {self.name} has no images in its {split} split.")
        if labels is not None:
            labels = np.asarray(labels, np.int64)
            if len(labels) != len(images):
                raise ValueError(f"dataset {self.name} has {len(images)} {split} images but {len(labels)} labels.")
            if self.conditional and (labels.min() < 0 or labels.max() >= self.num_classes):
                raise ValueError(
                    f"dataset {self.name} has labels from {labels.min()} to {labels.max()}: "
                    f"type dataset.num_classes={labels.max() + 1}."
                )
        elif self.conditional and split == "train":
            raise ValueError(f"dataset {self.name} has no labels: type dataset.conditional=false.")
        self._arrays[split] = images, labels
        self._folders |= {self.root} if self.root.exists() else set()  # what comes with a package has none
        return images, labels

    def prepare_data(self) -> None:
        for split in self.splits:  # on rank 0 only, while the others wait: downloads and decodes what is missing
            self._load(split)

    def train_dataloader(self) -> TrainBatches:
        images, labels = self._load("train")
        rank, world_size = self._place()
        accumulate = getattr(self.trainer, "accumulate_grad_batches", 1)
        device = self._device(images.nbytes)
        pinned = device.type == "cpu" and self._root_device().type == "cuda"
        if isinstance(images, np.memmap) and images.nbytes > IN_MEMORY and device.type == "cpu":
            store = MappedStore(images, self.flip, pinned)
        else:
            store = Store(images, self.flip, device, pinned)
        rows = np.flatnonzero(~held_out(len(images), self.holdout))
        return TrainBatches(
            store,
            Order(self.seed, rows, len(images), self.flip, store.device),
            torch.from_numpy(labels).to(store.device) if self.conditional and labels is not None else None,
            start=self.position,
            batch=per_device_batch_size(self.global_batch_size, world_size, accumulate),
            rank=rank,
            world_size=world_size,
            positions=self.augment > 0 or self.dequantise,
        )

    def val_dataloader(self) -> ValidationBatches:
        images, labels = self._split("val")
        rank, world_size = self._place()
        accumulate = getattr(self.trainer, "accumulate_grad_batches", 1)
        batch = per_device_batch_size(self.global_batch_size, world_size, accumulate)
        labels = labels if self.conditional else None
        return ValidationBatches(images, labels, batch=batch, rank=rank, world_size=world_size)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Lightning's, without its search through nested collections. Positions stay on the host."""
        beside = device.type == "cuda"  # while the host goes on
        return tuple(v.to(device, non_blocking=beside) if isinstance(v, Tensor) else v for v in batch)  # pyright: ignore

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int = 0) -> tuple[Tensor, Cond]:
        x, label, *positions = batch
        if not positions:
            return normalise(x, self._buffer(x)), label
        if self.dequantise:
            generator = torch.Generator(x.device)
            generator.manual_seed(int(bits(self.seed, DEQUANTISE, positions[0][:1])[0] >> np.uint64(1)))
            x = dequantise(x, torch.rand(x.shape, generator=generator, device=x.device))
        x = normalise(x)
        if not self.augment:
            return x, label
        numbers = torch.from_numpy(uniforms(self.seed, AUGMENT, positions[0], PARAMETERS))
        numbers = numbers.to(x.device, non_blocking=x.device.type == "cuda")
        x, parameters = augment(x, numbers, self.augment)
        return x, {"augment": parameters} if label is None else {"label": label, "augment": parameters}

    def _buffer(self, x: Tensor) -> Tensor | None:
        """Memory for x in float32, where that is worth keeping."""
        reuse = x.device.type == "cpu" and not x.is_floating_point()
        return self._buffers.take(tuple(x.shape), torch.float32) if reuse else None

    def position(self) -> int:
        """The stream position of the next optimizer step: the Trainer's, so that nothing prefetched counts."""
        step, position = self._origin
        return position + (getattr(self.trainer, "global_step", 0) - step) * self.global_batch_size

    def gone(self) -> Path | None:
        """A file or folder that was read and is there no more; what is open can still be read."""
        maps = [Path(str(images.filename)) for images, _ in self._arrays.values() if isinstance(images, np.memmap)]
        return next((path for path in (*maps, *self._folders) if not path.exists()), None)

    def state_dict(self) -> dict[str, int]:
        return {"step": getattr(self.trainer, "global_step", 0), "position": self.position()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._origin = state_dict["step"], state_dict["position"]

    def _place(self) -> tuple[int, int]:
        """(rank, number of ranks) among the processes that see different data."""
        if self.trainer is None:
            return 0, 1
        place = getattr(self.trainer, "distributed_sampler_kwargs", None)
        if place:  # fewer than the world size, if the network itself is split
            return place["rank"], place["num_replicas"]
        return self.trainer.global_rank, self.trainer.world_size

    def _device(self, size: int) -> torch.device:
        """Where a set of so many bytes is kept."""
        cpu, device = torch.device("cpu"), self._root_device()
        if self.device_resident != "auto":
            return device if self.device_resident else cpu
        memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
        return device if size <= memory // 8 else cpu

    def _root_device(self) -> torch.device:
        """Where this process trains."""
        return getattr(getattr(self.trainer, "strategy", None), "root_device", torch.device("cpu"))
