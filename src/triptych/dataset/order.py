"""The order of the training data as a pure function of (seed, position in an endless stream).

Position p belongs to epoch p // N, whose permutation is drawn from (seed, epoch). Nothing here knows about ranks,
batches or time, so the order cannot depend on the number of processes, on accumulation, on prefetching, or on
where a run was resumed.
"""

import numpy as np
import torch
from torch import Tensor

HOLDOUT, SHUFFLE, FLIP, AUGMENT, DEQUANTISE = range(5)  # independent streams of random numbers


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser. Steele, Lea, Flood 2014. uint64 -> uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits(seed: int, stream: int, counter: np.ndarray) -> np.ndarray:
    """A random uint64 for each counter, which steps by the golden ratio as in SplitMix64. Any shape -> same shape."""
    key = np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)
    return mix(key + (counter.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


def uniforms(seed: int, stream: int, positions: np.ndarray, count: int) -> np.ndarray:
    """`count` numbers from U(0, 1) for each position, never 0 or 1. [B] -> float32 [B, count]."""
    counter = positions.astype(np.uint64)[:, None] * np.uint64(count) + np.arange(count, dtype=np.uint64)
    return ((bits(seed, stream, counter) >> np.uint64(41)).astype(np.float32) + np.float32(0.5)) * np.float32(2**-23)


def flips(seed: int, positions: np.ndarray) -> np.ndarray:
    """Which positions are mirrored: a fair coin each. [B] -> bool [B]."""
    return bits(seed, FLIP, positions) >> np.uint64(63) != 0


def held_out(size: int, fraction: float) -> np.ndarray:
    """Which images are kept for validation: hash(index) < fraction, whatever the seed. -> bool [size]."""
    return bits(0, HOLDOUT, np.arange(size)) < np.uint64(fraction * 2.0**64)


class Order:
    """The endless sequence of rows: every one once an epoch, in another permutation each epoch.

    A row is an image's index, plus `size` where the image is to be mirrored, so that one number says all.

    Args:
        rows: the indices of the images that are trained on, int64 [N].
        size: how many images there are in all.
        flip: mirror at random.
        device: where the sequence is wanted.
    """

    def __init__(
        self, seed: int, rows: np.ndarray, size: int, flip: bool = False, device: torch.device | str = "cpu"
    ) -> None:
        self.seed, self.rows, self.size, self.flip, self.device = seed, rows, size, flip, device
        self.epochs: dict[int, Tensor] = {}

    def epoch(self, epoch: int) -> Tensor:
        """All rows of an epoch [N]."""
        if epoch not in self.epochs:
            if len(self.epochs) == 2:  # the one in use, and the one that a batch may reach into
                del self.epochs[min(self.epochs)]
            count = len(self.rows)
            rows = self.rows[np.random.default_rng([self.seed, SHUFFLE, epoch]).permutation(count)]
            if self.flip:
                rows = rows + self.size * flips(self.seed, epoch * count + np.arange(count))
            self.epochs[epoch] = torch.from_numpy(rows).to(self.device)
        return self.epochs[epoch]

    def __call__(self, start: int, stop: int) -> Tensor:
        """Rows at stream positions start, ..., stop - 1. -> int64 [stop - start]."""
        parts = []
        while start < stop:
            epoch, offset = divmod(start, len(self.rows))
            part = self.epoch(epoch)[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)
