"""The straight path of flow matching."""

import torch
from torch import Tensor

from triptych.schedule.base import Schedule, in_float64


class Rectified(Schedule):
    """alpha = 1 - t, sigma = t. Liu, Gong, Liu 2022. arXiv:2209.03003; Lipman et al. 2022. arXiv:2210.02747.

    Their time runs from noise to data; ours from data to noise. f = -1 / (1 - t) is infinite at t = 1, hence t_max.
    """

    t_min = 1e-3
    t_max = 1 - 1e-3

    @in_float64
    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    @in_float64
    def sigma(self, t: Tensor) -> Tensor:
        return t

    @in_float64
    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log1p(-t) - t.log())

    @in_float64
    def drift(self, t: Tensor) -> Tensor:
        return -1 / (1 - t)

    @in_float64
    def diffusion_sq(self, t: Tensor) -> Tensor:
        return 2 * t / (1 - t)

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), 1 / t  # finite at t = 1, too

    @in_float64
    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)
