"""EDM's deterministic sampler."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.denoiser import Cond, Denoiser
from triptych.noise import Noise
from triptych.sampler.base import Path, Sampler, combine


@dataclass(frozen=True, kw_only=True)
class Heun(Sampler):
    """Elucidating the Design Space of Diffusion Models. Karras et al. 2022. arXiv:2206.00364, Algorithm 1 at s(t) = 1.

    In y = x / alpha and sigma_ve = sigma / alpha, EDM's x and sigma, the probability flow is dy = (y - x_0) / sigma_ve
    dsigma_ve on every schedule; Heun's second-order step. Steps out of alpha = 0 and into sigma = 0 are Euler's, hence
    DDIM's: 18 steps make 35 calls where sigma(0) = 0 (T-S14).
    """

    def trajectory(
        self, denoiser: Denoiser, x: Tensor, cond: Cond = None, noise: Noise = torch.randn_like
    ) -> Iterator[Tensor]:
        path = self.path(denoiser)
        times = path.batches(x)
        for i in range(len(path)):
            a, euler, heun = step(path, i, path, i + 1)
            x_0 = self.predict(denoiser, x, times[i], cond)
            x_s = combine(a, x, euler, [x_0])
            if heun is not None:
                denoised = self.predict(denoiser, x_s, times[i + 1], cond)
                x_s = combine(a, x, heun, [x_0, denoised])
            x = x_s
            yield x
        yield from self.finish(denoiser, x, path, cond)


def step(path: Path, i: int, to: Path, j: int) -> tuple[float, list[float], list[float] | None]:
    """From a path's time i to another's j: the weights of x_t, of Euler's x_0, and of Heun's two x_0.

    With rho = sigma_ve(s) / sigma_ve(t), the slopes at both ends put into Heun's rule give
        y_s = rho y_t + (1 - rho) (1 - 1 / (2 rho)) x_0 + (1 - rho) / (2 rho) x_0'.
    """
    rho = math.exp((path.log_snr[i] - to.log_snr[j]) / 2)
    first = to.alpha[j] * (1 - rho)
    second = first / (2 * rho) if rho > 0 else 0.0
    return to.sigma[j] / path.sigma[i], [first], [first - second, second] if rho > 0 else None
