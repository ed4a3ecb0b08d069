"""Draws the gallery of samplers: python docs/gallery.py

Two figures on data whose E[x_0 | x_t] is known in closed form, so that what is seen is the sampler and nothing else:
the ways from the same noise to two modes in the plane, and the error against the number of network calls.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent / "tests")  # in place of docs/, so that `triptych` is the package

from oracles import Mixture, gaussian, two_modes  # noqa: E402 (the tests' own denoisers)

from triptych.noise import SampleNoise  # noqa: E402
from triptych.sampler import (  # noqa: E402
    DDIM,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    Sampler,
    StochasticHeun,
    UniPC,
)
from triptych.schedule import VE, VP, Schedule  # noqa: E402

TRAJECTORIES: dict[str, Sampler] = {
    "DDIM, 50 steps": DDIM(steps=50),
    "Heun, 18 steps": Heun(steps=18, grid="karras"),
    "DPMSolver 2M, 20 steps": DPMSolver(steps=20),
    "DPMSolver 3M, 20 steps": DPMSolver(steps=20, order=3),
    "UniPC 2, 20 steps": UniPC(steps=20),
    "ProbabilityFlow RK4, 25 steps": ProbabilityFlow(steps=25, method="rk4"),
    "Ancestral, 250 steps": Ancestral(steps=250),
    "DDIM, eta = 1, 250 steps": DDIM(steps=250, eta=1.0),
    "EulerMaruyama, 250 steps": EulerMaruyama(steps=250),
    "ReverseDiffusion, 250 steps": ReverseDiffusion(steps=250),
    "PredictorCorrector, 100 steps": PredictorCorrector(steps=100),
    "StochasticHeun, 50 steps": StochasticHeun(steps=50, grid="karras"),
    "SDE-DPMSolver 2M, 50 steps": DPMSolver(steps=50, sde=True),
    "AnnealedLangevin, 60 x 5": AnnealedLangevin(steps=60),
}
SOLVERS = {
    "DDIM": lambda n: DDIM(steps=n),
    "Heun": lambda n: Heun(steps=n),
    "DPMSolver 2M": lambda n: DPMSolver(steps=n),
    "DPMSolver 3M": lambda n: DPMSolver(steps=n, order=3),
    "UniPC 2": lambda n: UniPC(steps=n),
    "UniPC 3": lambda n: UniPC(steps=n, order=3),
    "ProbabilityFlow Heun": lambda n: ProbabilityFlow(steps=n, method="heun"),
    "ProbabilityFlow RK4": lambda n: ProbabilityFlow(steps=n, method="rk4"),
    "ProbabilityFlow, adaptive": lambda n: ProbabilityFlow(rtol=30 / n**4, atol=30 / n**4, denoise="tweedie"),
}
STOCHASTIC = {
    "Ancestral": lambda n: Ancestral(steps=n),
    "Ancestral, fixed large": lambda n: Ancestral(steps=n, variance="fixed_large"),
    "EulerMaruyama": lambda n: EulerMaruyama(steps=n),
    "ReverseDiffusion": lambda n: ReverseDiffusion(steps=n),
    "PredictorCorrector": lambda n: PredictorCorrector(steps=n),
    "StochasticHeun": lambda n: StochasticHeun(steps=n),
    "SDE-DPMSolver 2M": lambda n: DPMSolver(steps=n, sde=True),
    "DDIM": lambda n: DDIM(steps=n),
    "AnnealedLangevin, pull = 0.5": lambda n: AnnealedLangevin(steps=n),
    "AnnealedLangevin, Technique 4": lambda n: AnnealedLangevin(steps=n, pull=None),
}
INK, FAINT = "#1f2933", "#c5ccd3"
COLOURS = ["#1b6ca8", "#d1495b", "#3a7d44", "#e08e0b", "#6a4c93", "#00798c", "#8d5524", "#5c677d", "#b0339b", "#9aa637"]


def figure(width: float, height: float, rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    drawing = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = np.atleast_2d(drawing.subplots(rows, columns))
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8, colors=INK)
    return drawing, axes


def contours(ax: Axes, denoiser: Mixture) -> None:
    """The density of the data."""
    u = torch.linspace(-1.2, 1.2, 121, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(u, u, indexing="xy"), -1).reshape(-1, 1, 2)
    square = (points - denoiser.points).square().sum(-1)
    density = (denoiser.log_weights - square / (2 * denoiser.std**2)).exp().sum(-1).reshape(121, 121)
    ax.contourf(u, u, density, levels=[0.05 * 0.7, 0.3 * 0.7, 2.0], colors=["#f3e3b5", "#e9c46a"])


def walk(sampler: Sampler, denoiser: Mixture, count: int) -> Tensor:
    """The states of `count` samples that start from the same noise whatever the sampler, [steps + 1, count, 2]."""
    noise = SampleNoise(1, range(count))
    x = denoiser.schedule.prior_std * noise(torch.empty(count, 2)).double()
    return torch.stack([x, *sampler.trajectory(denoiser, x, noise=noise)])


@torch.no_grad()
def trajectories() -> Figure:
    """The ways of a few samples, and the ends of many."""
    drawing, axes = figure(10, 7.1, 3, 5)
    for ax, (title, sampler) in zip(axes.flat, TRAJECTORIES.items(), strict=False):
        schedule: Schedule = VE(0.02, 3.0) if isinstance(sampler, AnnealedLangevin) else VP()
        denoiser = two_modes(schedule)
        contours(ax, denoiser)
        way = walk(sampler, denoiser, 200)
        smooth = float((way[1:] - way[:-1]).norm(dim=-1).sum(0).mean()) < 3
        ax.scatter(*way[-1].T, s=2, color=COLOURS[1], alpha=0.6, linewidths=0, zorder=2)
        for k in range(12 if smooth else 2):
            colour = COLOURS[0] if smooth else COLOURS[2 * k]
            ax.plot(*way[:, k].T, color=colour, lw=0.8 if smooth else 0.6, alpha=0.85)
            ax.scatter(*way[0, k], s=14, color="white", edgecolors=colour, linewidths=0.8, zorder=4)
            ax.scatter(*way[-1, k], s=14, color=colour, zorder=4)
        ax.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), xticks=[], yticks=[], aspect="equal")
        for spine in ax.spines.values():
            spine.set(visible=True, color=FAINT)
        ax.set_title(f"{title}\n{denoiser.calls} network calls", fontsize=8.5, color=INK)
    for ax in axes.flat[len(TRAJECTORIES) :]:
        ax.set_axis_off()
    return drawing


def law_error(sampler: Sampler, steps: int) -> tuple[int, float]:
    """Network calls, and the relative error of the standard deviation of samples of N(0.3, 0.2^2), without chance.

    On Gaussian data a step is affine in x and z, so the sample is a weighted sum of random numbers. Row 0 of the batch
    carries the mean, row 1 the weight of the start, the others the weight of one random number each.
    """
    langevin = isinstance(sampler, AnnealedLangevin)
    denoiser = gaussian(VE(0.02, 10.0) if langevin else VP(), 0.3, 0.2)
    x = torch.zeros(5 * steps + 2, 1, dtype=torch.float64)
    x[1] = 3**-0.5 if langevin else 1  # of U[-1, 1], of N(0, 1)
    rows = iter(range(2, len(x)))

    def noise(like: Tensor) -> Tensor:
        z = torch.zeros_like(like)
        z[next(rows)] = 1
        return z

    y = sampler(denoiser, x, noise=noise)
    std = float((y[1:] - y[0]).square().sum().sqrt())
    return denoiser.calls, abs(std / 0.2 - 1)


@torch.no_grad()
def errors() -> Figure:
    drawing, ((left, right),) = figure(11, 4.6, 1, 2)
    schedule = VP()
    x = SampleNoise(0, range(64))(torch.empty(64, 2)).double()
    exact = Heun(steps=10_000)(two_modes(schedule), x)
    for k, (name, make) in enumerate(SOLVERS.items()):
        points = []
        for n in [6, 9, 13, 18, 26, 37, 52, 74, 104, 148, 209, 296, 418]:
            denoiser = two_modes(schedule)
            error = (make(n)(denoiser, x) - exact).square().mean().sqrt()
            points.append((denoiser.calls, float(error)))
        points = [(calls, error) for calls, error in points if calls <= 450]
        left.loglog(*zip(*points, strict=True), color=COLOURS[k], lw=1.4, marker="o", ms=3, label=name)
    left.set(xlabel="network calls", ylabel="RMS distance to the exact flow", ylim=(1e-8, 3))
    left.set_title("Deterministic, two modes: the same noise, the exact ending", fontsize=9.5, color=INK)
    for k, (name, make) in enumerate(STOCHASTIC.items()):
        counts = [10, 14, 20, 28, 40, 57, 80, 113, 160, 226, 320, 450]
        if "Langevin" in name:
            counts = [3, 4, 6, 8, *counts[:-2]]
        points = [law_error(make(n), n) for n in counts]
        right.loglog(*zip(*points, strict=True), color=COLOURS[k], lw=1.4, marker="o", ms=3, label=name)
    right.set(xlabel="network calls", ylabel="relative error of the standard deviation")
    right.set_title("Stochastic, one Gaussian: the exact law of the samples", fontsize=9.5, color=INK)
    for ax in (left, right):
        ax.grid(which="major", color="#e5e9ed", lw=0.6)
        ax.legend(fontsize=7.5, frameon=False)
    return drawing


def main() -> None:
    for name, draw in (("gallery_trajectories", trajectories), ("gallery_errors", errors)):
        draw().savefig(HERE / f"{name}.png", dpi=100, pil_kwargs={"optimize": True})
        print(f"docs/{name}.png")


if __name__ == "__main__":
    main()
