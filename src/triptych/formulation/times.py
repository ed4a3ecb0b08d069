"""At which times a network is trained: distributions of t, each draw with the weight that its loss carries.

A draw starts from uniform numbers u, one per image, which a transformation carries to t. So every distribution can be
stratified over the global batch (T-D11): image i of G, whatever its rank, then gets the i-th of G equal slices of
[0, 1), all shifted by one common random offset (Kingma et al. 2021. arXiv:2107.00630, App. I.1).
"""

from abc import ABC, abstractmethod

import torch
import torch.distributed
from torch import Tensor, nn

from triptych.noise import Step
from triptych.schedule import Schedule


class TimeSampler(nn.Module, ABC):
    """Draws (t, weight).

    Args:
        stratified: spread u evenly over the global batch instead of drawing it independently.
    """

    def __init__(self, stratified: bool = False) -> None:
        super().__init__()
        self.stratified = stratified
        self._kept: tuple[Tensor, Tensor] | None = None  # a schedule's levels, and the same on another device

    @torch.no_grad()
    def draw(self, schedule: Schedule, count: int, step: Step) -> tuple[Tensor, Tensor]:
        """Times for this rank's share of a step: t [B] and weight [B], float32, on the step's device."""
        if self.stratified:
            offset = torch.rand((), generator=step.shared(), device=step.device)
            index = torch.arange(count, device=step.device) + step.rank * count
            u = (offset + index / (count * step.world)) % 1
        else:
            u = torch.rand(count, generator=step.local("times"), device=step.device)
        t, weight = self(schedule, u)
        return t.float(), weight.float()

    @abstractmethod
    def forward(self, schedule: Schedule, u: Tensor) -> tuple[Tensor, Tensor]:
        """u [B] in [0, 1) -> t [B] and weight [B]; the mean weight is 1 where the draw is not meant to reweight."""

    def update(self, schedule: Schedule, t: Tensor, loss: Tensor) -> None:
        """Learns from the losses [B] at t [B]; most distributions do not."""

    def _levels(self, schedule: Schedule, device: torch.device) -> Tensor:
        """The schedule's levels on the device. Copied there once: each copy makes the host wait for the device."""
        levels = schedule.levels
        if levels is None:
            raise ValueError(
                f"{type(self).__name__} needs a schedule with levels, but {type(schedule).__name__} is continuous: "
                "use Uniform."
            )
        if self._kept is None or self._kept[0] is not levels or self._kept[1].device != device:
            self._kept = levels, levels.to(device)
        return self._kept[1]


class Levels(TimeSampler):
    """Uniform over the levels of a discrete schedule, t_1 ... t_T: as DDPM and NCSN train."""

    def forward(self, schedule: Schedule, u: Tensor) -> tuple[Tensor, Tensor]:
        levels = self._levels(schedule, u.device)
        return levels[(u.double() * len(levels)).long().clamp(max=len(levels) - 1)], torch.ones_like(u)


class LossSecondMoment(TimeSampler):
    """Levels drawn in proportion to sqrt(E[L_t^2]). Nichol & Dhariwal 2021. arXiv:2102.09672, Eq. 18.

        p_t = (1 - uniform) sqrt(E[L_t^2]) / sum_s sqrt(E[L_s^2]) + uniform / T,        weight = 1 / (T p_t)

    The expectation is over the last `history` losses of each level, on all ranks; uniform until each level has as many.
    They are buffers, hence in the checkpoint and the same on every rank (T-K5).

    Args:
        T: number of levels.
    """

    losses: Tensor
    counts: Tensor

    def __init__(self, T: int, history: int = 10, uniform: float = 0.001, stratified: bool = False) -> None:
        super().__init__(stratified)
        if not 0 < uniform <= 1:
            raise ValueError(f"uniform, the share of levels drawn uniformly, must be in (0, 1], got {uniform}.")
        self.uniform = uniform
        self.register_buffer("losses", torch.zeros(T, history))
        self.register_buffer("counts", torch.zeros(T, dtype=torch.int64))

    def forward(self, schedule: Schedule, u: Tensor) -> tuple[Tensor, Tensor]:
        levels, (T, history) = self._levels(schedule, self.losses.device), self.losses.shape
        if len(levels) != T:
            raise ValueError(f"LossSecondMoment has T={T}, but the schedule has {len(levels)} levels: use the same.")
        root = self.losses.double().square().mean(1).sqrt()
        ready = (self.counts >= history).all() & (root.sum() > 0)
        p = torch.where(ready, (1 - self.uniform) * root / root.sum() + self.uniform / T, 1 / T)
        k = torch.searchsorted(p.cumsum(0), u.to(p.device, torch.float64), right=True).clamp(max=T - 1)
        return levels[k], 1 / (T * p[k])

    @torch.no_grad()
    def update(self, schedule: Schedule, t: Tensor, loss: Tensor) -> None:
        """Replaces the oldest losses of each level, in one pass without a scalar read."""
        t, loss = _gathered(t.double()), _gathered(loss.to(self.losses.dtype)).nan_to_num(0.0, 0.0, 0.0)  # T-D7
        T, history = self.losses.shape
        levels = self._levels(schedule, t.device)
        level, order = torch.searchsorted((levels[1:] + levels[:-1]) / 2, t).sort(stable=True)
        first = torch.searchsorted(level, level)
        nth = torch.arange(len(level), device=level.device) - first  # of its level in this batch
        total = torch.searchsorted(level, level, right=True) - first
        slot = level * history + (self.counts[level] + nth) % history
        slot = torch.where(nth >= total - history, slot, T * history)  # overwritten by later ones of this very batch
        ring = torch.cat([self.losses.flatten(), self.losses.new_zeros(1)])
        self.losses.copy_(ring.scatter(0, slot, loss[order])[:-1].view(T, history))
        self.counts.index_add_(0, level, torch.ones_like(level))


class Uniform(TimeSampler):
    """t ~ U[t_min, t_max], as score SDEs train. Song et al. 2021. arXiv:2011.13456, Eq. 7.

    Args:
        t_min, t_max: None takes the schedule's.
    """

    def __init__(self, t_min: float | None = None, t_max: float | None = None, stratified: bool = False) -> None:
        super().__init__(stratified)
        self.t_min, self.t_max = t_min, t_max

    def forward(self, schedule: Schedule, u: Tensor) -> tuple[Tensor, Tensor]:
        t_min = schedule.t_min if self.t_min is None else self.t_min
        t_max = schedule.t_max if self.t_max is None else self.t_max
        return t_min + u.double() * (t_max - t_min), torch.ones_like(u)


class UniformLogSNR(TimeSampler):
    """log-SNR uniform between the schedule's ends, weighted back to uniform t.

    It is the importance sampling for likelihood weighting (T-K13): there the loss at t carries g^2 / sigma^2, which is
    -d log-SNR / dt, so a density proportional to it makes the weighted loss constant in scale. Song, Durkan, Murray,
    Ermon 2021. arXiv:2101.09258, Sec. 5.

    Args:
        reweight: False leaves the weight at 1, i.e. trains with another emphasis instead of lower variance.
    """

    def __init__(self, stratified: bool = False, reweight: bool = True) -> None:
        super().__init__(stratified)
        self.reweight = reweight

    def forward(self, schedule: Schedule, u: Tensor) -> tuple[Tensor, Tensor]:
        ends = torch.linspace(schedule.t_min, schedule.t_max, 2, dtype=torch.float64, device=u.device)  # no copy
        clean, noisy = schedule.log_snr(ends)
        t = schedule.time(clean + u.double() * (noisy - clean))
        if not self.reweight:
            return t, torch.ones_like(u)
        slope = schedule.diffusion_sq(t) / schedule.sigma(t).square()  # -d log-SNR / dt
        return t, (clean - noisy) / slope / (schedule.t_max - schedule.t_min)


class LogNormal(TimeSampler):
    """log(sigma / alpha) ~ N(P_mean, P_std^2). Karras et al. 2022. arXiv:2206.00364, Table 1 and Sec. 5."""

    def __init__(self, P_mean: float = -1.2, P_std: float = 1.2, stratified: bool = False) -> None:
        super().__init__(stratified)
        self.P_mean, self.P_std = P_mean, P_std

    def forward(self, schedule: Schedule, u: Tensor) -> tuple[Tensor, Tensor]:
        return schedule.time(-2 * (self.P_mean + self.P_std * _normal(u))), torch.ones_like(u)


class LogitNormal(TimeSampler):
    """logit(t) ~ N(mean, std^2). Esser et al. 2024. arXiv:2403.03206, Sec. 3.1."""

    def __init__(self, mean: float = 0.0, std: float = 1.0, stratified: bool = False) -> None:
        super().__init__(stratified)
        self.mean, self.std = mean, std

    def forward(self, schedule: Schedule, u: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.sigmoid(self.mean + self.std * _normal(u))
        return t.clamp(max=schedule.t_max), torch.ones_like(u)


def _gathered(values: Tensor) -> Tensor:
    """[B] of each rank -> [world * B], in the same order on every rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    parts = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def _normal(u: Tensor) -> Tensor:
    """Uniform numbers -> standard normal ones, in float64 and away from the infinite ends."""
    return torch.special.ndtri(u.double().clamp(2**-25, 1 - 2**-25))
