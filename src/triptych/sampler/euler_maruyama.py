"""The reverse-time SDE by Euler-Maruyama."""

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
class EulerMaruyama(Sampler):
    """Score-Based Generative Modeling through SDEs. Song et al. 2021. arXiv:2011.13456, Eq. 6, by Euler-Maruyama.

        x_s = x_t + (f x_t - g^2 score) (s - t) + g sqrt(t - s) z,     score = (alpha_t x_0 - x_t) / sigma_t^2

    Stays inside [t_min, t_max], where f and g^2 are finite (T-K12).
    """

    def span(self, schedule: Schedule) -> tuple[float, float]:
        return min(self.t_start, schedule.t_max), schedule.t_min

    def coefficients(self, schedule: Schedule, path: Path) -> list[Row]:
        """For each step: the weights of x_t, x_0 and z."""
        times = torch.tensor(path.t[:-1], dtype=torch.float64, device=schedule.device)
        drift, diffusion_sq = schedule.drift(times).tolist(), schedule.diffusion_sq(times).tolist()
        rows = []
        for i, (f, g_sq) in enumerate(zip(drift, diffusion_sq, strict=True)):
            h = path.t[i] - path.t[i + 1]
            pull = h * g_sq / path.sigma[i] ** 2
            rows.append((1 - h * f - pull, [pull * path.alpha[i]], math.sqrt(h * g_sq)))
        return rows

    def trajectory(
        self, denoiser: Denoiser, x: Tensor, cond: Cond = None, noise: Noise = torch.randn_like
    ) -> Iterator[Tensor]:
        path = self.path(denoiser)
        yield from self.walk(denoiser, x, path, self.coefficients(denoiser.schedule, path), cond, noise)
