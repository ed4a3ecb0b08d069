"""Images at rest, and the one operation that training needs: take a batch of rows, some of them mirrored."""

import numpy as np
import torch
from torch import Tensor

from triptych.dataset.pixels import Buffers

BOTH_ORIENTATIONS = 1 << 30  # bytes up to which mirrored copies are kept, so that a flip costs nothing


class Store:
    """A set of images as one tensor, in memory or on the device. Row N + i is image i mirrored.

    Where mirrored images are wanted and the set is small, both orientations are kept; otherwise the batch is mirrored.

    Args:
        images: uint8 [N, C, H, W] or float32 [N, D].
        flip: whether rows from N on will be asked for.
        device: where the tensor lies and the batches are made.
        pinned: make batches in page-locked memory, from which a GPU copies without waiting.
    """

    def __init__(
        self, images: np.ndarray, flip: bool = False, device: torch.device | str = "cpu", pinned: bool = False
    ) -> None:
        data = torch.from_numpy(images if images.flags.writeable else np.array(images)).to(device)
        self.size, self.shape, self.flip, self.device = len(data), tuple(data.shape[1:]), flip, data.device
        self.doubled = flip and 2 * data.nbytes <= BOTH_ORIENTATIONS
        if self.doubled:
            data = torch.cat([data, data.flip(-1)])
        self.data = data.reshape(len(data), -1)
        self.pinned, self.buffers = pinned, Buffers()

    def take(self, rows: Tensor) -> Tensor:
        """Rows int64 [B] on the store's device -> [B, ...] in the dtype of the store."""
        index = rows if self.doubled or not self.flip else rows % self.size
        if self.device.type == "cpu":
            shape, dtype = (len(rows), self.data.shape[1]), self.data.dtype
            # Page-locked memory is new each time: PyTorch keeps it until the device has read it, which we cannot see
            out = torch.empty(shape, dtype=dtype, pin_memory=True) if self.pinned else self.buffers.take(shape, dtype)
            x = torch.index_select(self.data, 0, index, out=out).view(-1, *self.shape)
        else:
            x = self.data.index_select(0, index).view(-1, *self.shape)
        if not self.flip or self.doubled:
            return x
        return mirror(x, rows >= self.size, out=x if self.pinned else None)


class MappedStore:
    """A set too large for memory: a memory-mapped array, a batch of which is read in the order of the disk.

    Args:
        images: uint8 [N, C, H, W].
        flip: whether rows from N on will be asked for.
        pinned: make batches in page-locked memory, from which a GPU copies without waiting.
    """

    device = torch.device("cpu")

    def __init__(self, images: np.ndarray, flip: bool = False, pinned: bool = False) -> None:
        self.images, self.size, self.shape = images, len(images), images.shape[1:]
        self.flip, self.pinned = flip, pinned

    def take(self, rows: Tensor) -> Tensor:
        """Rows int64 [B] -> uint8 [B, ...]."""
        batch = torch.empty((len(rows), *self.shape), dtype=torch.uint8, pin_memory=self.pinned)
        index = (rows % self.size).numpy()
        sequence = np.argsort(index)
        batch.numpy()[sequence] = self.images[index[sequence]]
        return mirror(batch, rows >= self.size, out=batch) if self.flip else batch


class Rows:
    """Some rows of a memory map, which are read when they are asked for; an array of them would be a copy in memory.

    Args:
        images: uint8 [N, C, H, W].
        rows: int64 [M], those that there are.
    """

    def __init__(self, images: np.ndarray, rows: np.ndarray) -> None:
        self.images, self.rows = images, rows
        self.shape, self.dtype, self.ndim = (len(rows), *images.shape[1:]), images.dtype, images.ndim

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | slice | np.ndarray) -> np.ndarray:
        return self.images[self.rows[key]]

    def min(self) -> int:
        return min(int(self[i : i + 4096].min()) for i in range(0, len(self), 4096))

    def max(self) -> int:
        return max(int(self[i : i + 4096].max()) for i in range(0, len(self), 4096))


def mirror(x: Tensor, which: Tensor, out: Tensor | None = None) -> Tensor:
    """The same images, some mirrored: by a gather, as torch.where takes ten times as long. [B, ...], bool [B]."""
    count = len(x)
    both = torch.cat([x, x.flip(-1)]).view(2 * count, -1)
    index = torch.arange(count, device=x.device) + count * which
    return torch.index_select(both, 0, index, out=None if out is None else out.view(count, -1)).view_as(x)
