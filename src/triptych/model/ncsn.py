"""NCSN's network."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from triptych.model.condition import Condition, label_of
from triptych.model.levels import refine_widths
from triptych.model.norm import ConditionalInstanceNormPlus
from triptych.model.refinenet import RefineNet


class NCSN(nn.Module):
    """Generative Modeling by Estimating Gradients of the Data Distribution. Song, Ermon 2019. arXiv:1907.05600, A.

    A RefineNet whose every norm knows the noise level: c_noise is its index, 0 for sigma_max.
    [B, in_channels, R, R], [B] -> [B, out_channels, R, R].

    Args:
        levels: L, the number of noise levels.
        channels, multipliers: the width of level i is channels * multipliers[i]; the last two levels do not halve.
        checkpointing: recompute the blocks in the backward pass instead of storing their activations.
    """

    num_classes = 0

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resolution: int,
        levels: int = 10,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.levels = in_channels, out_channels, levels
        widths = refine_widths(resolution, channels, multipliers)
        norm = partial(ConditionalInstanceNormPlus, levels=levels)
        pool = nn.AvgPool2d(5, stride=1, padding=2)
        self.network = RefineNet(in_channels, out_channels, widths, norm, norm, pool, checkpointing)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        label_of(cond, self.num_classes)
        return self.network(x, c_noise.round().long()).to(x.dtype)
