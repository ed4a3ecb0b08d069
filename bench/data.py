"""Training batches a second on one core, at CIFAR-10's size: ours against per-sample DataLoaders, in one run.

    python bench/data.py [--images 50000] [--batch 128] [--rounds 7]

Every way hands out float32 [B, 3, 32, 32] in [-1, 1], shuffled and mirrored at random. Rounds are interleaved
(A B C A B C ...), so that a busy machine slows all of them; rates are medians over rounds, in images a CPU second.
Targets: 500,000 images/s, 10 times torch per sample, 30 times PIL per sample.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Samples

import triptych.dataset.base
import triptych.dataset.store
from triptych.dataset import Dataset


class InMemory(Dataset):
    def __init__(self, images, **options):
        super().__init__(name="bench", channels=3, resolution=32, flip=True, **options)
        self.array = images

    def arrays(self, split):
        return self.array, None


class Pillow(Samples):
    """torchvision's CIFAR10 with RandomHorizontalFlip, ToTensor, Normalize, without torchvision."""

    def __init__(self, images):
        self.images = images.transpose(0, 2, 3, 1).copy()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        picture = Image.fromarray(self.images[index])
        if torch.rand(1) < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return x.sub_(0.5).div_(0.5)


class PerSample(Samples):
    """A tensor indexed a sample at a time."""

    def __init__(self, images):
        self.images = torch.from_numpy(images)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        x = self.images[index]
        x = x.flip(-1) if torch.rand(1) < 0.5 else x
        return x.to(torch.float32) / 127.5 - 1


class Bytes(Samples):
    """EDM's way: a NumPy sample in uint8, normalised a batch at a time."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        x = self.images[index]
        return x[:, :, ::-1].copy() if np.random.rand() < 0.5 else x.copy()


def ours(data: Dataset) -> Iterator[torch.Tensor]:
    for batch in data.train_dataloader():
        yield data.on_after_batch_transfer(batch)[0]


def forever(samples: Samples, batch: int, finish: Callable = lambda x: x) -> Iterator[torch.Tensor]:
    while True:
        for x in DataLoader(samples, batch_size=batch, shuffle=True, drop_last=True, num_workers=0):
            yield finish(x)


def rate(batches: Iterator[torch.Tensor], size: int, seconds: float) -> float:
    """Images a second of one core: of CPU time, which other processes do not take part in."""
    count, begin = 0, time.process_time()
    while (elapsed := time.process_time() - begin) < seconds:
        x = next(batches)
        count += 1
    assert x.dtype == torch.float32 and x.shape[1:] == (3, 32, 32)
    return count * size / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="a round of one way")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = np.random.default_rng(0).integers(0, 256, (args.images, 3, 32, 32), dtype=np.uint8)
    shared = {"global_batch_size": args.batch}

    with tempfile.TemporaryDirectory() as folder:
        mapped = np.memmap(Path(folder) / "images.bin", np.uint8, "w+", shape=images.shape)
        mapped[:] = images
        ways = {"ours": ours(InMemory(images, **shared))}
        next(ways["ours"])  # which makes its store: the next one is to have another
        triptych.dataset.store.BOTH_ORIENTATIONS = 0
        ways["ours, one orientation kept"] = ours(InMemory(images, **shared))
        next(ways["ours, one orientation kept"])
        triptych.dataset.base.IN_MEMORY = 0
        ways["ours, memory-mapped"] = ours(InMemory(mapped, **shared))
        next(ways["ours, memory-mapped"])
        ways["DataLoader, uint8 sample, normalised per batch"] = forever(
            Bytes(images), args.batch, lambda x: x.to(torch.float32) / 127.5 - 1
        )
        ways["DataLoader, torch per sample"] = forever(PerSample(images), args.batch)
        ways["DataLoader, PIL per sample"] = forever(Pillow(images), args.batch)
        for batches in ways.values():
            rate(batches, args.batch, 0.2)
        rates = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, batches in ways.items():
                rates[name].append(rate(batches, args.batch, args.seconds))

    median = {name: statistics.median(values) for name, values in rates.items()}
    table = Table("way", "images/s", "best round", "ours is x times as fast")
    for name, values in rates.items():
        table.add_row(name, f"{median[name]:,.0f}", f"{max(values):,.0f}", f"{median['ours'] / median[name]:.1f}")
    Console().print(table)
    record = {
        "bench": "data",
        "images": args.images,
        "batch": args.batch,
        "rounds": args.rounds,
        "images_per_second": {name: round(value) for name, value in median.items()},
        "best": {name: round(max(values)) for name, values in rates.items()},
        "ratio": {name: round(median["ours"] / value, 2) for name, value in median.items()},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
