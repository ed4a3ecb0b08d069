"""NCSN's annealed Langevin dynamics."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.denoiser import Cond, Denoiser, levels
from triptych.noise import Noise
from triptych.sampler import grid as grids
from triptych.sampler.base import Path, Sampler, combine, snap, standard_normal
from triptych.schedule import Schedule
from triptych.schedule.technique import langevin_step_size


@dataclass(frozen=True, kw_only=True)
class AnnealedLangevin(Sampler):
    """Improved Techniques for Training Score-Based Generative Models. Song & Ermon 2020. arXiv:2006.09011, Algorithm 1.

        x <- x + a_i score + sqrt(2 a_i) z,    steps_per_level times at each sigma_i,
        a_i = step_size sigma_i^2 / sigma_L^2

    The first paper (2019, arXiv:1907.05600, Algorithm 1) writes x + a_i / 2 score + sqrt(a_i) z; its code is the update
    above all the same, so that its published step_size = 2e-5 is ours. Both speak of images in [0, 1]: for [-1, 1] a
    step_size is 4 times theirs, and x starts from U[-1, 1] where theirs starts from U[0, 1] (T-S11, T-S12).

    Attributes:
        steps: number of levels, evenly chosen in log-SNR; None takes all native levels of a discrete schedule.
        steps_per_level: T in the paper.
        step_size: epsilon in the paper; None takes pull sigma_L^2.
        pull: a_i / sigma_i^2, how far a step goes to x_0; None takes the best by Technique 4 for these levels and
            steps_per_level. That is derived for data of no width, and mixes too slowly for others: on a Gaussian, 22
            levels of 5 steps from 10 to 0.02 leave samples 17 % too wide, and 232 levels 6 %, where 0.5 leaves 8 % and
            0.6 %, the final denoising included.
    """

    steps: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    steps_per_level: int = 5
    step_size: float | None = None
    pull: float | None = 0.5
    denoise: str | bool = "tweedie"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.grid, tuple):
            object.__setattr__(self, "steps", len(self.grid))  # here every time is visited
        if not isinstance(self.steps_per_level, int) or self.steps_per_level < 1:
            raise ValueError(f"AnnealedLangevin: steps_per_level must be at least 1, got {self.steps_per_level}.")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"AnnealedLangevin: step_size must be positive, or null, got {self.step_size}.")
        if self.pull is not None and not 0 < self.pull <= 1:
            raise ValueError(f"AnnealedLangevin: pull must be above 0 and at most 1, or null, got {self.pull}.")
        if self.step_size is None and self.pull is None and self.steps == 1:
            raise ValueError("AnnealedLangevin: Technique 4 needs two levels or more: give a step_size for steps=1.")

    def check(self, denoiser: Denoiser) -> None:
        schedule = denoiser.schedule
        if not bool((schedule.alpha(torch.linspace(0, 1, 5, device=schedule.device)) == 1).all()):
            raise ValueError(
                f"AnnealedLangevin needs a schedule with alpha = 1 (geometric, ve, edm); "
                f"{type(schedule).__name__} shrinks the data: choose another sampler, such as predictor_corrector."
            )
        if self.steps is None and schedule.levels is None:
            raise ValueError(
                f"AnnealedLangevin: {type(schedule).__name__} has no levels of its own: "
                "say how many to use, for example sampler.steps=100."
            )

    def start(self, schedule: Schedule, shape: Sequence[int], noise: Noise = torch.randn_like) -> Tensor:
        """U[-1, 1], the paper's U[0, 1] on its images, from the stream's normal numbers. [B, ...]."""
        self.check_start(given=False)
        return torch.erf(standard_normal(shape, noise) / math.sqrt(2))

    def path(self, denoiser: Denoiser) -> Path:
        """The levels, noisy to clean: here the last time is visited, too."""
        schedule = denoiser.schedule
        if self.steps is None:
            times = schedule.levels.double().cpu().flip(0)  # pyright: ignore[reportOptionalMemberAccess]
            times = times[times <= self.t_start]
        else:
            end = schedule.grid_ends[0]
            times = torch.tensor([end], dtype=torch.float64)
            if self.steps > 1:
                times = grids.named(self.grid)(schedule, self.steps - 1, self.t_start, end)
        known = levels(denoiser)
        if known is not None:
            times = snap(times, known, schedule)
            times = times[torch.isin(times, known.double().cpu())]  # without the grid's own end
        return Path.of(schedule, times)

    def epsilon(self, path: Path) -> float:
        """The step size, given in one of two ways, or by Technique 4 for the ratio of this path's levels."""
        if self.step_size is not None:
            return self.step_size
        if self.pull is not None:
            return self.pull * path.sigma[-1] ** 2
        ratio = (path.sigma[0] / path.sigma[-1]) ** (1 / max(1, len(path)))
        return langevin_step_size(path.sigma[-1], ratio, self.steps_per_level)

    def trajectory(
        self, denoiser: Denoiser, x: Tensor, cond: Cond = None, noise: Noise = torch.randn_like
    ) -> Iterator[Tensor]:
        path = self.path(denoiser)
        times = path.batches(x)
        pull = self.epsilon(path) / path.sigma[-1] ** 2  # a_i / sigma_i^2, the same at all levels
        for i, sigma in enumerate(path.sigma):
            for j in range(self.steps_per_level):
                x_0 = self.predict(denoiser, x, times[i], cond)
                x = combine(1 - pull, x, [pull], [x_0])  # score = (x_0 - x) / sigma^2
                if not (self.is_mean(i - 1, path) and j == self.steps_per_level - 1):
                    x.add_(noise(x), alpha=math.sqrt(2 * pull) * sigma)
                yield x
        yield from self.finish(denoiser, x, path, cond)
