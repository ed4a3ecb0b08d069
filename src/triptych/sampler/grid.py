"""Time grids: exactly steps + 1 strictly decreasing float64 times, the first `start`, the last `end`.

A grid may be given to a sampler as one of these functions, by its name, or as an explicit list of times (T-L9).
A point of infinite log-SNR cannot be spaced in log-SNR: the grid is then spaced between `schedule.grid_ends`, and the
infinite point takes the place of the first one, or follows the last one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from triptych.schedule import Schedule

Grid = Callable[..., Tensor]  # (schedule, steps, start=1.0, end=0.0) -> [steps + 1]


def log_snr(schedule: Schedule, steps: int, start: float = 1.0, end: float = 0.0) -> Tensor:
    """Uniform in log-SNR. Lu et al. 2022. arXiv:2206.00927, Sec. 3.4. Right on every schedule, hence the default."""
    return _spaced(schedule, steps, start, end, lambda noisy, clean, u: noisy + u * (clean - noisy))


def karras(schedule: Schedule, steps: int, start: float = 1.0, end: float = 0.0, rho: float = 7.0) -> Tensor:
    """Uniform in (sigma / alpha)^(1 / rho). Karras et al. 2022. arXiv:2206.00364, Eq. 5."""

    def space(noisy: Tensor, clean: Tensor, u: Tensor) -> Tensor:
        noisy, clean = (-noisy / 2 / rho).exp(), (-clean / 2 / rho).exp()  # sigma_ve^(1 / rho)
        return -2 * rho * (noisy + u * (clean - noisy)).log()

    return _spaced(schedule, steps, start, end, space)


def uniform(schedule: Schedule, steps: int, start: float = 1.0, end: float = 0.0) -> Tensor:
    """Uniform in t. On DDPM's schedules, the levels T, T - T / steps, ... of its respaced samplers."""
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def quadratic(schedule: Schedule, steps: int, start: float = 1.0, end: float = 0.0, fraction: float = 0.8) -> Tensor:
    """Uniform in sqrt(t). Song, Meng, Ermon 2021. arXiv:2010.02502, App. D.2; in its code over 0.8 T (T-L12).

    There the first network call is at 0.8 T, on a sample of the prior; here it is at `start`, where the prior belongs.
    """
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    times = end + (start - end) * fraction * u.square()
    times[0] = start
    return times


def levels(schedule: Schedule, steps: int, start: float = 1.0, end: float = 0.0) -> Tensor:
    """Native levels of a discrete schedule, evenly chosen by their index, then `end`."""
    if schedule.levels is None:
        raise ValueError(f"grid=levels needs a schedule with levels; {type(schedule).__name__} is continuous.")
    native = schedule.levels.cpu().double()
    native = native[(native > end) & (native <= start + 1e-12)]
    if steps > len(native):
        raise ValueError(f"grid=levels has {len(native)} levels between {end} and {start}: steps={steps} is too many.")
    index = torch.linspace(len(native) - 1, 0, steps + 1 if steps == 1 else steps, dtype=torch.float64)[:steps]
    times = torch.cat([native[index.round().long()], torch.tensor([end], dtype=torch.float64)])
    times[0] = start
    return times


def explicit(schedule: Schedule, steps: int, start: float = 1.0, end: float = 0.0, *, times: Sequence[float]) -> Tensor:
    """The given times, whose number, start and end the sampler has taken over; no noisier than `start`, nor cleaner
    than `end`, between which alone it works."""
    grid = torch.tensor(times, dtype=torch.float64)
    grid[0], grid[-1] = min(times[0], start), max(times[-1], end)
    listed(grid.tolist())
    return grid


def listed(times: Sequence[float]) -> tuple[float, ...]:
    """A list of times, as floats; or a ValueError that says what such a list is."""
    plain = all(isinstance(t, (int, float)) and not isinstance(t, bool) for t in times)
    if not plain or len(times) < 2 or times[0] > 1 or times[-1] < 0 or any(s >= t for t, s in pairwise(times)):
        raise ValueError(f"A list of times must fall strictly, from 1 (noise) to 0 (data), got {list(times)}.")
    return tuple(map(float, times))


NAMED: dict[str, Grid] = {g.__name__: g for g in (log_snr, karras, uniform, quadratic, levels)}


def named(grid: Grid | str | Sequence[float]) -> Grid:
    """A grid from a function, its name, or a list of times."""
    if callable(grid):
        return grid
    if isinstance(grid, str):
        if grid not in NAMED:
            raise ValueError(f"There is no grid called {grid!r}: choose {', '.join(NAMED)}, or give a list of times.")
        return NAMED[grid]
    return partial(explicit, times=listed(grid))


def _spaced(
    schedule: Schedule,
    steps: int,
    start: float,
    end: float,
    space: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """`space(log_snr_noisy, log_snr_clean, u)` maps u from 0 to 1 to log-SNRs between the two ends."""
    cleanest, noisiest = schedule.grid_ends
    clean, noisy = max(end, cleanest), min(start, noisiest)
    if clean >= noisy:  # a start cleaner than the schedule's own grid
        return uniform(schedule, steps, start, end)
    points = steps + 1 if clean == end else steps
    ends = schedule.log_snr(torch.tensor([noisy, clean], dtype=torch.float64, device=schedule.device)).detach().cpu()
    u = torch.linspace(0, 1, points, dtype=torch.float64)
    times = schedule.time(space(ends[0], ends[1], u).to(schedule.device)).detach().cpu()
    times[0] = start
    times = torch.cat([times, times.new_full((steps + 1 - points,), end)])
    times[-1] = end
    return times
