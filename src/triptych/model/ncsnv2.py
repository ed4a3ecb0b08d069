"""NCSNv2's network."""

from collections.abc import Sequence

from torch import Tensor, nn

from triptych.model.condition import Condition, label_of
from triptych.model.levels import refine_widths
from triptych.model.norm import InstanceNormPlus, NoNorm
from triptych.model.refinenet import RefineNet


class NCSNv2(nn.Module):
    """Improved Techniques for Training Score-Based Generative Models. Song, Ermon 2020. arXiv:2006.09011.

    A RefineNet that is told no noise level: it ignores c_noise, and the formulation divides its output by sigma
    (Technique 3). [B, in_channels, R, R], [B] -> [B, out_channels, R, R].

    Args:
        channels, multipliers: the width of level i is channels * multipliers[i]; the last two levels do not halve.
            The paper's are [1, 2, 2, 2] at 32 and 64 pixels, [1, 2, 2, 4, 4] at 128 and [1, 2, 2, 2, 4, 4] at 256.
        checkpointing: recompute the blocks in the backward pass instead of storing their activations.
    """

    num_classes = 0

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resolution: int,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        widths = refine_widths(resolution, channels, multipliers)
        pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.network = RefineNet(in_channels, out_channels, widths, InstanceNormPlus, NoNorm, pool, checkpointing)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        label_of(cond, self.num_classes)
        return self.network(x).to(x.dtype)
