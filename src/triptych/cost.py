"""What sampling will cost, before it begins: counted network calls times one that is timed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.denoiser import Cond, Denoiser
from triptych.generate import Counted, Job, evaluating
from triptych.noise import SampleNoise

PATIENCE = 2.0  # seconds a timed call may take


class Still:
    """A denoiser that costs nothing, of the schedule, levels and moments of another: E[x_0 | x_t] = 0."""

    def __init__(self, like: Denoiser) -> None:
        self.schedule = like.schedule
        self.levels: Tensor | None = getattr(like, "levels", None)
        if hasattr(like, "moments"):
            self.moments = self._moments

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        return torch.zeros_like(x_t)

    def _moments(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(x_t), torch.full_like(x_t, 0.5)


@torch.no_grad()
def calls(job: Job) -> int:
    """Network calls a sample, counted on a denoiser that costs nothing: exact but for adaptive solvers."""
    counted = Counted(Still(job.denoiser))
    noise = SampleNoise(job.seed, range(job.first, job.first + 1), job.device)
    x = job.sampler.start(counted.schedule, (1, *job.shape), noise)
    for _ in job.sampler.trajectory(counted, x, None, noise):  # pyright: ignore[reportArgumentType]
        pass
    return counted.calls


@torch.no_grad()
def seconds_a_call(job: Job) -> float:
    """Of one block, timed on the job's device after a warm-up; a smaller block is timed where one takes too long."""
    largest = min(job.block, job.count)

    def timed(size: int) -> float:
        indices = range(job.first, job.first + size)
        x = torch.zeros(size, *job.shape, device=job.device)
        t = torch.full((size,), 0.5, device=job.device)
        if (known := getattr(job.denoiser, "levels", None)) is not None:
            t = t.new_full((size,), float(known[len(known) // 2]))
        cond = job.cond(indices)
        _wait(job)
        began = time.perf_counter()
        job.denoiser(x, t, cond)
        _wait(job)
        return time.perf_counter() - began

    with evaluating(job.denoiser):
        timed(1)  # allocations, kernels, compilation
        size = max(1, min(largest, int(PATIENCE / max(timed(1), 1e-6))))
        if size == largest and torch.device(job.device).type != "cpu":
            timed(size)
        return timed(size) * largest / size


def _wait(job: Job) -> None:
    if torch.device(job.device).type == "cuda":
        torch.cuda.synchronize(job.device)


@dataclass(frozen=True)
class Cost:
    """Of jobs on one checkpoint. `calls`: network calls a sample of each; `work`: samples times calls of each."""

    calls: list[int]
    work: list[int]
    seconds_a_call: float
    seconds: float


def estimate(jobs: Sequence[Job], world: int = 1) -> Cost:
    """The cost of all jobs on `world` devices, of which only the first job's network is timed."""
    counts = [calls(job) for job in jobs]
    work = [n * job.count for n, job in zip(counts, jobs, strict=True)]
    each = seconds_a_call(jobs[0])
    blocks = min(jobs[0].block, jobs[0].count)
    return Cost(counts, work, each, sum(work) / blocks * each / world)


def spoken(seconds: float) -> str:
    """about 5 s, about 3 min 20 s, about 2 h 10 min"""
    whole = round(seconds)
    if whole < 1:
        return "less than a second"
    if whole < 60:
        return f"about {whole} s"
    if whole < 3600:
        return f"about {whole // 60} min {whole % 60} s" if whole < 600 else f"about {round(whole / 60)} min"
    return f"about {whole // 3600} h {whole % 3600 // 60} min"
