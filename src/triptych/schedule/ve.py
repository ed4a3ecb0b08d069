"""Variance-exploding schedules: alpha = 1. `VE` is continuous, `Geometric` has NCSN's L levels on the same curve."""

import math

import torch
from torch import Tensor

from triptych.schedule.base import Schedule, in_float64, ordered


class _Exploding(Schedule):
    """sigma(t) = sigma_min (sigma_max / sigma_min)^t, alpha = 1. Note sigma(0) = sigma_min > 0."""

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        super().__init__()
        self.sigma_min, self.sigma_max = ordered("sigma_min", sigma_min, "sigma_max", sigma_max)
        self.log_ratio = math.log(self.sigma_max) - math.log(self.sigma_min)
        self.prior_std = self.sigma_max

    @in_float64
    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    @in_float64
    def sigma(self, t: Tensor) -> Tensor:
        return (math.log(self.sigma_min) + t * self.log_ratio).exp()

    @in_float64
    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * (math.log(self.sigma_min) + t * self.log_ratio)

    @in_float64
    def drift(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    @in_float64
    def diffusion_sq(self, t: Tensor) -> Tensor:
        return 2 * self.log_ratio * self.sigma(t).square()

    @in_float64
    def time(self, log_snr: Tensor) -> Tensor:
        t = (-log_snr / 2 - math.log(self.sigma_min)) / self.log_ratio
        return torch.where(t.isinf(), (t > 0).to(t.dtype), t)


class VE(_Exploding):
    """The variance-exploding SDE. Song et al. 2021. arXiv:2011.13456, Eqs. 9 and 30.

    The sigmas are those of images in [-1, 1]: twice the paper's 0.01 and 50 (CIFAR-10), which speak of [0, 1].
    """

    def __init__(self, sigma_min: float = 0.02, sigma_max: float = 100.0) -> None:
        super().__init__(sigma_min, sigma_max)


class Geometric(_Exploding):
    """NCSN's geometric sequence of L noise levels. Song & Ermon 2019. arXiv:1907.05600; 2020. arXiv:2006.09011.

    Level t_i = i / (L - 1) has sigma from sigma_min (i = 0) to sigma_max (i = L - 1); the paper counts them the
    other way round (T-L5). The defaults are NCSN's 0.01, 1 and L = 10, doubled for images in [-1, 1].
    """

    levels: Tensor

    def __init__(self, L: int = 10, sigma_min: float = 0.02, sigma_max: float = 2.0) -> None:
        super().__init__(sigma_min, sigma_max)
        if not isinstance(L, int) or L < 2:
            raise ValueError(f"L, the number of noise levels, must be a whole number of at least 2, got {L}.")
        self.L = L
        self.levels = torch.arange(L, dtype=torch.float64) / (L - 1)
