"""Self-attention over the pixels of a feature map."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from triptych.model.init import conv
from triptych.model.norm import group_norm


class PixelAttention(nn.Module):
    """x + W softmax(q k^T / sqrt(d)) v between pixels; q, k, v in one product. [B, C, H, W] -> [B, C, H, W].

    W starts at zero, q, k and v at `gain` times DDPM's initial weights. `rescale` divides the sum by sqrt(2).
    """

    def __init__(self, channels: int, heads: int = 1, rescale: bool = False, gain: float = 1.0) -> None:
        super().__init__()
        self.heads, self.rescale = heads, rescale
        self.norm = group_norm(channels)
        self.qkv = conv(channels, 3 * channels, 1)
        for part in self.qkv.weight.chunk(3):  # each has the fan of a product of its own
            nn.init.xavier_uniform_(part, gain)
        self.output = conv(channels, channels, 1, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).view(B, 3, self.heads, C // self.heads, H * W).transpose(3, 4)
        if qkv.stride(-1) != 1:  # not channels_last: the fused kernels want a token's channels side by side
            qkv = qkv.contiguous()
        h = F.scaled_dot_product_attention(*qkv.unbind(1))  # its softmax accumulates in float32
        h = x + self.output(h.transpose(2, 3).reshape(B, C, H, W))
        return h * math.sqrt(0.5) if self.rescale else h
