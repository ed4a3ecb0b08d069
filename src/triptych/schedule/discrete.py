"""Discrete-time schedules of DDPM: a table of beta_1 ... beta_T, here as functions of a continuous t = k / T.

    alpha_bar_k = prod_{i <= k} (1 - beta_i),  alpha(k / T) = sqrt(alpha_bar_k),  sigma(k / T) = sqrt(1 - alpha_bar_k)

Between levels log alpha_bar is linear in t, from log alpha_bar(0) = 0: exact at the levels, monotone in between,
and f, g^2 are constant on each interval (T-L1, T-L4, T-L8).
"""

import torch
from torch import Tensor

from triptych.schedule.base import Schedule, in_float64


class Discrete(Schedule):
    """The schedule of a table of betas. Build one with `LinearBeta`, `QuadraticBeta` or `Cosine`, or from any table.

    Attributes:
        beta: beta_1 ... beta_T, float64 [T].
        T: number of noising steps.
    """

    t_min = 1e-5
    levels: Tensor

    def __init__(self, beta: Tensor) -> None:
        super().__init__()
        beta = torch.as_tensor(beta, dtype=torch.float64)
        if beta.ndim != 1 or len(beta) < 1 or not bool(((beta > 0) & (beta < 1)).all()):
            raise ValueError(f"beta must be a table of numbers between 0 and 1 (exclusive), got {beta}.")
        self.T = len(beta)
        table = torch.cat([beta.new_zeros(1), torch.log1p(-beta).cumsum(0)])  # log alpha_bar_k, k = 0, ..., T
        self.beta = beta
        self.levels = torch.arange(1, self.T + 1, dtype=torch.float64) / self.T
        self._log_alpha_bars = {table.device: table}

    def _table(self, device: torch.device) -> Tensor:
        """The table on a device; not a buffer, since it stays float64 whatever .to(dtype) says."""
        if device not in self._log_alpha_bars:
            self._log_alpha_bars[device] = self._log_alpha_bars[self.beta.device].to(device)
        return self._log_alpha_bars[device]

    def _position(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """t T in float64, and the interval k it lies in, k < t T <= k + 1; a t that means a level is snapped to it."""
        position = t.double() * self.T
        off = position.detach() - position.detach().round()
        position = position - off * (off.abs() <= torch.finfo(t.dtype).eps * self.T)
        return position, (position.detach().ceil().long() - 1).clamp(0, self.T - 1)

    def _log_alpha_bar(self, t: Tensor) -> Tensor:
        table = self._table(t.device)
        position, k = self._position(t)
        left, right = table[k], table[k + 1]
        return left + (right - left) * (position - k)

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_alpha_bar = self._log_alpha_bar(t)
        variance = -torch.expm1(log_alpha_bar)
        dtype = torch.promote_types(t.dtype, torch.float32)
        return (
            (log_alpha_bar / 2).exp().to(dtype),
            variance.sqrt().to(dtype),
            (log_alpha_bar - variance.log()).to(dtype),
        )

    def alpha(self, t: Tensor) -> Tensor:
        return self.marginal(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self.marginal(t)[1]

    def log_snr(self, t: Tensor) -> Tensor:
        return self.marginal(t)[2]

    def drift(self, t: Tensor) -> Tensor:
        table = self._table(t.device)
        _, k = self._position(t)
        return ((table[k + 1] - table[k]) * (self.T / 2)).to(torch.promote_types(t.dtype, torch.float32))

    def diffusion_sq(self, t: Tensor) -> Tensor:
        return -2 * self.drift(t)  # alpha^2 + sigma^2 = 1

    @in_float64
    def time(self, log_snr: Tensor) -> Tensor:
        table = self._table(log_snr.device)
        log_alpha_bar = -torch.logaddexp(-log_snr, torch.zeros_like(log_snr))  # alpha^2 = sigmoid(log_snr)
        k = (torch.searchsorted(-table, -log_alpha_bar.contiguous()) - 1).clamp(0, self.T - 1)
        left, right = table[k], table[k + 1]
        return ((k + (log_alpha_bar - left) / (right - left)) / self.T).clamp(0, 1)


class LinearBeta(Discrete):
    """beta linear from beta_min to beta_max. Ho, Jain, Abbeel 2020. arXiv:2006.11239, Sec. 4.

    The two ends are those of T = 1000; another T scales them by 1000 / T, which keeps alpha_bar_T (Nichol &
    Dhariwal 2021, arXiv:2102.09672).
    """

    def __init__(self, T: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> None:
        beta_min, beta_max = _scaled(T, beta_min, beta_max)
        super().__init__(torch.linspace(beta_min, beta_max, T, dtype=torch.float64))


class QuadraticBeta(Discrete):
    """sqrt(beta) linear from sqrt(beta_min) to sqrt(beta_max), with the ends scaled as in `LinearBeta`.

    Used by Ho et al. 2020 as an alternative and by Song, Meng, Ermon 2021 (arXiv:2010.02502) for some of their models.
    """

    def __init__(self, T: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> None:
        beta_min, beta_max = _scaled(T, beta_min, beta_max)
        super().__init__(torch.linspace(beta_min**0.5, beta_max**0.5, T, dtype=torch.float64).square())


class Cosine(Discrete):
    """alpha_bar_k = h(k / T) / h(0), h(u) = cos^2((u + s) / (1 + s) pi / 2).

    Nichol & Dhariwal 2021. arXiv:2102.09672, Eq. 17.

    beta is clipped at `beta_clip` (the paper's 0.999), and alpha_bar is the product of the clipped betas.
    """

    def __init__(self, T: int = 1000, s: float = 0.008, beta_clip: float = 0.999) -> None:
        _count(T)
        u = torch.arange(T + 1, dtype=torch.float64) / T
        alpha_bar = ((u + s) / (1 + s) * torch.pi / 2).cos().square()
        super().__init__((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=beta_clip))


def _count(T: int) -> None:
    if not isinstance(T, int) or T < 1:
        raise ValueError(f"T, the number of noising steps, must be a whole number of at least 1, got {T}.")


def _scaled(T: int, beta_min: float, beta_max: float) -> tuple[float, float]:
    _count(T)
    scale = 1000 / T
    if not 0 < beta_min <= beta_max or beta_max * scale >= 1:
        raise ValueError(
            f"beta must rise from beta_min > 0 to beta_max with beta_max * 1000 / T < 1, "
            f"got beta_min={beta_min}, beta_max={beta_max}, T={T}."
        )
    return beta_min * scale, beta_max * scale
