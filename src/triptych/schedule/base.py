"""What every noise schedule is: two functions alpha(t), sigma(t) of one time, and all that follows from them.

    x_t = alpha(t) x_0 + sigma(t) eps,      eps ~ N(0, I),      t in [0, 1], 0 = data, 1 = noise.

The forward SDE  dx = f(t) x dt + g(t) dw  with these marginals has (Song et al. 2021, arXiv:2011.13456, App. B)

    f = d log alpha / dt,       g^2 = d sigma^2 / dt - 2 f sigma^2,

and log-SNR is  lambda = log(alpha^2 / sigma^2) = 2 log(alpha / sigma): the factor 2 is stated here, once.
"""

import functools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

S = TypeVar("S", bound="Schedule")


def in_float64(function: Callable[[S, Tensor], Tensor]) -> Callable[[S, Tensor], Tensor]:
    """Computes a function of time in float64 and returns it in the argument's dtype, never below float32 (T-L14)."""

    @functools.wraps(function)
    def wrapper(self: S, t: Tensor) -> Tensor:
        return function(self, t.double()).to(torch.promote_types(t.dtype, torch.float32))

    return wrapper


class Schedule(nn.Module, ABC):
    """How noisy x_t is.

    Attributes:
        t_min, t_max: the closed interval of t on which f and g^2 are finite and the score is not singular.
        levels: native times of a discrete schedule, increasing, [T]; None if it is continuous.
        prior_std: standard deviation of x at t = 1.
    """

    t_min: float = 0.0
    t_max: float = 1.0
    prior_std: float = 1.0
    levels: Tensor | None = None

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The coefficient of x_0. Any shape -> same shape."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The coefficient of eps. Any shape -> same shape."""

    @in_float64
    def log_snr(self, t: Tensor) -> Tensor:
        """2 log(alpha / sigma); strictly decreasing in t; +inf where sigma = 0."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma and log-SNR in one call, for which a schedule may share work. Any shape -> three of it."""
        return self.alpha(t), self.sigma(t), self.log_snr(t)

    @in_float64
    def drift(self, t: Tensor) -> Tensor:
        """f = d log alpha / dt."""
        return derivative(lambda u: self.alpha(u).log(), t)

    @in_float64
    def diffusion_sq(self, t: Tensor) -> Tensor:
        """g^2 = d sigma^2 / dt - 2 f sigma^2."""
        return derivative(lambda u: self.sigma(u).square(), t) - 2 * self.drift(t) * self.sigma(t).square()

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """d alpha / dt and d log sigma / dt, which give the probability flow wherever sigma > 0:

        dx/dt = alpha' x_0 + (sigma' / sigma) (x - alpha x_0),      x_0 = E[x_0 | x_t].
        """
        f = self.drift(t.double())
        log_sigma = f + self.diffusion_sq(t.double()) / (2 * self.sigma(t.double()).square())
        dtype = torch.promote_types(t.dtype, torch.float32)
        return (f * self.alpha(t.double())).to(dtype), log_sigma.to(dtype)

    @in_float64
    def time(self, log_snr: Tensor) -> Tensor:
        """The t at which the log-SNR is `log_snr`; time(+inf) = 0, time(-inf) = 1. Here by bisection on [0, 1]."""
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(60):
            middle = (low + high) / 2
            cleaner = self.log_snr(middle) > log_snr
            low, high = torch.where(cleaner, middle, low), torch.where(cleaner, high, middle)
        return torch.where(log_snr == torch.inf, 0.0, torch.where(log_snr == -torch.inf, 1.0, (low + high) / 2))

    @property
    def device(self) -> torch.device:
        """Where a learned schedule's parameters are; the CPU for all others."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @property
    def grid_ends(self) -> tuple[float, float]:
        """The cleanest and the noisiest t > 0 that a log-SNR grid visits: both log-SNRs are finite."""
        return (max(self.t_min, 0.0 if self.levels is None else float(self.levels[0])), self.t_max)


def derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """d function / dt of an elementwise function, by forward differentiation, which works under no_grad."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)  # torch's own
        return torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]


def positive(name: str, value: float) -> float:
    """The value, or a ValueError that says which argument must be positive and finite."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value}.")
    return float(value)


def ordered(low_name: str, low: float, high_name: str, high: float) -> tuple[float, float]:
    """Both values, or a ValueError unless 0 < low < high."""
    positive(low_name, low)
    positive(high_name, high)
    if low >= high:
        raise ValueError(f"{low_name} must be smaller than {high_name}, got {low} and {high}.")
    return float(low), float(high)
