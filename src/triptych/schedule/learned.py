"""A noise schedule that is trained together with the network."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.schedule.base import Schedule, in_float64


class Learned(Schedule):
    """Variational Diffusion Models. Kingma, Salimans, Poole, Ho 2021. arXiv:2107.00630.

        alpha^2 = sigmoid(log_snr),   log_snr(t) = log_snr_max - (log_snr_max - log_snr_min) share(t),

    in which share rises from share(0) = 0 to share(1) = 1: a straight line plus sigmoids, all weights positive. In the
    paper gamma = -log_snr. The two ends are fixed: they need the whole bound to be learned, prior and decoder included.

    Between fixed ends the continuous-time bound does not depend on the schedule, but the variance of its estimate does;
    `lower_variance` teaches the parameters to lower it. Such a t is importance-sampled: draw it uniformly (T-K13).

    Args:
        log_snr_max, log_snr_min: at t = 0 and t = 1.
        hidden: number of sigmoids.
    """

    def __init__(self, log_snr_max: float = 13.3, log_snr_min: float = -5.0, hidden: int = 64) -> None:
        super().__init__()
        if not (math.isfinite(log_snr_max - log_snr_min) and log_snr_min < log_snr_max):
            raise ValueError(f"log_snr_min must be smaller than log_snr_max, got {log_snr_min} and {log_snr_max}.")
        if hidden < 1:
            raise ValueError(f"hidden, the number of sigmoids, must be at least 1, got {hidden}.")
        self.log_snr_max, self.log_snr_min = float(log_snr_max), float(log_snr_min)
        self.line = nn.Parameter(torch.zeros(()))
        self.height = nn.Parameter(torch.full((hidden,), -math.log(hidden)))  # together as high as the line
        self.steepness = nn.Parameter(torch.full((hidden,), math.log(20)))
        self.centre = nn.Parameter((torch.arange(hidden) + 0.5) / hidden)

    def share(self, t: Tensor) -> Tensor:
        """The share of the way from log_snr_max to log_snr_min. float64 [...] -> [...]."""
        start, end = self._rise(torch.zeros_like(t)), self._rise(torch.ones_like(t))
        return (self._rise(t) - start) / (end - start)

    def rate(self, t: Tensor) -> Tensor:
        """-d log_snr / dt, in closed form. float64 [...] -> [...]."""
        line, height, steepness = self._positive()
        s = torch.sigmoid(steepness * (t[..., None] - self.centre))
        slope = line + (height * steepness * s * (1 - s)).sum(-1)
        total = self._rise(torch.ones_like(t)) - self._rise(torch.zeros_like(t))
        return (self.log_snr_max - self.log_snr_min) * slope / total

    def lower_variance(self, loss: Tensor, *coefficients: Tensor) -> None:
        """Makes the parameters descend E[loss^2] where the network descends E[loss], in one and the same backward pass.

        E[loss] does not depend on the parameters, so lowering E[loss^2] lowers the variance. The gradient of the square
        is 2 loss times that of the loss, for each sample; it comes to the parameters only through `coefficients`.

        Args:
            loss: at times t, weighted by g^2 / sigma^2, [B].
            coefficients: whatever of the schedule it was computed from, each [B, ...].
        """
        for coefficient in coefficients:
            if coefficient.requires_grad:
                factor = 2 * loss.detach().reshape(-1, *[1] * (coefficient.ndim - 1))
                coefficient.register_hook(lambda gradient, factor=factor: factor.to(gradient.dtype) * gradient)

    @in_float64
    def alpha(self, t: Tensor) -> Tensor:
        return (F.logsigmoid(self.log_snr(t)) / 2).exp()

    @in_float64
    def sigma(self, t: Tensor) -> Tensor:
        return (F.logsigmoid(-self.log_snr(t)) / 2).exp()

    @in_float64
    def log_snr(self, t: Tensor) -> Tensor:
        return self.log_snr_max - (self.log_snr_max - self.log_snr_min) * self.share(t)

    @in_float64
    def drift(self, t: Tensor) -> Tensor:
        return -self.rate(t) * torch.sigmoid(-self.log_snr(t)) / 2

    @in_float64
    def diffusion_sq(self, t: Tensor) -> Tensor:
        return self.rate(t) * torch.sigmoid(-self.log_snr(t))  # g^2 = -d log_snr/dt sigma^2

    def _positive(self) -> tuple[Tensor, Tensor, Tensor]:
        """Slope of the line, heights and steepnesses of the sigmoids."""
        return self.line.double().exp(), self.height.double().exp(), self.steepness.double().exp()

    def _rise(self, t: Tensor) -> Tensor:
        line, height, steepness = self._positive()
        return line * t + (height * torch.sigmoid(steepness * (t[..., None] - self.centre))).sum(-1)
