"""The diffusion transformer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from triptych.model.condition import Condition, LabelEmbedding, label_of
from triptych.model.embedding import NoiseRange, SinusoidalEmbedding, full_precision, rescale_noise
from triptych.model.init import linear


class DiT(nn.Module):
    """Scalable Diffusion Models with Transformers. Peebles, Xie 2023. arXiv:2212.09748, with adaLN-Zero blocks.

    [B, in_channels, R, R], [B], cond -> [B, out_channels, R, R].

    Args:
        patch: p, the side of the square of pixels that makes a token.
        hidden, depth, heads: 384, 12, 6 is S; 768, 12, 12 is B; 1024, 24, 16 is L; 1152, 28, 16 is XL.
        num_classes: 0 is an unconditional network, which refuses labels.
        checkpointing: recompute the blocks in the backward pass instead of storing their activations.
    """

    noise_range: NoiseRange = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resolution: int,
        patch: int = 2,
        hidden: int = 384,
        depth: int = 12,
        heads: int = 6,
        num_classes: int = 0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if resolution % patch:
            raise ValueError(
                f"Patches of side {patch} do not divide a side of {resolution}; choose another model.patch."
            )
        if hidden % heads:
            raise ValueError(f"{heads} heads do not divide {hidden} channels; choose model.heads among its divisors.")
        if hidden % 4:
            raise ValueError(f"hidden={hidden} is not a multiple of 4, which sines and cosines of two axes need.")
        self.in_channels, self.out_channels, self.num_classes = in_channels, out_channels, num_classes
        self.patch, self.checkpointing = patch, checkpointing
        self.tokens = nn.Conv2d(in_channels, hidden, patch, stride=patch)
        nn.init.xavier_uniform_(self.tokens.weight.flatten(1))
        nn.init.zeros_(self.tokens.bias)  # pyright: ignore[reportArgumentType]
        self.register_buffer("positions", _positions(resolution // patch, hidden), persistent=False)

        self.embedding = SinusoidalEmbedding(256, endpoint=False)
        self.time = nn.Sequential(linear(256, hidden), nn.SiLU(), linear(hidden, hidden))
        self.label = LabelEmbedding(num_classes, hidden, learned_null=True) if num_classes else None
        small = [self.time[0].weight, self.time[2].weight, *(self.label.parameters() if self.label else [])]
        for weight in small:
            nn.init.normal_(weight, std=0.02)

        self.blocks = nn.ModuleList(Block(hidden, heads) for _ in range(depth))
        self.modulation = linear(hidden, (6 * depth + 2) * hidden, zero=True)  # every block's, in one product
        self.output = linear(hidden, patch * patch * out_channels, zero=True)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        B, _, H, W = x.shape
        h = self.tokens(x).flatten(2).transpose(1, 2) + self.positions
        embedding = self._embed(c_noise, label_of(cond, self.num_classes))
        modulation = self.modulation(embedding).view(B, -1, 1, h.shape[2]).unbind(1)
        for i, block in enumerate(self.blocks):
            m = modulation[6 * i : 6 * i + 6]
            if self.checkpointing and self.training:
                h = checkpoint(block, h, *m, use_reentrant=False)
            else:
                h = block(h, *m)
        h = self.output(_modulate(h, *modulation[-2:]))
        p = self.patch
        h = h.view(B, H // p, W // p, p, p, -1).permute(0, 5, 1, 3, 2, 4)
        return h.reshape(B, -1, H, W).to(x.dtype)

    def _embed(self, c_noise: Tensor, label: Tensor | None) -> Tensor:
        """SiLU of the conditioning vector, in float32. [B], [B] -> [B, hidden]."""
        with full_precision(c_noise):
            embedding = self.time(self.embedding(rescale_noise(c_noise, self.noise_range)))
            if self.label is not None:
                embedding = embedding + self.label(label)
            return F.silu(embedding)


class Block(nn.Module):
    """Attention and an MLP, each normed and modulated before, gated after. [B, N, D], 6 x [B, 1, D] -> [B, N, D]."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(hidden, 3 * hidden)
        self.project = linear(hidden, hidden)
        self.mlp = nn.Sequential(linear(hidden, 4 * hidden), nn.GELU(approximate="tanh"), linear(4 * hidden, hidden))

    def forward(self, x: Tensor, *modulation: Tensor) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        B, N, D = x.shape
        qkv = self.qkv(_modulate(x, shift, scale)).view(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).reshape(B, N, D)
        x = torch.addcmul(x, gate, self.project(h))
        return torch.addcmul(x, mlp_gate, self.mlp(_modulate(x, mlp_shift, mlp_scale)))


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) (1 + scale) + shift. [B, N, D], [B, 1, D], [B, 1, D] -> [B, N, D]."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def _positions(side: int, channels: int) -> Tensor:
    """Sines and cosines of each token's column in the first half of its channels, of its row in the second. [N, D]."""
    quarter = channels // 4
    frequencies = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = axis[None, :, :].expand(side, -1, -1)
    rows = axis[:, None, :].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=2).flatten(0, 1).float()
