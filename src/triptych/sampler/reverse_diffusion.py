"""The reverse diffusion predictor of score SDE."""

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
class ReverseDiffusion(Sampler):
    """Score-Based Generative Modeling through SDEs. Song et al. 2021. arXiv:2011.13456, App. E, Algorithms 2 and 3.

    The forward step x_t = alpha_ts x_s + sigma_ts z, discretised as it is and then reversed:

        x_s = (2 - alpha_ts) x_t + sigma_ts^2 score + sigma_ts z,     score = (alpha_t x_0 - x_t) / sigma_t^2
        alpha_ts = alpha_t / alpha_s,    sigma_ts^2 = sigma_t^2 - alpha_ts^2 sigma_s^2

    On DDPM's levels alpha_ts = sqrt(1 - beta) and sigma_ts^2 = beta; for VE they are 1 and sigma_t^2 - sigma_s^2. Stays
    inside [t_min, t_max] (T-K12).
    """

    def span(self, schedule: Schedule) -> tuple[float, float]:
        return min(self.t_start, schedule.t_max), schedule.t_min

    def coefficients(self, schedule: Schedule, path: Path) -> list[Row]:
        """For each step: the weights of x_t, x_0 and z."""
        rows = []
        for i in range(len(path)):
            alpha_ts = path.alpha[i] / path.alpha[i + 1]
            pull = -math.expm1(path.log_snr[i] - path.log_snr[i + 1])  # sigma_ts^2 / sigma_t^2 without cancellation
            rows.append((2 - alpha_ts - pull, [pull * path.alpha[i]], path.sigma[i] * math.sqrt(pull)))
        return rows

    def trajectory(
        self, denoiser: Denoiser, x: Tensor, cond: Cond = None, noise: Noise = torch.randn_like
    ) -> Iterator[Tensor]:
        path = self.path(denoiser)
        yield from self.walk(denoiser, x, path, self.coefficients(denoiser.schedule, path), cond, noise)
