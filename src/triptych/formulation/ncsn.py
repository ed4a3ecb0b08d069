"""NCSN."""

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from triptych import denoiser
from triptych.denoiser import Cond
from triptych.formulation.base import Formulation, Plumbing
from triptych.formulation.times import Levels, TimeSampler
from triptych.noise import Noise
from triptych.schedule import Geometric, Schedule


class NCSN(Formulation):
    """Generative Modeling by Estimating Gradients of the Data Distribution. Song & Ermon 2019. arXiv:1907.05600.

    Args:
        version: 2 divides the network's output by sigma and tells a conditional network log sigma (Improved Techniques,
            Song & Ermon 2020. arXiv:2006.09011, Technique 3); 1 takes the output as the score and tells the index of
            the level, 0 for sigma_max, so that the network knows no other noise levels.
    """

    schedules = (Geometric,)
    schedule: Geometric

    def __init__(self, model: nn.Module, schedule: Schedule, *, version: int = 2, **plumbing: Unpack[Plumbing]) -> None:
        if version not in (1, 2):
            raise ValueError(f"NCSN: version must be 1 or 2, got {version!r}.")
        if version == 1 and hasattr(model, "noise_range"):  # a network made for continuous noise levels
            raise ValueError("NCSN: version=1 needs a network that embeds each level: choose model=ncsn, or version=2.")
        if isinstance(schedule, Geometric):
            self.noise_range = (math.log(schedule.sigma_min), math.log(schedule.sigma_max))
            self.levels = schedule.levels if version == 1 else None
        super().__init__(model, schedule, **plumbing)
        self.version = version

    def loss(self, x_0: Tensor, t: Tensor, cond: Cond = None, noise: Noise = torch.randn_like) -> Tensor:
        """Denoising score matching, Eqs. 5-6, lambda(sigma) = sigma^2, a mean over dimensions. [B, ...], [B] -> [B]."""
        _, sigma = self.coefficients(t, x_0)
        z = noise(x_0)
        x_t = x_0 + sigma * z
        return (sigma * self.score(x_t, t, cond) + z).square().flatten(1).mean(1) / 2

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        return denoiser.x_0_from_score(x_t, self.score(x_t, t, cond), *self.coefficients(t, x_t))

    def score(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        """s_theta(x, sigma), the estimate of grad log p_sigma(x)."""
        output = self.network(x_t, self.c_noise(t), cond)
        return output if self.version == 1 else output / self.coefficients(t, x_t)[1]

    def c_noise(self, t: Tensor) -> Tensor:
        if self.version == 1:
            return ((1 - t.double()) * (self.schedule.L - 1)).round()  # index 0 = sigma_max (T-L5)
        return self.schedule.sigma(t.double()).log()

    def default_times(self) -> TimeSampler:
        return Levels()
