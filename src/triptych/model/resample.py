"""Halving and doubling of images with a separable filter, as StyleGAN2 does. Karras et al. 2020. arXiv:1912.04958."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.model.init import conv

BOX = (1, 1)  # averages 2x2 pixels on the way down, repeats pixels on the way up


class Resample(nn.Module):
    """Halves ("down") or doubles ("up") an image. [B, C, H, W] -> [B, C, H/2, W/2] or [B, C, 2H, 2W].

    Args:
        taps: the filter along one axis, of even length. Outside the image is zero.
    """

    kernel: Tensor

    def __init__(self, scale: str, taps: Sequence[float] = BOX) -> None:
        super().__init__()
        self.scale, self.pad, self.box = scale, len(taps) // 2 - 1, tuple(taps) == BOX
        self.register_buffer("kernel", _kernel(taps, scale), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.box:
            return F.avg_pool2d(x, 2) if self.scale == "down" else F.interpolate(x, scale_factor=2.0)
        convolve = F.conv2d if self.scale == "down" else F.conv_transpose2d
        kernel = self.kernel.expand(x.shape[1], 1, -1, -1)
        return convolve(x, kernel, stride=2, padding=self.pad, groups=x.shape[1])


class ConvResample(nn.Module):
    """The same with a 3x3 convolution at the larger size, padded once for both. [B, C, H, W] -> [B, C', H/2, W/2] …"""

    kernel: Tensor

    def __init__(self, c_in: int, c_out: int, scale: str, taps: Sequence[float] = BOX) -> None:
        super().__init__()
        self.scale, self.reach = scale, len(taps) // 2
        self.conv = conv(c_in, c_out, stride=2 if scale == "down" else 1)
        if scale == "down" or self.reach > 1:
            self.conv.padding = (0, 0)  # it sees the filter's border instead of its own
        self.register_buffer("kernel", _kernel(taps, scale), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, groups = self.kernel.expand(x.shape[1], 1, -1, -1), x.shape[1]
        if self.scale == "down":
            return self.conv(F.conv2d(x, kernel, padding=self.reach, groups=groups))
        return self.conv(F.conv_transpose2d(x, kernel, stride=2, padding=max(self.reach - 2, 0), groups=groups))


def _kernel(taps: Sequence[float], scale: str) -> Tensor:
    """The filter's outer product, which keeps a constant image (up: of sum 4, for each 4th pixel is not 0)."""
    f = torch.tensor(taps, dtype=torch.float32)
    kernel = torch.outer(f, f) / f.sum().square()
    return (kernel * 4 if scale == "up" else kernel)[None, None]
