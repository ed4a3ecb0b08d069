"""DDPM."""

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor, nn

from triptych.denoiser import Cond
from triptych.formulation import bound
from triptych.formulation.base import Formulation, Plumbing
from triptych.formulation.bound import VARIANCES, Bound
from triptych.formulation.prediction import PREDICTIONS
from triptych.formulation.times import Levels, LossSecondMoment, TimeSampler
from triptych.noise import Noise
from triptych.schedule import Discrete, Schedule

OBJECTIVES = ("simple", "vlb", "hybrid")


class DDPM(Formulation):
    """Denoising Diffusion Probabilistic Models. Ho, Jain, Abbeel 2020. arXiv:2006.11239.

    The network is told the 0-based index k - 1, k = t T. In the paper alpha-bar_k is our alpha(t)^2.

    Args:
        prediction: what the network says: eps, x_0, or v (Salimans & Ho 2022. arXiv:2202.00512).
        variance: of p(x_{k-1} | x_k): fixed_small, fixed_large, or learned: the network then has twice the channels.
            Nichol & Dhariwal 2021. arXiv:2102.09672.
        objective: simple; vlb; or hybrid, which teaches only the variance by the bound, with its mean detached. None is
            hybrid for a learned variance, else simple.
        vlb_weight: lambda of L_hybrid.
        gamma: of min-SNR weighting, Hang et al. 2023. arXiv:2303.09556; None for L_simple as it is.
    """

    schedules = (Discrete,)
    schedule: Discrete

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        *,
        prediction: str = "eps",
        variance: str = "fixed_small",
        objective: str | None = None,
        vlb_weight: float = 0.001,
        gamma: float | None = None,
        **plumbing: Unpack[Plumbing],
    ) -> None:
        objective = objective or ("hybrid" if variance == "learned" else "simple")
        _check(prediction, variance, objective, gamma, getattr(schedule, "T", 2))
        self.outputs = 2 if variance == "learned" else 1
        if isinstance(schedule, Discrete):
            self.noise_range = (0.0, float(schedule.T))  # T-L6
            if objective == "vlb" and plumbing.get("times") is None:
                plumbing["times"] = LossSecondMoment(schedule.T)
        super().__init__(model, schedule, **plumbing)
        self.prediction, self.variance, self.objective = PREDICTIONS[prediction], variance, objective
        self.vlb_weight, self.gamma = vlb_weight, gamma
        self.T = self.schedule.T

    def loss(self, x_0: Tensor, t: Tensor, cond: Cond = None, noise: Noise = torch.randn_like) -> Tensor:
        """L_simple, Eq. 14, Algorithm 1; or T L_{k-1}, Eq. 5, in bits per dimension; or both. [B, ...], [B] -> [B]."""
        alpha, sigma = self.coefficients(t, x_0)  # sqrt(abar_k), sqrt(1 - abar_k)
        eps = noise(x_0)
        x_t = alpha * x_0 + sigma * eps  # Eq. 4
        output, v = self.read(x_t, t, cond)
        target = self.prediction.target(x_0, eps, alpha, sigma)
        simple = self.weight(t) * (target - output).square().flatten(1).mean(1)
        if self.objective == "simple":
            return simple
        if self.objective == "hybrid":
            output = output.detach()  # T-K3
        vlb = self.T * self.term(x_0, self.prediction.x_0(x_t, output, alpha, sigma), v, t)  # T-K5
        return vlb if self.objective == "vlb" else simple + self.vlb_weight * vlb

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        return self._moments(x_t, t, cond)[0]

    def read(self, x_t: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, Tensor | None]:
        """The network's prediction and, if it learns the variance, v in [0, 1]."""
        output = self.network(x_t, self.c_noise(t), cond)
        if self.variance != "learned":
            return output, None
        output, v = output.chunk(2, dim=1)
        return output, (v + 1) / 2

    def c_noise(self, t: Tensor) -> Tensor:
        """The 0-based index t T - 1 in float64, an exact integer at levels, clamped at 0."""
        index = t.double() * self.T - 1
        nearest = index.round()
        return torch.where((index - nearest).abs() < 1e-3, nearest, index).clamp(min=0)

    def weight(self, t: Tensor) -> Tensor | float:
        """min(SNR, gamma) for the error of x_0, in terms of the error of what is predicted."""
        if self.gamma is None:
            return 1.0
        snr = self.schedule.log_snr(t).exp()
        return snr.clamp(max=self.gamma) * self.prediction.x_0_error(snr)

    def term(self, x_0: Tensor, denoised: Tensor, v: Tensor | None, t: Tensor) -> Tensor:
        """L_{k-1} of the bound at t = k / T, the decoder at k = 1, in bits per dimension. [B]."""
        k = (t.double() * self.T).round()
        q = bound.posterior(self.schedule, k, x_0, self.variance)
        log_variance = q.log_variance(self.variance, v)
        divergence = bound.divergence(x_0, denoised, q, log_variance)
        return torch.where(k == 1, bound.decoder(x_0, denoised, log_variance), divergence)

    @torch.no_grad()
    def variational_bound(self, x_0: Tensor, noise: Noise = torch.randn_like, cond: Cond = None) -> Bound:
        """Every term of the bound, Eq. 5, in bits per dimension, without clipping (T-K4).

        x_0 has 256 levels in [-1, 1]. Each x_k is drawn afresh: noise(x_0) is called for k = T, ..., 1.
        """
        terms = []
        for k in range(self.T, 0, -1):
            t = torch.full((len(x_0),), k / self.T, dtype=torch.float64, device=x_0.device)
            alpha, sigma = self.coefficients(t, x_0)
            denoised, v = self._moments(alpha * x_0 + sigma * noise(x_0), t, cond)
            terms.append(self.term(x_0, denoised, v, t))
        prior, steps = bound.prior(self.schedule, x_0), torch.stack(terms, dim=1)
        return Bound(prior, steps, prior + steps.sum(1))

    def _moments(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> tuple[Tensor, Tensor | None]:
        output, v = self.read(x_t, t, cond)
        return self.prediction.x_0(x_t, output, *self.coefficients(t, x_t)), v

    @property
    def moments(self) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """(x_t, t, cond) -> (E[x_0 | x_t], v), by one call. Only where v is learned: that is how a sampler knows."""
        if self.variance != "learned":
            raise AttributeError("moments")
        return self._moments

    def default_times(self) -> TimeSampler:
        return Levels()


def _check(prediction: str, variance: str, objective: str, gamma: float | None, T: int) -> None:
    """Refuses values that do not exist, and pairs that would train something silently wrong."""
    for name, value, choices in (
        ("prediction", prediction, PREDICTIONS),
        ("variance", variance, VARIANCES),
        ("objective", objective, OBJECTIVES),
    ):
        if value not in choices:
            raise ValueError(f"DDPM: {name} must be one of {', '.join(choices)}, got {value!r}.")
    if variance == "learned" and objective == "simple":
        raise ValueError("DDPM: objective=simple teaches no variance: choose hybrid or vlb, or a fixed variance.")
    if variance != "learned" and objective == "hybrid":
        raise ValueError("DDPM: objective=hybrid learns a variance: choose variance=learned, or objective=simple.")
    if gamma is not None and (gamma <= 0 or objective == "vlb"):
        raise ValueError(f"DDPM: gamma must be a positive number, of objective simple or hybrid, got {gamma}.")
    if T < 2:
        raise ValueError(f"DDPM needs a schedule of at least 2 steps, got T={T}.")
