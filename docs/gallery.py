"""Draws the gallery of samplers: python docs/gallery.py

One pair of figures on two modes in the plane, whose E[x_0 | x_t] is known in closed form, so that what is seen is the
sampler and nothing else: the ways from the same noise to data, and the error against the number of network calls.
"""

import math
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

from oracles import MODES, WEIGHTS, WIDTH, Mixture, two_modes  # noqa: E402 (the tests' own denoisers)

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
    "ProbabilityFlow, RK4, 25 steps": ProbabilityFlow(steps=25, method="rk4"),
    "Ancestral, 250 steps": Ancestral(steps=250),
    "DDIM with eta = 1, 250 steps": DDIM(steps=250, eta=1.0),
    "EulerMaruyama, 250 steps": EulerMaruyama(steps=250),
    "ReverseDiffusion, 250 steps": ReverseDiffusion(steps=250),
    "PredictorCorrector, 100 steps": PredictorCorrector(steps=100),
    "StochasticHeun, 50 steps": StochasticHeun(steps=50, grid="karras"),
    "SDE-DPMSolver 2M, 50 steps": DPMSolver(steps=50, sde=True),
    "AnnealedLangevin, 60 levels of 5 (VE)": AnnealedLangevin(steps=60),
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
}
INK, FAINT = "#1f2933", "#c5ccd3"
COLOURS = ["#1b6ca8", "#d1495b", "#3a7d44", "#e08e0b", "#6a4c93", "#00798c", "#8d5524", "#5c677d"]


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
    noise = SampleNoise(4, range(count))
    x = denoiser.schedule.prior_std * noise(torch.empty(count, 2)).double()
    return torch.stack([x, *sampler.trajectory(denoiser, x, noise=noise)])


@torch.no_grad()
def trajectories() -> Figure:
    drawing, axes = figure(11, 12.4, 4, 4)
    for ax, (title, sampler) in zip(axes.flat, TRAJECTORIES.items(), strict=False):
        schedule: Schedule = VE(0.02, 3.0) if isinstance(sampler, AnnealedLangevin) else VP()
        denoiser = two_modes(schedule)
        contours(ax, denoiser)
        way = walk(sampler, denoiser, 24)
        for k in range(way.shape[1]):
            ax.plot(*way[:, k].T, color=COLOURS[0], lw=0.5, alpha=0.55)
        ax.scatter(*way[0].T, s=7, color=FAINT, zorder=3)
        ax.scatter(*way[-1].T, s=9, color=COLOURS[1], zorder=4)
        ax.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[-2, 0, 2], yticks=[-2, 0, 2], aspect="equal")
        ax.set_title(f"{title}\n{denoiser.calls} calls", fontsize=8.5, color=INK)
    for ax in axes.flat[len(TRAJECTORIES) :]:
        ax.set_axis_off()
    return drawing


def modes_error(x: Tensor) -> float:
    """How far the samples' modes are from the data's: the larger error of width and of mean, in widths of a mode."""
    mode = torch.cdist(x, torch.tensor(MODES, dtype=torch.float64)).argmin(1)
    errors = []
    for k in range(len(WEIGHTS)):
        mine = x[mode == k]
        errors.append(abs(float(mine.var(0).mean().sqrt()) / WIDTH - 1))
        errors.append(float((mine.mean(0) - torch.tensor(MODES[k])).norm()) / WIDTH)
    return max(errors)


@torch.no_grad()
def errors() -> Figure:
    drawing, ((left, right),) = figure(11, 4.6, 1, 2)
    schedule = VP()
    x = SampleNoise(0, range(64))(torch.empty(64, 2)).double()
    exact = Heun(steps=20_000)(two_modes(schedule), x)
    for k, (name, make) in enumerate(SOLVERS.items()):
        points = []
        for n in [6, 9, 13, 18, 26, 37, 52, 74, 104, 148, 209, 296, 418]:
            denoiser = two_modes(schedule)
            error = (make(n)(denoiser, x) - exact).square().mean().sqrt()
            points.append((denoiser.calls, float(error)))
        points = [(calls, error) for calls, error in points if calls <= 450]
        left.loglog(*zip(*points, strict=True), color=COLOURS[k], lw=1.4, marker="o", ms=3, label=name)
    left.set(xlabel="network calls", ylabel="RMS distance to the exact flow", ylim=(1e-8, 3))
    left.set_title("Deterministic: the same noise, the exact ending", fontsize=9.5, color=INK)
    for k, (name, make) in enumerate(STOCHASTIC.items()):
        points = []
        for n in [10, 14, 20, 28, 40, 57, 80, 113, 160, 226, 320]:
            denoiser, noise = two_modes(schedule), torch.Generator().manual_seed(0)
            start = torch.randn(8000, 2, generator=noise, dtype=torch.float64)
            draw = lambda like, noise=noise: torch.randn(like.shape, generator=noise, dtype=like.dtype)  # noqa: E731
            points.append((denoiser, modes_error(make(n)(denoiser, start, noise=draw))))
        points = [(denoiser.calls, error) for denoiser, error in points]
        right.loglog(*zip(*points, strict=True), color=COLOURS[k], lw=1.4, marker="o", ms=3, label=name)
    right.axhline(1.5 / math.sqrt(8000 * 0.3), color=FAINT, lw=1, ls="--")
    right.text(11, 1.55 / math.sqrt(8000 * 0.3), "noise of 8000 samples", fontsize=7, color="#7b8794", va="bottom")
    right.set(xlabel="network calls", ylabel="worst error of a mode's width or mean, in widths")
    right.set_title("Stochastic: the law of 8000 samples", fontsize=9.5, color=INK)
    for ax in (left, right):
        ax.grid(which="major", color="#e5e9ed", lw=0.6)
        ax.legend(fontsize=7.5, frameon=False)
    return drawing


def main() -> None:
    for name, draw in (("gallery_trajectories", trajectories), ("gallery_errors", errors)):
        draw().savefig(HERE / f"{name}.png", dpi=110)
        print(f"docs/{name}.png")


if __name__ == "__main__":
    main()
