"""The schedule of EDM: sigma is the time, up to scale."""

import torch
from torch import Tensor

from triptych.schedule.base import Schedule, in_float64, ordered


class EDM(Schedule):
    """alpha = 1, sigma = sigma_max t. Karras, Aittala, Aila, Laine 2022. arXiv:2206.00364, Table 1.

    sigma(0) = 0; sigma_min only bounds the grids that sampling uses. Training may draw sigma > sigma_max, i.e. t > 1.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        super().__init__()
        self.sigma_min, self.sigma_max = ordered("sigma_min", sigma_min, "sigma_max", sigma_max)
        self.prior_std = self.sigma_max
        self.t_min = self.sigma_min / self.sigma_max

    @in_float64
    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    @in_float64
    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t

    @in_float64
    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * (self.sigma_max * t).log()

    @in_float64
    def drift(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    @in_float64
    def diffusion_sq(self, t: Tensor) -> Tensor:
        return 2 * self.sigma_max**2 * t

    @in_float64
    def time(self, log_snr: Tensor) -> Tensor:
        t = (-log_snr / 2).exp() / self.sigma_max
        return torch.where(t.isinf(), torch.ones_like(t), t)
