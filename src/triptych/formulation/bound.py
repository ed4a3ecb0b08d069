"""The variational bound of DDPM, term by term. Ho, Jain, Abbeel 2020. arXiv:2006.11239, Eqs. 5-7 and 13.

    L = KL(q(x_T | x_0) || p(x_T)) + sum_{k > 1} KL(q(x_{k-1} | x_k, x_0) || p(x_{k-1} | x_k)) - log p(x_0 | x_1)

All in bits per dimension. Both means are  a x_k + b x_0  with the same a, so they differ by b times the error of x_0.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from triptych.denoiser import expand
from triptych.schedule import Discrete

VARIANCES = ("fixed_small", "fixed_large", "learned")


class Bound(NamedTuple):
    """An upper bound on -log2 p(x_0) per dimension.

    Attributes:
        prior: KL(q(x_T | x_0) || N(0, I)), [B].
        terms: for k = T, ..., 2 the divergence of the step from k to k - 1, and for k = 1 the decoder, [B, T].
        total: their sum, [B].
    """

    prior: Tensor
    terms: Tensor
    total: Tensor


class Posterior(NamedTuple):
    """Of q(x_{k-1} | x_k, x_0), Eqs. 6-7: the mean's coefficient of x_0, log beta-tilde_k and log beta_k."""

    x_0: Tensor
    log_small: Tensor
    log_large: Tensor

    def log_variance(self, variance: str, v: Tensor | None) -> Tensor:
        """Of p(x_{k-1} | x_k). Nichol & Dhariwal 2021. arXiv:2102.09672, Eq. 15."""
        if v is not None:
            return v * self.log_large + (1 - v) * self.log_small
        return self.log_small if variance == "fixed_small" else self.log_large


def posterior(schedule: Discrete, k: Tensor, x: Tensor, variance: str) -> Posterior:
    """At steps k [B] of 1, ..., T, shaped to broadcast against x.

    beta-tilde_1 = 0 has no logarithm: beta-tilde_2 takes its place, and for fixed_large the place of beta_1 too (T-K2).
    """
    coefficient, _, log_beta = _posterior(schedule, k)
    _, log_small, _ = _posterior(schedule, k.clamp(min=2))
    log_large = torch.where(k > 1, log_beta, log_small) if variance == "fixed_large" else log_beta
    return Posterior(*(expand(c.to(x.dtype), x) for c in (coefficient, log_small, log_large)))


def _posterior(schedule: Discrete, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t, s = k.double() / schedule.T, (k.double() - 1) / schedule.T
    alpha_t, alpha_s, sigma_t, sigma_s = schedule.alpha(t), schedule.alpha(s), schedule.sigma(t), schedule.sigma(s)
    beta = -torch.expm1(2 * (alpha_t.log() - alpha_s.log()))
    return alpha_s * beta / sigma_t.square(), (beta * (sigma_s / sigma_t).square()).log(), beta.log()


def divergence(x_0: Tensor, denoised: Tensor, q: Posterior, log_variance: Tensor) -> Tensor:
    """KL(q(x_{k-1} | x_k, x_0) || p(x_{k-1} | x_k)) for k > 1, where p's mean has `denoised` for x_0. -> [B]."""
    mean_sq = (q.x_0 * (x_0 - denoised)).square()
    kl = (log_variance - q.log_small + (q.log_small - log_variance).exp() - 1 + mean_sq * (-log_variance).exp()) / 2
    return bits(kl.expand_as(x_0))


def decoder(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log p(x_0 | x_1) for x_0 with 256 levels in [-1, 1], by the discretised Gaussian of Eq. 13. -> [B]."""
    return bits(-discretized_gaussian(x_0, mean, log_variance))


def prior(schedule: Discrete, x_0: Tensor) -> Tensor:
    """KL(q(x_T | x_0) || N(0, I)). -> [B]."""
    one = torch.ones(1, dtype=torch.float64, device=x_0.device)
    alpha_sq = schedule.alpha(one).square()
    constant = -alpha_sq - torch.log1p(-alpha_sq)  # sigma^2 - 1 - log sigma^2
    return bits((alpha_sq.to(x_0.dtype) * x_0.square() + constant.to(x_0.dtype)) / 2)


def discretized_gaussian(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log of N(mean, variance) over the bin of x, for 256 levels in [-1, 1]; the two outer bins are open (T-K1).

    A difference of log_ndtr, taken in the tail where it does not cancel, so that nothing is clamped. Same shape as x.
    """
    inverse_std = (-log_variance / 2).exp()
    low, high = (x - mean - 1 / 255) * inverse_std, (x - mean + 1 / 255) * inverse_std
    low = torch.where(x < -0.999, high.clamp(max=0) - 100, low)  # as good as -inf, with a gradient
    high = torch.where(x > 0.999, low.clamp(min=0) + 100, high)
    upper = low + high > 0
    low, high = torch.where(upper, -high, low), torch.where(upper, -low, high)  # N is symmetric
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return log_high + torch.log(-torch.expm1(log_low - log_high))


def bits(nats: Tensor) -> Tensor:
    """[B, ...] in nats -> their mean over dimensions in bits, [B]."""
    return nats.flatten(1).mean(1) / math.log(2)
