"""Grey levels 0, ..., 255 to floating point, and memory for them."""

import torch
from torch import Tensor


def normalise(x: Tensor, out: Tensor | None = None) -> Tensor:
    """uint8 0, ..., 255 -> float32 in [-1, 1] by x / 127.5 - 1, into `out` if given. Floating point passes through."""
    if x.is_floating_point():
        return x
    return (x.to(torch.float32) if out is None else out.copy_(x)).div_(127.5).sub_(1)


class Buffers:
    """Memory for batches on the CPU, used again once nobody holds the batch that was in it.

    A batch of 128 CIFAR images is 1.5 MB, which the C library fetches from and returns to the kernel each time: its
    page faults cost more than the whole of the work. PyTorch counts who shares a storage (views, autograd, NumPy).
    """

    def __init__(self, limit: int = 4) -> None:
        self.limit = limit
        self.held: dict[tuple[tuple[int, ...], torch.dtype], list[Tensor]] = {}

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised CPU tensor that nobody else can see."""
        held = self.held.setdefault((shape, dtype), [])
        for buffer in held:
            if users(buffer) == 1:
                return buffer.view(shape)
        buffer = torch.empty(shape, dtype=dtype)
        if len(held) < self.limit:
            held.append(buffer)
        return buffer.view(shape)


def users(x: Tensor) -> int:
    """How many tensors share the storage of x, itself included."""
    storage = x.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata) - 1  # less the handle made to ask
