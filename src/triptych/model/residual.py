"""The residual block of DDPM, ADM, DDPM++ and NCSN++, and the product that tells all of them the time."""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from triptych.model.attention import PixelAttention
from triptych.model.init import conv, linear
from triptych.model.norm import group_norm
from triptych.model.resample import BOX, Resample


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; the time between. [B, C, H, W], [B, time_size, 1, 1] -> [B, C', H', W'].

    Args:
        heads: of the attention that follows the block; 0 for none.
        scale_shift: the time acts as norm(h) * (1 + scale) + shift instead of as h + time.
        scale: "down" or "up" resamples both branches before the first convolution, with the filter `taps`.
        project: pass the other branch through a 1x1 convolution even where it has the right number of channels.
        rescale: divide each sum of two branches by sqrt(2) (Song et al. 2021. arXiv:2011.13456, appendix H).
        qkv_gain: scale of the attention's initial weights.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        heads: int = 0,
        dropout: float = 0.0,
        scale_shift: bool = False,
        scale: str | None = None,
        taps: Sequence[float] = BOX,
        project: bool = False,
        rescale: bool = False,
        qkv_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.dropout, self.scale_shift, self.scale, self.rescale = dropout, scale_shift, scale, rescale
        self.time_size = 2 * c_out if scale_shift else c_out
        self.norm1 = group_norm(c_in)
        self.resample = Resample(scale, taps) if scale else None
        self.conv1 = conv(c_in, c_out)
        self.norm2 = group_norm(c_out)
        self.conv2 = conv(c_out, c_out, zero=True)
        self.skip = conv(c_in, c_out, 1) if c_in != c_out or project else None
        self.attention = PixelAttention(c_out, heads, rescale=rescale, gain=qkv_gain) if heads else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + time)
        h = F.silu(h)
        if self.dropout and self.training:
            h = torch.native_dropout(h, self.dropout, True)[0]  # F.dropout is four operators on a CPU
        h = self.conv2(h) + (x if self.skip is None else self.skip(x))
        if self.rescale:
            h = h * math.sqrt(0.5)
        return h if self.attention is None else self.attention(h)


class TimeProjection(nn.Module):
    """What every residual block is told of the time, in one product. [B, channels] -> [B, time_size, 1, 1] for each."""

    def __init__(self, channels: int, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.sizes = [layer.time_size for layer in layers if isinstance(layer, ResidualBlock)]
        self.linear = linear(channels, sum(self.sizes))
        for part in self.linear.weight.split(self.sizes):  # each has the fan of a product of its own
            nn.init.xavier_uniform_(part)

    def forward(self, embedding: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
        return iter(self.linear(embedding).to(dtype)[:, :, None, None].split(self.sizes, dim=1))


def run(layer: nn.Module, h: Tensor, times: Iterator[Tensor], recompute: bool) -> Tensor:
    """One layer of a U-Net; a residual block takes the next time, and may be recomputed in the backward pass."""
    if not isinstance(layer, ResidualBlock):
        return layer(h)
    if recompute:
        return checkpoint(layer, h, next(times), use_reentrant=False)
    return layer(h, next(times))
