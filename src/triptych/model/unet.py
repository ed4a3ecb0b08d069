"""The U-Net of DDPM (arXiv:2006.11239), iDDPM (arXiv:2102.09672) and ADM (arXiv:2105.05233)."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.model.condition import Condition, LabelEmbedding, label_of
from triptych.model.embedding import NoiseRange, SinusoidalEmbedding, full_precision, rescale_noise
from triptych.model.init import conv, linear
from triptych.model.levels import head_count, level_resolutions
from triptych.model.norm import group_norm
from triptych.model.residual import ResidualBlock, TimeProjection, run


class UNet(nn.Module):
    """Denoising Diffusion Probabilistic Models. Ho, Jain, Abbeel 2020. arXiv:2006.11239, appendix B.

    With `scale_shift`, `head_channels` and `resample="resblock"` it is the ADM of Diffusion Models Beat GANs
    on Image Synthesis. Dhariwal, Nichol 2021. arXiv:2105.05233. Strided convolutions pad both sides by one, as
    in iDDPM and ADM; DDPM's TensorFlow code pads right and bottom only.
    [B, in_channels, R, R], [B], cond -> [B, out_channels, R, R].

    Args:
        channels, multipliers: level i, of resolution / 2^i, has channels * multipliers[i] channels.
        blocks: residual blocks a level on the way down; one more on the way up.
        attention: resolutions whose blocks are followed by self-attention. The middle always has one.
        heads, head_channels: the number of heads, or, when it is given, the channels of one.
        scale_shift: the time acts as norm(h) * (1 + scale) + shift (AdaGN) instead of as h + time.
        resample: "conv" halves and doubles by a convolution, "resblock" inside a residual block.
        num_classes: 0 is an unconditional network, which refuses labels.
        checkpointing: recompute the blocks in the backward pass instead of storing their activations.
    """

    noise_range: NoiseRange = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resolution: int,
        channels: int = 128,
        multipliers: Sequence[float] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        heads: int = 1,
        head_channels: int | None = None,
        dropout: float = 0.1,
        scale_shift: bool = False,
        resample: str = "conv",
        num_classes: int = 0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if resample not in ("conv", "resblock"):
            raise ValueError(f'resample="{resample}" is unknown; choose "conv" or "resblock".')
        resolutions = level_resolutions(resolution, len(multipliers), attention)
        widths = [int(channels * m) for m in multipliers]
        self.in_channels, self.out_channels, self.num_classes = in_channels, out_channels, num_classes
        self.checkpointing = checkpointing

        def block(c_in: int, c_out: int, attend: bool = False, scale: str | None = None) -> ResidualBlock:
            n = head_count(c_out, heads, head_channels) if attend else 0
            return ResidualBlock(c_in, c_out, heads=n, dropout=dropout, scale_shift=scale_shift, scale=scale)

        def down(c: int) -> nn.Module:
            return conv(c, c, stride=2) if resample == "conv" else block(c, c, scale="down")

        def up(c: int) -> nn.Module:
            return Upsample(c) if resample == "conv" else block(c, c, scale="up")

        self.input = conv(in_channels, widths[0])
        c, skips = widths[0], [widths[0]]
        self.down = nn.ModuleList()
        for width, size in zip(widths, resolutions, strict=True):
            if size < resolution:
                self.down.append(down(c))
                skips.append(c)
            for _ in range(blocks):
                self.down.append(block(c, width, size in attention))
                c = width
                skips.append(c)
        self.middle = nn.ModuleList([block(c, c, attend=True), block(c, c)])
        self.up = nn.ModuleList()
        for width, size in reversed(list(zip(widths, resolutions, strict=True))):
            for _ in range(blocks + 1):
                self.up.append(block(c + skips.pop(), width, size in attention))
                c = width
            if size < resolution:
                self.up.append(up(c))
        self.norm = group_norm(c)
        self.output = conv(c, out_channels, zero=True)

        time_channels = 4 * channels
        self.embedding = SinusoidalEmbedding(channels)
        self.time = nn.Sequential(linear(channels, time_channels), nn.SiLU(), linear(time_channels, time_channels))
        self.label = LabelEmbedding(num_classes, time_channels) if num_classes else None
        self.project = TimeProjection(time_channels, [*self.down, *self.middle, *self.up])

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        h = self.input(x)
        times = self._times(c_noise, label_of(cond, self.num_classes), h.dtype)
        recompute = self.checkpointing and self.training
        skips = [h]
        for layer in self.down:
            h = run(layer, h, times, recompute)
            skips.append(h)
        for layer in self.middle:
            h = run(layer, h, times, recompute)
        for layer in self.up:
            if isinstance(layer, ResidualBlock) and layer.scale is None:
                h = torch.cat([h, skips.pop()], dim=1)
            h = run(layer, h, times, recompute)
        return self.output(F.silu(self.norm(h))).to(x.dtype)

    def _times(self, c_noise: Tensor, label: Tensor | None, dtype: torch.dtype) -> Iterator[Tensor]:
        with full_precision(c_noise):
            embedding = self.time(self.embedding(rescale_noise(c_noise, self.noise_range)))
            if self.label is not None and label is not None:
                embedding = embedding + self.label(label)
            return self.project(F.silu(embedding), dtype)


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution. [B, C, H, W] -> [B, C, 2H, 2W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0))
