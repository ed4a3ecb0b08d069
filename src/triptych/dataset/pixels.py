"""Grey levels 0, ..., 255 to floating point: for training, and for likelihoods."""

import torch
from torch import Tensor


def normalise(x: Tensor, out: Tensor | None = None) -> Tensor:
    """uint8 0, ..., 255 -> float32 in [-1, 1] by x / 127.5 - 1, into `out` if given. Floating point passes through."""
    if x.is_floating_point():
        return x
    return (x.to(torch.float32) if out is None else out.copy_(x)).div_(127.5).sub_(1)


def dequantise(x: Tensor, generator: torch.Generator | None = None, levels: int = 256) -> Tensor:
    """Uniform dequantisation, for likelihoods. Theis, van den Oord, Bethge 2016. arXiv:1511.01844.

        x_0 = 2 (k + u) / levels - 1,    u ~ U[0, 1)

    k is the grey level 0, ..., levels - 1, so that x_0 fills [-1, 1) evenly; not k / (levels - 1) + u / levels, which
    does not (T-K7).

    Args:
        x: uint8 levels k, or float images in [-1, 1] that stand for k at 2 k / (levels - 1) - 1. [B, ...] -> float32.
        generator: of u, on x's device.
    """
    k = ((x + 1) * ((levels - 1) / 2)).round() if x.is_floating_point() else x
    u = torch.rand(x.shape, generator=generator, device=x.device)
    return (k.to(torch.float32) + u).mul_(2 / levels).sub_(1)


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
