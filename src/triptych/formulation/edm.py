"""EDM."""

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from triptych.denoiser import Cond
from triptych.formulation.base import Formulation, Plumbing
from triptych.formulation.times import LogNormal, TimeSampler
from triptych.noise import Noise
from triptych.schedule import EDM as Karras


class EDM(Formulation):
    """Elucidating the Design Space of Diffusion-Based Generative Models. Karras et al. 2022. arXiv:2206.00364.

        D(x; sigma) = c_skip x + c_out F(c_in x; c_noise),  Eq. 7 and Table 1

    Args:
        sigma_data: standard deviation of the data.
    """

    schedules = (Karras,)

    def __init__(
        self, model: nn.Module, schedule: Karras, *, sigma_data: float = 0.5, **plumbing: Unpack[Plumbing]
    ) -> None:
        if not sigma_data > 0:
            raise ValueError(f"EDM: sigma_data must be a positive number, got {sigma_data}.")
        if isinstance(schedule, Karras):
            self.noise_range = (math.log(schedule.sigma_min) / 4, math.log(schedule.sigma_max) / 4)
        super().__init__(model, schedule, **plumbing)
        self.sigma_data = sigma_data

    def loss(self, x_0: Tensor, t: Tensor, cond: Cond = None, noise: Noise = torch.randn_like) -> Tensor:
        """Eq. 2 with lambda(sigma) of Table 1, a mean over dimensions. [B, C, H, W], [B] -> [B]."""
        _, sigma = self.coefficients(t, x_0)
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2  # 1 / c_out^2
        x_t = x_0 + sigma * noise(x_0)
        return (weight * (self(x_t, t, cond) - x_0).square()).flatten(1).mean(1)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        _, sigma = self.coefficients(t, x_t)
        total = (sigma**2 + self.sigma_data**2).sqrt()
        c_skip = (self.sigma_data / total) ** 2
        c_out = sigma * self.sigma_data / total
        c_in = 1 / total
        return c_skip * x_t + c_out * self.network(c_in * x_t, self.c_noise(t), cond)

    def c_noise(self, t: Tensor) -> Tensor:
        return self.schedule.sigma(t.double()).clamp(min=1e-10).log() / 4  # finite at sigma = 0, where c_out = 0

    def default_times(self) -> TimeSampler:
        return LogNormal()
