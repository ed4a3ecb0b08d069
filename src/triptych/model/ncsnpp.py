"""NCSN++ and DDPM++, the two networks of the score SDE paper, and the variants that EDM trains."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.model.condition import Condition, LabelEmbedding, augment_of, label_of
from triptych.model.embedding import FourierEmbedding, SinusoidalEmbedding, full_precision
from triptych.model.init import conv, linear
from triptych.model.levels import head_count, level_resolutions
from triptych.model.norm import group_norm
from triptych.model.resample import BOX, ConvResample, Resample
from triptych.model.residual import ResidualBlock, TimeProjection, run

ENCODERS = ("standard", "skip", "residual")
DECODERS = ("standard", "skip", "residual")


class NCSNpp(nn.Module):
    """Score-Based Generative Modeling through Stochastic Differential Equations. Song et al. 2021. arXiv:2011.13456, H.

    The defaults are DDPM++; NCSN++ has `embedding="fourier"`, `encoder="residual"`, `taps=(1, 3, 3, 1)`. Dividing the
    output by sigma is the formulation's part. [B, in_channels, R, R], [B], cond -> [B, out_channels, R, R].

    c_noise is taken as it is: 999 t by the sinusoids of DDPM++, log sigma by the random Fourier features of NCSN++,
    log(sigma) / 4 by both in EDM (Karras et al. 2022. arXiv:2206.00364), which also tells classes and augmentations.

    Args:
        channels, multipliers: level i, of resolution / 2^i, has channels * multipliers[i] channels.
        blocks: residual blocks a level on the way down; one more on the way up.
        attention: resolutions with self-attention: after each block on the way down, the last one on the way up.
        embedding: of c_noise, "positional" or "fourier".
        encoder: "standard", or the halved image enters each level: "skip" by a 1x1 convolution, "residual" by a strided
            one whose sum with the level's features goes on to the next ("progressive input" in the paper's code).
        decoder: "standard", or each level adds to a growing output: an image in "skip", features in "residual".
        taps: the filter that halves and doubles, (1, 1) or (1, 3, 3, 1).
        num_classes: 0 is an unconditional network, which refuses labels.
        augment_channels: of cond["augment"], 9 in EDM; 0 for none.
        checkpointing: recompute the blocks in the backward pass instead of storing their activations.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resolution: int,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        heads: int = 1,
        dropout: float = 0.1,
        embedding: str = "positional",
        fourier_scale: float = 16.0,
        encoder: str = "standard",
        decoder: str = "standard",
        taps: Sequence[float] = BOX,
        num_classes: int = 0,
        augment_channels: int = 0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _choose("embedding", embedding, ("positional", "fourier"))
        _choose("encoder", encoder, ENCODERS)
        _choose("decoder", decoder, DECODERS)
        if len(taps) % 2:
            raise ValueError(f"A filter of {len(taps)} taps is odd; choose taps=[1,1] or taps=[1,3,3,1].")
        resolutions = level_resolutions(resolution, len(multipliers), attention)
        widths = [channels * m for m in multipliers]
        self.in_channels, self.out_channels, self.num_classes = in_channels, out_channels, num_classes
        self.encoder, self.decoder, self.checkpointing = encoder, decoder, checkpointing

        def block(c_in: int, c_out: int, attend: bool = False, scale: str | None = None) -> ResidualBlock:
            return ResidualBlock(
                c_in,
                c_out,
                heads=head_count(c_out, heads, None) if attend else 0,
                dropout=dropout,
                scale=scale,
                taps=taps,
                project=scale is not None,
                rescale=True,
                qkv_gain=math.sqrt(0.1),  # NIN's init_scale of 0.1 in the paper's code
            )

        self.input = conv(in_channels, channels)
        c, c_pyramid, skips = channels, in_channels, [channels]
        self.down, self.shrink, self.enter = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i, (width, size) in enumerate(zip(widths, resolutions, strict=True)):
            level = nn.ModuleList()
            if i > 0:
                level.append(block(c, c, scale="down"))
                skips.append(c)
                if encoder == "skip":
                    self.shrink.append(Resample("down", taps))
                    self.enter.append(conv(in_channels, c, 1))
                elif encoder == "residual":
                    self.shrink.append(ConvResample(c_pyramid, c, "down", taps))
                    c_pyramid = c
            for _ in range(blocks):
                level.append(block(c, width, size in attention))
                c = width
                skips.append(c)
            self.down.append(level)

        self.middle = nn.ModuleList([block(c, c, attend=True), block(c, c)])

        self.up, self.grow, self.leave = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i, (width, size) in reversed(list(enumerate(zip(widths, resolutions, strict=True)))):
            lowest = i == len(widths) - 1
            level = nn.ModuleList() if lowest else nn.ModuleList([block(c, c, scale="up")])
            for j in range(blocks + 1):
                level.append(block(c + skips.pop(), width, size in attention and j == blocks))
                c = width
            self.up.append(level)
            if decoder == "skip":
                self.leave.append(Output(c, out_channels, zero=True))
                if not lowest:
                    self.grow.append(Resample("up", taps))
            elif decoder == "residual":
                if lowest:
                    self.leave.append(Output(c, c))
                else:
                    self.grow.append(ConvResample(c_pyramid, c, "up", taps))
                c_pyramid = c
        self.output = Output(c, out_channels, zero=True) if decoder != "skip" else None

        noise_channels, time_channels = channels * (2 if embedding == "fourier" else 1), 4 * channels
        self.embedding = (
            FourierEmbedding(noise_channels, fourier_scale)
            if embedding == "fourier"
            else SinusoidalEmbedding(noise_channels)
        )
        self.label = LabelEmbedding(num_classes, noise_channels, math.sqrt(num_classes)) if num_classes else None
        self.augment = linear(augment_channels, noise_channels, bias=False) if augment_channels else None
        self.time = nn.Sequential(
            linear(noise_channels, time_channels), nn.SiLU(), linear(time_channels, time_channels), nn.SiLU()
        )
        layers = [layer for level in (*self.down, self.middle, *self.up) for layer in level]  # pyright: ignore[reportGeneralTypeIssues]
        self.project = TimeProjection(time_channels, layers)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        h = self.input(x)
        times = self._times(c_noise, cond, h.dtype)
        recompute = self.checkpointing and self.training

        skips, pyramid = [h], x
        for i, level in enumerate(self.down):
            for layer in level:  # pyright: ignore[reportGeneralTypeIssues]
                h = run(layer, h, times, recompute)
                if layer.scale == "down" and self.encoder == "skip":
                    pyramid = self.shrink[i - 1](pyramid)
                    h = h + self.enter[i - 1](pyramid)
                elif layer.scale == "down" and self.encoder == "residual":
                    h = pyramid = (h + self.shrink[i - 1](pyramid)) * math.sqrt(0.5)
                skips.append(h)
        for layer in self.middle:
            h = run(layer, h, times, recompute)
        for i, level in enumerate(self.up):
            for layer in level:  # pyright: ignore[reportGeneralTypeIssues]
                if layer.scale is None:
                    h = torch.cat([h, skips.pop()], dim=1)
                h = run(layer, h, times, recompute)
            if self.decoder == "skip":
                pyramid = self.leave[i](h) if i == 0 else self.grow[i - 1](pyramid) + self.leave[i](h)
            elif self.decoder == "residual":
                if i == 0:
                    pyramid = self.leave[0](h)
                else:
                    h = pyramid = (h + self.grow[i - 1](pyramid)) * math.sqrt(0.5)
        return (pyramid if self.output is None else self.output(h)).to(x.dtype)

    def _times(self, c_noise: Tensor, cond: Condition, dtype: torch.dtype) -> Iterator[Tensor]:
        label, augment = label_of(cond, self.num_classes), augment_of(cond)
        with full_precision(c_noise):
            embedding = self.embedding(c_noise)
            if self.label is not None and label is not None:
                embedding = embedding + self.label(label)
            if augment is not None and self.augment is not None:
                embedding = embedding + self.augment(augment)
            return self.project(self.time(embedding), dtype)


class Output(nn.Module):
    """Norm, SiLU, convolution. [B, C, H, W] -> [B, C', H, W]."""

    def __init__(self, c_in: int, c_out: int, zero: bool = False) -> None:
        super().__init__()
        self.norm, self.conv = group_norm(c_in), conv(c_in, c_out, zero=zero)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.silu(self.norm(x)))


def _choose(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f'{name}="{value}" is unknown; choose {", ".join(choices[:-1])} or {choices[-1]}.')
