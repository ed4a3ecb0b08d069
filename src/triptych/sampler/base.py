"""What every sampler is: a frozen set of numbers, and a generator that walks from noise to data.

A sampler sees a denoiser (E[x_0 | x_t], its schedule, perhaps its levels) and nothing else. All methods here are linear
in what they know, so a step from t to s < t is a weighted sum of x_t, of denoised images and of fresh noise, whose
weights depend on the schedule alone: `path` computes the schedule's coefficients once, in float64, as Python floats, so
that the loop makes no scalar read and hardly any kernel.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.denoiser import Cond, Denoiser, levels
from triptych.noise import Noise
from triptych.sampler import grid as grids
from triptych.schedule import Schedule

DENOISE = ("mean", "tweedie", "none")

Row = tuple[float, list[float], float]  # a step's weights of x_t, of x_0 and those before it, newest first, and of z


@dataclass(frozen=True)
class Path:
    """The times of a trajectory, t_0 > t_1 > ... > t_n, and the schedule's coefficients there. Floats of float64."""

    t: tuple[float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    log_snr: tuple[float, ...]

    @classmethod
    def of(cls, schedule: Schedule, times: Tensor) -> "Path":
        times = times.double().to(schedule.device)
        return cls(*map(tuple, torch.stack([times, *schedule.marginal(times)]).detach().tolist()))

    def __len__(self) -> int:
        """Number of steps, one less than the number of times."""
        return len(self.t) - 1

    def batches(self, x: Tensor) -> tuple[Tensor, ...]:
        """The times as the denoiser takes them: n + 1 of [B], on x's device, in x's dtype but at least float32."""
        return batches(self.t, x)


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """From noise to images.

    Attributes:
        steps: intervals of the time grid; None where the denoiser's own levels are the grid, or where a tolerance
            chooses the steps. Network calls are counted elsewhere: a step may make several.
        grid: where the times are, a function of `triptych.sampler.grid`, its name, or a list of times; a list also says
            how many `steps` there are, and where they start.
        clip: clamp E[x_0 | x_t] to [-clip, clip]; eps is recomputed from the clipped x_0.
        dynamic_threshold: percentile in (0, 1) of |x_0| per sample beyond which it is clamped and rescaled to [-1, 1].
            Saharia et al. 2022. arXiv:2205.11487, Sec. 2.3. Pixels only (T-S16).
        t_start: the time at which x is given; below 1, x comes from images, by `start_from`, and sampling is SDEdit.
        denoise: what becomes of the noise that is left at the end: "mean" returns the mean of the last step without its
            noise, "tweedie" makes one more call and returns E[x_0 | x], "none" leaves it (T-S1).
    """

    steps: int
    grid: grids.Grid | str | Sequence[float] = grids.log_snr
    clip: float | None = None
    dynamic_threshold: float | None = None
    t_start: float = 1.0
    denoise: str | bool = "mean"

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not (callable(self.grid) or isinstance(self.grid, str)):
            self._follow(grids.listed(self.grid))
        if self.steps is not None and (not isinstance(self.steps, int) or self.steps < 1):
            raise ValueError(f"{name}: steps must be a whole number of at least 1, got {self.steps}.")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"{name}: clip must be positive, or null for no clipping, got {self.clip}.")
        if self.dynamic_threshold is not None and not 0 < self.dynamic_threshold < 1:
            raise ValueError(f"{name}: dynamic_threshold is a share between 0 and 1, got {self.dynamic_threshold}.")
        if self.clip is not None and self.dynamic_threshold is not None:
            raise ValueError(f"{name}: choose clip or dynamic_threshold, not both.")
        if not 0 < self.t_start <= 1:
            raise ValueError(f"{name}: t_start must be above 0 and at most 1, got {self.t_start}.")
        if isinstance(self.denoise, bool):
            object.__setattr__(self, "denoise", "tweedie" if self.denoise else "none")
        if self.denoise not in DENOISE:
            raise ValueError(f"{name}: denoise must be one of {', '.join(DENOISE)}, got {self.denoise!r}.")
        grids.named(self.grid)

    def check(self, denoiser: Denoiser) -> None:  # noqa: B027 (most samplers refuse nothing)
        """Refuses a denoiser that this sampler cannot work with, by a ValueError that names what would work."""

    def start(self, schedule: Schedule, shape: Sequence[int], noise: Noise = torch.randn_like) -> Tensor:
        """x at t = 1: prior_std * N(0, I), unless the paper differs. shape is [B, ...] -> float32 [B, ...]."""
        self.check_start(given=False)
        return schedule.prior_std * standard_normal(shape, noise)

    def start_from(self, denoiser: Denoiser, x_0: Tensor, noise: Noise = torch.randn_like) -> Tensor:
        """x at the first time of the grid, from given images: alpha x_0 + sigma z. [B, ...] -> [B, ...].

        SDEdit. Meng et al. 2021. arXiv:2108.01073, Sec. 3.
        """
        self.check_start(given=True)
        path = self.path(denoiser)
        return combine(path.alpha[0], x_0, [path.sigma[0]], [noise(x_0)])

    def check_start(self, given: bool) -> None:
        """Refuses to begin inside the diffusion without images to begin with, and at its noisy end with images."""
        if not given and self.t_start < 1:
            raise ValueError(
                f"{type(self).__name__}: t_start={self.t_start:g} begins with given images (SDEdit), not with noise: "
                "sample.py takes them as init=<picture, folder or npz>; or leave t_start at 1."
            )
        if given and self.t_start == 1:
            raise ValueError(
                f"{type(self).__name__}: at t_start=1 nothing is left of the given images: say from which time below 1 "
                "to begin, for example sampler.t_start=0.5."
            )

    @abstractmethod
    def trajectory(
        self, denoiser: Denoiser, x: Tensor, cond: Cond = None, noise: Noise = torch.randn_like
    ) -> Iterator[Tensor]:
        """Yields x after every step, a new tensor each time, the last one the sample. x [B, ...] is at `t_start`."""

    def __call__(self, denoiser: Denoiser, x: Tensor, cond: Cond = None, noise: Noise = torch.randn_like) -> Tensor:
        """x [B, ...] at `t_start` -> samples [B, ...], without gradients and without keeping the way."""
        self.check(denoiser)
        with torch.no_grad():
            for x in self.trajectory(denoiser, x, cond, noise):  # noqa: B007, B020 (constant memory)
                pass
        return x

    def _follow(self, times: tuple[float, ...]) -> None:
        """Takes the number of steps and the start of a list of times."""
        if self.t_start not in (1.0, times[0]):
            raise ValueError(
                f"{type(self).__name__}: the list of times starts at {times[0]:g}, but t_start={self.t_start:g}: "
                "leave t_start out, the list says it."
            )
        for name, value in {"grid": times, "steps": len(times) - 1, "t_start": times[0]}.items():
            object.__setattr__(self, name, value)

    # What the samplers' loops are made of.

    def span(self, schedule: Schedule) -> tuple[float, float]:
        """The first and the last time of the grid."""
        return self.t_start, 0.0

    def path(self, denoiser: Denoiser) -> Path:
        """The grid on the denoiser's schedule, snapped without duplicates to its levels if it knows no other times."""
        schedule = denoiser.schedule
        times = grids.named(self.grid)(schedule, self.steps, *self.span(schedule))
        known = levels(denoiser)
        if known is not None:
            times = snap(times, known, schedule)
        return Path.of(schedule, times)

    def predict(self, denoiser: Denoiser, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """E[x_0 | x_t], clipped as asked; never changes what the denoiser returned."""
        return self.limit(denoiser(x, t, cond))

    def limit(self, x_0: Tensor) -> Tensor:
        """x_0 clipped, or dynamically thresholded, as asked."""
        if self.clip is not None:
            return x_0.clamp(-self.clip, self.clip)
        if self.dynamic_threshold is not None:
            bound = torch.quantile(x_0.flatten(1).abs().float(), self.dynamic_threshold, dim=1).clamp(min=1)
            bound = bound.to(x_0.dtype).reshape(-1, *[1] * (x_0.ndim - 1))
            return x_0.clamp(-bound, bound) / bound
        return x_0

    def walk(
        self, denoiser: Denoiser, x: Tensor, path: Path, rows: Sequence[Row], cond: Cond, noise: Noise
    ) -> Iterator[Tensor]:
        """The loop of every method that makes one call a step: x_s = a x_t + sum_k b_k x_0(k) + std z."""
        times = path.batches(x)
        memory = max(len(weights) for _, weights, _ in rows) - 1
        past: list[Tensor] = []  # x_0, newest first
        for i, (a, weights, std) in enumerate(rows):
            past = [self.predict(denoiser, x, times[i], cond), *past[:memory]]
            x = combine(a, x, weights, past)
            if std > 0 and not self.is_mean(i, path):
                x.add_(noise(x), alpha=std)
            yield x
        yield from self.finish(denoiser, x, path, cond)

    def is_mean(self, i: int, path: Path) -> bool:
        """Whether step i is the last one and returns its mean (T-L2, T-S1)."""
        return i == len(path) - 1 and self.denoise == "mean"

    def finish(self, denoiser: Denoiser, x: Tensor, path: Path, cond: Cond) -> Iterator[Tensor]:
        """The Tweedie step at the end, if asked for and if there is noise left there."""
        if self.denoise == "tweedie" and path.sigma[-1] > 0:
            yield self.predict(denoiser, x, path.batches(x)[-1], cond)


def standard_normal(shape: Sequence[int], noise: Noise) -> Tensor:
    """N(0, I) from the stream, float32, on the stream's device if it says which."""
    like = torch.empty(*shape, device=getattr(noise, "device", None))
    return torch.randn_like(like) if noise is torch.randn else noise(like)


def batches(times: Sequence[float], x: Tensor) -> tuple[Tensor, ...]:
    """Times as a denoiser takes them: each [B], on x's device, in x's dtype but at least float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.tensor(times, dtype=torch.float64).to(x.device, dtype)[:, None].expand(-1, len(x)).unbind()


def snap(times: Tensor, known: Tensor, schedule: Schedule) -> Tensor:
    """Times -> the nearest known times in log-SNR, each once, then the grid's own end if it is cleaner."""
    device = schedule.device
    known = known.double().cpu()
    wanted, have = (schedule.log_snr(t.to(device)).detach().cpu().clamp(min=-1e6) for t in (times, known))
    nearest = known[(wanted[wanted < torch.inf, None] - have).abs().argmin(1)]
    snapped = torch.unique_consecutive(nearest)
    end = times[-1:]
    return torch.cat([snapped, end]) if end < snapped[-1] else snapped


def combine(a: float, x: Tensor, weights: Sequence[float], others: Sequence[Tensor]) -> Tensor:
    """a x + sum_k weight_k other_k, a new tensor: one kernel a term, and none for a = 1. [B, ...] each."""
    first = 0
    if a == 1 and weights:
        total, first = torch.add(x, others[0], alpha=weights[0]), 1
    else:
        total = torch.mul(x, a)
    for k in range(first, len(weights)):
        total.add_(others[k], alpha=weights[k])
    return total
