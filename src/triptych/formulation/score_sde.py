"""Score SDE."""

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from triptych import denoiser
from triptych.denoiser import Cond
from triptych.formulation.base import Formulation, Plumbing
from triptych.formulation.times import TimeSampler, Uniform, UniformLogSNR
from triptych.noise import Noise
from triptych.schedule import VE, VP, Learned, Schedule, SubVP

WEIGHTINGS = ("sigma_sq", "likelihood")


class ScoreSDE(Formulation):
    """Score-Based Generative Modeling through Stochastic Differential Equations. Song et al. 2021. arXiv:2011.13456.

    score = -F / sigma. The network is told 999 t on VP and sub-VP, log sigma on VE (T-L3); on a learned schedule, where
    the meaning of t changes in training, the log-SNR scaled to [0, 999].

    Args:
        weighting: lambda(t) = "sigma_sq", the paper's; or "likelihood", g^2 / 2: the loss is then the integrand of a
            bound on the negative log-likelihood, in nats per dimension, and t is importance-sampled. Song, Durkan,
            Murray, Ermon 2021. arXiv:2101.09258.
    """

    schedules = (VP, SubVP, VE, Learned)

    def __init__(
        self, model: nn.Module, schedule: Schedule, *, weighting: str = "sigma_sq", **plumbing: Unpack[Plumbing]
    ) -> None:
        if weighting not in WEIGHTINGS:
            raise ValueError(f"ScoreSDE: weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}.")
        if isinstance(schedule, Learned) and weighting != "likelihood":
            raise ValueError("ScoreSDE: schedule=learned learns from formulation.weighting=likelihood only.")
        self.weighting = weighting
        self.noise_range = (0.0, 999.0)
        if isinstance(schedule, VE):
            self.noise_range = (math.log(schedule.sigma_min), math.log(schedule.sigma_max))
        super().__init__(model, schedule, **plumbing)

    def loss(self, x_0: Tensor, t: Tensor, cond: Cond = None, noise: Noise = torch.randn_like) -> Tensor:
        """Eq. 7 with lambda(t) = sigma(t)^2, or g(t)^2 / 2, a mean over dimensions. [B, ...], [B] -> [B]."""
        alpha, sigma = self.coefficients(t, x_0)
        eps = noise(x_0)
        x_t = alpha * x_0 + sigma * eps  # Eq. 29
        c_noise = self.c_noise(t)
        error = (self.network(x_t, c_noise, cond) - eps).square().flatten(1).mean(1)
        if self.weighting == "sigma_sq":
            return error
        rate = self.schedule.diffusion_sq(t) / self.schedule.sigma(t).square()
        loss = rate / 2 * error
        if isinstance(self.schedule, Learned):
            self.schedule.lower_variance(loss, alpha, sigma, c_noise, rate)
        return loss

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        output = self.network(x_t, self.c_noise(t), cond)
        return denoiser.x_0_from_eps(x_t, output, *self.coefficients(t, x_t))

    def c_noise(self, t: Tensor) -> Tensor:
        if isinstance(self.schedule, VE):
            return self.schedule.sigma(t.double()).log()
        if isinstance(self.schedule, Learned):
            return 999 * self.schedule.share(t.double())
        return 999 * t

    def default_times(self) -> TimeSampler:
        learned = isinstance(self.schedule, Learned)  # is itself the importance sampling
        return UniformLogSNR() if self.weighting == "likelihood" and not learned else Uniform()
