"""Streams of random numbers that depend on what they are for, and on nothing else.

Training noise is a function of (seed, rank, step): evaluating more often, or resuming, cannot change it.
Sampling noise is a function of (seed, index of the sample): batch size and number of devices cannot change it (T-F11).
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Noise = Callable[[Tensor], Tensor]


def seed_of(*key: int | str) -> int:
    """A well-mixed 63-bit seed from any tuple of numbers and words; the same on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A generator on the device, seeded by the key."""
    return torch.Generator(device=device).manual_seed(seed_of(*key))


def from_generator(source: torch.Generator) -> Noise:
    """A `randn_like` that draws from the generator."""

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=source, device=like.device, dtype=like.dtype)

    return noise


class SampleNoise:
    """A `randn_like` for a block of samples, in which each sample draws from a stream of its own.

    Row j of the result comes from the stream of (seed, indices[j]) alone. Many steps are drawn by one generator call,
    since single small draws cost ten times more; how many is a function of the sample's size, hence part of the stream.

    Args:
        seed: the seed of the whole set of samples.
        indices: global index of each sample of the block, [B].
        device: where numbers are drawn and returned.
    """

    chunk_values = 8192  # numbers per sample and generator call

    def __init__(self, seed: int, indices: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._generators = [generator(self.device, "sample", seed, int(index)) for index in indices]
        self._buffer = torch.empty(0)
        self._used = 0

    def __call__(self, like: Tensor) -> Tensor:
        if len(like) != len(self._generators):
            raise ValueError(f"This noise is for a block of {len(self._generators)} samples, asked for {len(like)}.")
        if self._used >= self._buffer.shape[0] or self._buffer.shape[2:] != like.shape[1:]:
            self._draw(like)
        z = self._buffer[self._used]
        self._used += 1
        return z.to(like.dtype)

    def _draw(self, like: Tensor) -> None:
        steps = max(1, self.chunk_values // max(1, math.prod(like.shape[1:])))
        self._buffer = torch.empty(steps, *like.shape, device=self.device)
        chunk = torch.empty(steps, *like.shape[1:], device=self.device)
        for j, source in enumerate(self._generators):
            self._buffer[:, j] = chunk.normal_(generator=source)
        self._used = 0


def labels(seed: int, indices: Sequence[int], num_classes: int) -> Tensor:
    """A uniformly drawn class label for each sample, a function of (seed, index). int64 [B]."""
    return torch.tensor([seed_of("label", seed, int(index)) % num_classes for index in indices])


@dataclass(frozen=True)
class Step:
    """Where in training a random number is drawn: the generators of one micro-batch on one rank (T-D2).

    Attributes:
        index: optimizer step and micro-batch within it.
        rank, world: this process and how many there are.
    """

    seed: int
    index: tuple[int, int]
    rank: int = 0
    world: int = 1
    device: torch.device | str = "cpu"

    def local(self, purpose: str) -> torch.Generator:
        """Differs on every rank, and for every purpose."""
        return generator(self.device, purpose, self.seed, self.rank, *self.index)

    def shared(self) -> torch.Generator:
        """The same on every rank."""
        return generator(self.device, "shared", self.seed, *self.index)

    def seed_dropout(self) -> None:
        """Seeds the device's own generator, the only one that nn.Dropout draws from.

        Not by torch.manual_seed: it goes through every kind of device, and for each that is absent takes half a
        millisecond and remembers the call for ever.
        """
        seed, device = seed_of("dropout", self.seed, self.rank, *self.index), torch.device(self.device)
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.default_generators[index].manual_seed(seed)
