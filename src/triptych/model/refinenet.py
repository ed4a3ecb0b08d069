"""The RefineNet (Lin et al. 2017. arXiv:1611.06612) with dilated convolutions that NCSN and NCSNv2 share."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

MakeNorm = Callable[[int], nn.Module]  # channels -> a module (x [B, C, H, W], index [B] or None) -> [B, C, H, W]


class RefineNet(nn.Module):
    """Residual levels of growing width, then from the last to the first, their fusion by refine blocks.

    All levels but the first and the last two halve the image; the last two dilate their convolutions by 2 and 4.
    [B, in_channels, H, W], index of the noise level [B] or None -> [B, out_channels, H, W].

    Args:
        widths: the channels of each level.
        norm: of the residual blocks.
        refine_norm: of the refine blocks.
        pool: the 5x5 pooling of the refine blocks.
        checkpointing: recompute the blocks in the backward pass instead of storing their activations.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        norm: MakeNorm,
        refine_norm: MakeNorm,
        pool: nn.Module,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        last = len(widths) - 1
        self.input = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.residual = nn.ModuleList()  # two a level
        for i, width in enumerate(widths):
            dilation = {last - 1: 2, last: 4}.get(i, 1)
            before = widths[max(i - 1, 0)]
            self.residual.append(ResidualBlock(before, width, norm, dilation, down=0 < i < last - 1, project=i > 0))
            self.residual.append(ResidualBlock(width, width, norm, dilation))
        self.refine, c = nn.ModuleList(), widths[-1]
        for i in range(last, -1, -1):
            sources = [c] if i == last else [widths[i], c]
            c = c if i == last else widths[max(i - 1, 0)]
            self.refine.append(RefineBlock(sources, c, 1 if i > 0 else 3, refine_norm, pool))
        self.norm = norm(widths[0])
        self.output = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        h = self.input(x)
        features = []
        for i, block in enumerate(self.residual):
            h = self._run(block, h, index)
            if i % 2:
                features.append(h)
        for i, refine in enumerate(self.refine):
            h = self._run(refine, [features.pop(), h] if i else [features.pop()], index)
        return self.output(F.elu(self.norm(h, index)))

    def _run(self, block: nn.Module, h: Tensor | list[Tensor], index: Tensor | None) -> Tensor:
        if self.checkpointing and self.training:
            return checkpoint(block, h, index, use_reentrant=False)
        return block(h, index)


class ResidualBlock(nn.Module):
    """Norm, ELU, convolution, twice, beside a shortcut. `down` halves the image by averaging after the convolutions."""

    def __init__(
        self, c_in: int, c_out: int, norm: MakeNorm, dilation: int, down: bool = False, project: bool = False
    ) -> None:
        super().__init__()
        self.down = down
        c_mid = c_in if project else c_out
        self.norm1 = norm(c_in)
        self.conv1 = _conv(c_in, c_mid, dilation)
        self.norm2 = norm(c_mid)
        self.conv2 = _conv(c_mid, c_out, dilation)
        self.shortcut = None
        if project:
            self.shortcut = nn.Conv2d(c_in, c_out, 1) if down else _conv(c_in, c_out, dilation)

    def forward(self, x: Tensor, index: Tensor | None) -> Tensor:
        h = self.conv1(F.elu(self.norm1(x, index)))
        h = self.conv2(F.elu(self.norm2(h, index)))
        x = x if self.shortcut is None else self.shortcut(x)
        return F.avg_pool2d(x + h, 2) if self.down else x + h


class RefineBlock(nn.Module):
    """Adapts each source, adds them at the first one's size, pools the sum in a chain and adapts the result."""

    def __init__(self, sources: Sequence[int], width: int, units: int, norm: MakeNorm, pool: nn.Module) -> None:
        super().__init__()
        self.adapt = nn.ModuleList(ConvUnits(c, 2, norm) for c in sources)
        fused = sources if len(sources) > 1 else []
        self.fuse_norms = nn.ModuleList(norm(c) for c in fused)
        self.fuse = nn.ModuleList(_conv(c, width) for c in fused)
        self.pool = pool
        self.chain_norms = nn.ModuleList(norm(width) for _ in range(2))
        self.chain = nn.ModuleList(_conv(width, width, bias=False) for _ in range(2))
        self.units = ConvUnits(width, units, norm)

    def forward(self, sources: list[Tensor], index: Tensor | None) -> Tensor:
        adapted = [units(x, index) for units, x in zip(self.adapt, sources, strict=True)]
        h = adapted[0]
        if self.fuse:
            fine, coarse = (
                conv(norm(x, index)) for conv, norm, x in zip(self.fuse, self.fuse_norms, adapted, strict=True)
            )
            h = fine + _resize(coarse, fine.shape[2:])
        h = path = F.elu(h)
        for conv, norm in zip(self.chain, self.chain_norms, strict=True):
            path = conv(self.pool(norm(path, index)))
            h = h + path
        return self.units(h, index)


class ConvUnits(nn.Module):
    """Several units, one after the other. [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int, units: int, norm: MakeNorm) -> None:
        super().__init__()
        self.units = nn.ModuleList(ConvUnit(channels, norm) for _ in range(units))

    def forward(self, x: Tensor, index: Tensor | None) -> Tensor:
        for unit in self.units:
            x = unit(x, index)
        return x


class ConvUnit(nn.Module):
    """Norm, ELU, convolution, twice, added to the input. [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int, norm: MakeNorm) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(channels), _conv(channels, channels, bias=False)
        self.norm2, self.conv2 = norm(channels), _conv(channels, channels, bias=False)

    def forward(self, x: Tensor, index: Tensor | None) -> Tensor:
        h = self.conv1(F.elu(self.norm1(x, index)))
        return x + self.conv2(F.elu(self.norm2(h, index)))


def _conv(c_in: int, c_out: int, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    """A 3x3 convolution with PyTorch's initial weights, as in both papers' code."""
    return nn.Conv2d(c_in, c_out, 3, padding=dilation, dilation=dilation, bias=bias)


def _resize(x: Tensor, size: torch.Size) -> Tensor:
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=True)
