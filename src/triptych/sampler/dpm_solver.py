"""DPM-Solver++, multistep, for the probability flow and for the SDE."""

import functools
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
class DPMSolver(Sampler):
    """DPM-Solver++: Fast Solver for Guided Sampling. Lu et al. 2022. arXiv:2211.01095, multistep, of order 1 to 3.

    In l = log(alpha / sigma), half our log-SNR, with h = l_s - l_t, r = (l_t - l_b) / h, D = (x_0 - x_0_b) / r:

        x_s = (sigma_s / sigma_t) x_t + alpha_s phi (x_0 + D / 2),      phi = 1 - e^-h                     order 2
        x_s = (sigma_s / sigma_t) x_t + alpha_s int_0^h e^(u - h) P(u) du                                  order 3
        x_s = (sigma_s / sigma_t) e^-h x_t + alpha_s phi (x_0 + D / 2) + sigma_s sqrt(phi) z,  phi = 1 - e^-2h   SDE

    where b is the step before, and P the parabola through three x_0. Public code of order 3 (the authors', diffusers,
    k-diffusion) takes half of the share of P'', and so converges with order 2 [measured]. Order 1 is DDIM, with eta = 1
    for the SDE. A time of infinite log-SNR is never history.

    Attributes:
        order: 1, 2 or 3; the SDE has 1 and 2.
        sde: SDE-DPM-Solver++ instead of the deterministic one.
    """

    order: int = 2
    sde: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2, 3):
            raise ValueError(f"DPMSolver: order must be 1, 2 or 3, got {self.order}.")
        if self.sde and self.order == 3:
            raise ValueError("DPMSolver: the SDE form has order 1 or 2; choose one, or sde=false.")

    def coefficients(self, schedule: Schedule, path: Path) -> list[Row]:
        """For each step: the weights of x_t, of x_0 and the x_0 before it, newest first, and of z."""
        return rows_of(self.order, self.sde, path)

    def trajectory(
        self, denoiser: Denoiser, x: Tensor, cond: Cond = None, noise: Noise = torch.randn_like
    ) -> Iterator[Tensor]:
        path = self.path(denoiser)
        yield from self.walk(denoiser, x, path, self.coefficients(denoiser.schedule, path), cond, noise)


@functools.lru_cache(maxsize=8)
def rows_of(order: int, sde: bool, path: Path) -> list[Row]:
    """The coefficients; kept, since they cost as much as a kernel a step and are the same for every batch."""
    half = [log_snr / 2 for log_snr in path.log_snr]
    rows = []
    for i in range(len(path)):
        h = half[i + 1] - half[i]
        phi = -math.expm1(-2 * h) if sde else -math.expm1(-h)
        a = path.sigma[i + 1] / path.sigma[i] * (math.exp(-h) if sde else 1.0)
        std = path.sigma[i + 1] * math.sqrt(phi) if sde else 0.0
        rows.append((a, [path.alpha[i + 1] * w for w in extrapolation(order, half, i, h, phi)], std))
    return rows


def extrapolation(order: int, half: list[float], i: int, h: float, phi: float) -> list[float]:
    """The weights of x_0 and its predecessors for alpha_s = 1; `half` is l at all times."""
    known = i + 1 if math.isfinite(half[0]) else max(1, i)
    order = min(order, known) if math.isfinite(h) else 1
    if order == 1:
        return [phi]
    r_0 = (half[i] - half[i - 1]) / h
    if order == 2:
        return [phi + phi / (2 * r_0), -phi / (2 * r_0)]
    r_1 = (half[i - 1] - half[i - 2]) / h
    first = 1 - phi / h  # of h P'(0)
    second = 1 - 2 * first / h  # of h^2 P'' / 2
    newest = (first + (first * r_0 + second) / (r_0 + r_1)) / r_0  # of x_0(0) - x_0(1)
    oldest = (first * r_0 + second) / (r_0 + r_1) / r_1  # of x_0(2) - x_0(1)
    return [phi + newest, -newest - oldest, oldest]
