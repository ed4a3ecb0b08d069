"""The two iterables that a Trainer is given: the endless training stream and this rank's share of the validation."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from triptych.dataset.order import Order
from triptych.dataset.store import MappedStore, Store

Batch = tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, np.ndarray]


def per_device_batch_size(global_batch_size: int, world_size: int, accumulate: int = 1) -> int:
    """Images in one micro-batch of one process; a ValueError names the nearest global batches that divide."""
    parts = world_size * accumulate
    if global_batch_size >= 1 and global_batch_size % parts == 0:
        return global_batch_size // parts
    below = global_batch_size // parts * parts
    nearest = " or ".join(str(n) for n in (below, below + parts) if n > 0)
    raise ValueError(
        f"global_batch_size={global_batch_size} cannot be split over {world_size} processes x {accumulate} "
        f"accumulated micro-batches: it must be a multiple of {parts}; type global_batch_size={nearest}."
    )


class TrainBatches:
    """An endless iterable of `(x, label or None)`: an optimizer step takes G consecutive positions of the stream.

    Micro-batch m of rank r of W takes slice m W + r of those G positions; so the union over ranks and
    micro-batches, in that order, is the same global batch at any world size and accumulation.

    Args:
        store: the images.
        order: which of them come when.
        labels: int64 [store.size] on the store's device, or None.
        start: asked when an iterator is created for the stream position of the next optimizer step (T-D4).
        batch: images a micro-batch of one process.
        rank, world_size: this process's place.
        positions: add the stream positions, int64 [B], from which further randomness can be drawn. A NumPy array,
            which Lightning leaves on the host.
    """

    def __init__(
        self,
        store: Store | MappedStore,
        order: Order,
        labels: Tensor | None,
        *,
        start: Callable[[], int],
        batch: int,
        rank: int = 0,
        world_size: int = 1,
        positions: bool = False,
    ) -> None:
        self.store, self.order, self.labels, self.start = store, order, labels, start
        self.batch, self.rank, self.world_size, self.positions = batch, rank, world_size, positions

    def __iter__(self) -> Iterator[Batch]:
        position = self.start() + self.rank * self.batch
        while True:
            yield self.at(position)
            position += self.world_size * self.batch  # the micro-batches of a rank are W slices apart, as are steps

    def at(self, position: int) -> Batch:
        """The micro-batch that begins at a stream position."""
        rows = self.order(position, position + self.batch)
        x = self.store.take(rows)
        label = None if self.labels is None else self.labels[rows % self.store.size]
        return (x, label, np.arange(position, position + self.batch)) if self.positions else (x, label)


class ValidationBatches:
    """This rank's share of the held-out images, in order: none twice and none left out (T-K10, T-K11).

    Every rank makes the same number of batches, since a sharded network's forward is a collective; so their
    sizes may differ by one.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray | None, *, batch: int, rank: int = 0, world_size: int = 1
    ) -> None:
        size = len(images)
        if size < world_size:
            raise ValueError(
                f"There are {size} validation images for {world_size} processes: "
                "raise dataset.holdout or use fewer devices."
            )
        begin, end = rank * size // world_size, (rank + 1) * size // world_size
        self.count = max(1, -(-(size // world_size) // batch))
        self.edges = begin + np.arange(self.count + 1) * (end - begin) // self.count
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        for begin, end in zip(self.edges[:-1], self.edges[1:], strict=True):
            x = torch.from_numpy(np.array(self.images[begin:end]))
            yield x, None if self.labels is None else torch.from_numpy(self.labels[begin:end])
