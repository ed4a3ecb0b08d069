"""EDM's stochastic sampler."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.denoiser import Cond, Denoiser, levels
from triptych.noise import Noise
from triptych.sampler.base import Path, Sampler, combine, snap
from triptych.sampler.heun import step


@dataclass(frozen=True, kw_only=True)
class StochasticHeun(Sampler):
    """Elucidating the Design Space of Diffusion Models. Karras et al. 2022. arXiv:2206.00364, Algorithm 2.

        gamma = min(S_churn / steps, sqrt(2) - 1)  if S_min <= sigma_ve <= S_max,  else 0
        sigma_hat = (1 + gamma) sigma_ve,    y_hat = y + sqrt(sigma_hat^2 - sigma_ve^2) S_noise z,    then Heun's step

    EDM's sigma and x are our sigma_ve = sigma / alpha and y = x / alpha; t_hat is the time of sigma_hat, the nearest
    level for a network that knows no others.

    Attributes:
        S_churn: how much noise is renewed along the way; 0 is `Heun`.
        S_min, S_max: the range of sigma_ve in which noise is added.
        S_noise: inflates the added noise, to make up for what the network removes too much.
    """

    S_churn: float = 40.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.S_churn >= 0 and self.S_noise >= 0):
            raise ValueError(
                f"StochasticHeun: S_churn and S_noise must be 0 or more, got {self.S_churn} and {self.S_noise}."
            )
        if not 0 <= self.S_min <= self.S_max:
            raise ValueError(f"StochasticHeun: 0 <= S_min <= S_max is needed, got {self.S_min} and {self.S_max}.")

    def churned(self, denoiser: Denoiser, path: Path) -> Path:
        """t_hat of every step of the path, and the coefficients there; t itself where no noise is added."""
        gamma = min(self.S_churn / len(path), math.sqrt(2) - 1)
        sigma_ve = [math.exp(-log_snr / 2) for log_snr in path.log_snr[:-1]]
        churn = [gamma > 0 and self.S_min <= sigma <= self.S_max and math.isfinite(sigma) for sigma in sigma_ve]
        log_snr = torch.tensor(path.log_snr[:-1], dtype=torch.float64) - 2 * math.log1p(gamma)
        t_hat = denoiser.schedule.time(log_snr.to(denoiser.schedule.device)).detach().cpu()
        known = levels(denoiser)
        if known is not None:
            t_hat = torch.cat([snap(t[None], known, denoiser.schedule)[:1] for t in t_hat])
        t_hat = torch.where(torch.tensor(churn), t_hat, torch.tensor(path.t[:-1], dtype=torch.float64))
        return Path.of(denoiser.schedule, t_hat)

    def trajectory(
        self, denoiser: Denoiser, x: Tensor, cond: Cond = None, noise: Noise = torch.randn_like
    ) -> Iterator[Tensor]:
        path = self.path(denoiser)
        hat = self.churned(denoiser, path)
        times, times_hat = path.batches(x), hat.batches(x)
        for i in range(len(path)):
            if hat.t[i] != path.t[i]:
                std = hat.sigma[i] * math.sqrt(-math.expm1(hat.log_snr[i] - path.log_snr[i])) * self.S_noise
                x = combine(hat.alpha[i] / path.alpha[i], x, [std], [noise(x)])
            a, euler, heun = step(hat, i, path, i + 1)
            x_0 = self.predict(denoiser, x, times_hat[i], cond)
            x_s = combine(a, x, euler, [x_0])
            if heun is not None:
                denoised = self.predict(denoiser, x_s, times[i + 1], cond)
                x_s = combine(a, x, heun, [x_0, denoised])
            x = x_s
            yield x
        yield from self.finish(denoiser, x, path, cond)
