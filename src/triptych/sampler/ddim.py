"""DDIM, on any schedule."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.denoiser import Cond, Denoiser
from triptych.noise import Noise
from triptych.sampler.base import Path, Row, Sampler
from triptych.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class DDIM(Sampler):
    """Denoising Diffusion Implicit Models. Song, Meng, Ermon 2021. arXiv:2010.02502, Eqs. 12 and 16.

        x_s = alpha_s x_0 + sqrt(sigma_s^2 - std^2) eps + std z,
        std = eta sigma_s sqrt(1 - SNR_t / SNR_s)

    In the paper alpha_t is our alpha(t)^2. eta = 0 is the Euler step of the probability flow in sigma / alpha; eta = 1
    has the variance of ancestral sampling.

    Attributes:
        eta: scale of the injected noise, 0 <= eta <= 1.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"DDIM: eta must be between 0 (deterministic) and 1 (ancestral), got {self.eta}.")

    def coefficients(self, schedule: Schedule, path: Path) -> list[Row]:
        """For each step: the weights of x_t, x_0 and z."""
        rows = []
        for i in range(len(path)):
            alpha_t, alpha_s, sigma_t, sigma_s = *path.alpha[i : i + 2], *path.sigma[i : i + 2]
            std = self.eta * sigma_s * math.sqrt(-math.expm1(path.log_snr[i] - path.log_snr[i + 1]))
            a = math.sqrt(sigma_s**2 - std**2) / sigma_t
            rows.append((a, [alpha_s - alpha_t * a], std))
        return rows

    def trajectory(
        self, denoiser: Denoiser, x: Tensor, cond: Cond = None, noise: Noise = torch.randn_like
    ) -> Iterator[Tensor]:
        path = self.path(denoiser)
        yield from self.walk(denoiser, x, path, self.coefficients(denoiser.schedule, path), cond, noise)
