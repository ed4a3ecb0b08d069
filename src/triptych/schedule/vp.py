"""Variance-preserving and sub-variance-preserving SDEs of Song et al. 2021, which share  B(t) = int_0^t beta(s) ds."""

import torch
from torch import Tensor

from triptych.schedule.base import Schedule, in_float64, ordered


class _LinearRate(Schedule):
    """beta(t) = beta_min + t (beta_max - beta_min), its integral B(t), and the inverse of B."""

    t_min = 1e-5

    def __init__(self, beta_min: float, beta_max: float) -> None:
        super().__init__()
        self.beta_min, self.beta_max = ordered("beta_min", beta_min, "beta_max", beta_max)

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)

    def _inverse(self, integral: Tensor) -> Tensor:
        """The positive root of the quadratic B(t) = integral, in the form that does not cancel."""
        slope = self.beta_max - self.beta_min
        t = 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())
        return torch.where(integral.isinf(), torch.ones_like(t), t)

    @in_float64
    def alpha(self, t: Tensor) -> Tensor:
        return (-self._integral(t) / 2).exp()

    @in_float64
    def drift(self, t: Tensor) -> Tensor:
        return -self.beta(t) / 2


class VP(_LinearRate):
    """The variance-preserving SDE. Song et al. 2021. arXiv:2011.13456, Eqs. 11 and 29, App. B and C.

    alpha = exp(-B / 2),  sigma^2 = 1 - exp(-B),  f = -beta / 2,  g^2 = beta.  `expm1` keeps sigma right near 0 (T-L15).
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        super().__init__(beta_min, beta_max)

    @in_float64
    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-self._integral(t))).sqrt()

    @in_float64
    def log_snr(self, t: Tensor) -> Tensor:
        return -torch.log(torch.expm1(self._integral(t)))

    @in_float64
    def diffusion_sq(self, t: Tensor) -> Tensor:
        return self.beta(t)

    @in_float64
    def time(self, log_snr: Tensor) -> Tensor:
        return self._inverse(torch.logaddexp(-log_snr, torch.zeros_like(log_snr)))  # exp(-B) = sigmoid(log_snr)


class SubVP(_LinearRate):
    """The sub-variance-preserving SDE. Song et al. 2021. arXiv:2011.13456, Eqs. 12 and 29.

    alpha = exp(-B / 2),  sigma = 1 - exp(-B)  (the standard deviation itself),  g^2 = beta (1 - exp(-2 B)).
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        super().__init__(beta_min, beta_max)

    @in_float64
    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._integral(t))

    @in_float64
    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * torch.log(2 * torch.sinh(self._integral(t) / 2))  # alpha / sigma = 1 / (2 sinh(B / 2))

    @in_float64
    def diffusion_sq(self, t: Tensor) -> Tensor:
        return self.beta(t) * -torch.expm1(-2 * self._integral(t))

    @in_float64
    def time(self, log_snr: Tensor) -> Tensor:
        return self._inverse(2 * torch.asinh((-log_snr / 2).exp() / 2))

    @property
    def grid_ends(self) -> tuple[float, float]:
        """From the log-SNR that VP has at t_min, sigma = 1e-3 by default, at t = 0.006.

        sigma is quadratic in t here, 1e-6 at t_min: a grid from there would spend half of its steps on noise that no
        image shows, and at times between which no network tells any difference.
        """
        t_min = torch.tensor(self.t_min, dtype=torch.float64)
        return float(self.time(-torch.log(torch.expm1(self._integral(t_min))))), self.t_max
