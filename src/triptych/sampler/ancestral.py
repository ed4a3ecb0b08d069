"""DDPM's ancestral sampling, on any schedule."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.denoiser import Cond, Denoiser
from triptych.noise import Noise
from triptych.sampler.base import Path, Row, Sampler, combine
from triptych.schedule import Schedule

VARIANCES = ("fixed_small", "fixed_large", "learned")


@dataclass(frozen=True, kw_only=True)
class Ancestral(Sampler):
    """Denoising Diffusion Probabilistic Models. Ho, Jain, Abbeel 2020. arXiv:2006.11239, Algorithm 2 and Eqs. 6-7.

        x_s = (alpha_ts sigma_s^2 x_t + alpha_s sigma_ts^2 x_0) / sigma_t^2 + std z,
        alpha_ts = alpha_t / alpha_s,    sigma_ts^2 = sigma_t^2 - alpha_ts^2 sigma_s^2

    In the paper alpha_t is our alpha_ts^2, beta_t our sigma_ts^2, alpha-bar_t our alpha(t)^2. No noise in a step to
    sigma = 0 (T-L2), where the fixed-large variance would not vanish.

    Attributes:
        variance: std^2 = "fixed_small", the posterior's sigma_s^2 sigma_ts^2 / sigma_t^2; "fixed_large", sigma_ts^2; or
            "learned", the log-variance interpolated between the two by the network's v (Nichol & Dhariwal 2021.
            arXiv:2102.09672, Eq. 15), which needs a denoiser with `moments`.
    """

    variance: str = "fixed_small"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variance not in VARIANCES:
            raise ValueError(f"Ancestral: variance must be one of {', '.join(VARIANCES)}, got {self.variance!r}.")

    def check(self, denoiser: Denoiser) -> None:
        if self.variance == "learned" and not hasattr(denoiser, "moments"):
            raise ValueError(
                "Ancestral: variance=learned needs a model that learns its variance; "
                "train with formulation.variance=learned, or choose fixed_small or fixed_large."
            )

    def coefficients(self, schedule: Schedule, path: Path) -> list[Row]:
        """For each step: the weights of x_t, x_0 and z, with a fixed variance."""
        rows = []
        for i, (small, large) in enumerate(self.variances(path)):
            alpha_ts = path.alpha[i] / path.alpha[i + 1]
            a = alpha_ts * (path.sigma[i + 1] / path.sigma[i]) ** 2
            b = path.alpha[i + 1] * large / path.sigma[i] ** 2
            rows.append((a, [b], math.sqrt(large if self.variance == "fixed_large" and small > 0 else small)))
        return rows

    @staticmethod
    def variances(path: Path) -> list[tuple[float, float]]:
        """For each step: fixed_small and fixed_large, the latter without cancellation."""
        pairs = []
        for i in range(len(path)):
            large = -(path.sigma[i] ** 2) * math.expm1(path.log_snr[i] - path.log_snr[i + 1])
            pairs.append((large * (path.sigma[i + 1] / path.sigma[i]) ** 2, large))
        return pairs

    def trajectory(
        self, denoiser: Denoiser, x: Tensor, cond: Cond = None, noise: Noise = torch.randn_like
    ) -> Iterator[Tensor]:
        path = self.path(denoiser)
        rows = self.coefficients(denoiser.schedule, path)
        if self.variance != "learned":
            yield from self.walk(denoiser, x, path, rows, cond, noise)
            return
        times, variances = path.batches(x), self.variances(path)
        for i, (a, weights, _) in enumerate(rows):
            x_0, v = denoiser.moments(x, times[i], cond)  # pyright: ignore[reportAttributeAccessIssue]
            x = combine(a, x, weights, [self.limit(x_0)])
            small, large = variances[i]
            if small > 0 and not self.is_mean(i, path):
                std = torch.mul(v, math.log(large / small) / 2).add_(math.log(small) / 2).exp_()
                x.addcmul_(std, noise(x))
            yield x
        yield from self.finish(denoiser, x, path, cond)
