"""Draws the README's first picture: three formulations side by side, from an image to noise and back.

    python docs/panels.py ddpm=<run> ncsn=<run> score_sde=<run> [out=docs/triptych.png]

Each panel is drawn from a run of ours: above, a real digit on its way to noise (alpha x_0 + sigma eps); below, read
from right to left, the run's own sampler on its way from noise to a digit nobody wrote.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from triptych import run
from triptych.generate import Job
from triptych.image import from_uint8

COLUMNS = 6
PANELS = {
    "ddpm": ("DDPM", "noise added in T Markov steps,\nundone by ancestral sampling"),
    "ncsn": ("NCSN", "noise at L levels, climbed down\nby annealed Langevin dynamics"),
    "score_sde": ("Score SDE", "noise by an SDE, undone by its\nreverse: predictor and corrector"),
}


def shown(x: torch.Tensor) -> np.ndarray:
    """x_t [H, W] as grey values: scaled so that noise, however strong, stays in the range."""
    return (x / max(1.0, 1.4 * float(x.std()))).clamp(-1, 1).numpy()


def panel(path: str, digit: int, which: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """Forward pictures, backward pictures, and the noise level of each column, clean to noisy."""
    config = run.read_config(path, run.read_checkpoint(path))
    formulation = run.load(path)
    dataset, sampler = run.build(config["dataset"]), instantiate(config["sampler"])
    images, labels = dataset.images("train"), dataset.labels("train")
    x_0 = from_uint8(torch.from_numpy(images[np.flatnonzero(labels == digit)[1]].copy()))
    times = sampler.path(formulation)
    job = Job(formulation, sampler, dataset.shape, 16, seed=seed, block=16)
    states = list(job.trajectory(range(16)))
    a_level = max(1, (len(states) - 1) // len(times.t)) if len(states) > len(times.t) else 1  # Langevin steps a level
    noise_to_signal = np.array(times.sigma) / np.array(times.alpha)
    finite = noise_to_signal > 0
    wanted = np.geomspace(max(noise_to_signal[finite].min(), 0.05), noise_to_signal.max(), COLUMNS - 1)
    picks = [int(np.abs(np.log(np.maximum(noise_to_signal, 1e-9)) - np.log(w)).argmin()) for w in wanted]
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed))
    forward, backward, names = [shown(x_0[0])], [shown(states[-1][which, 0])], ["data"]
    for k in picks:
        alpha, sigma = times.alpha[k], times.sigma[k]
        forward.append(shown((alpha * x_0 + sigma * eps)[0]))
        backward.append(shown(states[min(len(states) - 1, k * a_level)][which, 0]))
        names.append(f"σ/α = {sigma / alpha:.{0 if sigma > 10 * alpha else 2}f}")
    return forward, backward, names


def main() -> None:
    given = dict(a.split("=", 1) for a in sys.argv[1:])
    out = Path(given.pop("out", "docs/triptych.png"))
    if set(given) != set(PANELS):
        raise SystemExit(f"give one run for each of {', '.join(PANELS)}: python docs/panels.py ddpm=runs/…")
    figure = Figure(figsize=(18, 5.2), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    for p, (name, (title, subtitle)) in enumerate(PANELS.items()):
        forward, backward, names = panel(given[name], digit=(3, 5, 8)[p], which=(3, 11, 8)[p], seed=7)
        left, width = 0.012 + p * 0.333, 0.31
        figure.text(left + width / 2, 0.93, title, ha="center", fontsize=22, weight="bold")
        figure.text(left + width / 2, 0.815, subtitle, ha="center", fontsize=12.5, color="#555555")
        for row, (pictures, base) in enumerate(((forward, 0.475), (backward, 0.115))):
            for k, picture in enumerate(pictures):
                axes = figure.add_axes((left + k * width / COLUMNS, base, width / COLUMNS * 0.93, 0.26))
                axes.imshow(picture, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                if row == 0:
                    axes.set_title(names[k], fontsize=10, color="#555555")
        arrow = {"arrowstyle": "-|>", "lw": 1.8, "mutation_scale": 18}
        for y, start, end, color in ((0.445, 0.02, 0.98, "#b5541c"), (0.085, 0.98, 0.02, "#1c6fb5")):
            figure.add_artist(_arrow((left + start * width, y), (left + end * width, y), color, arrow))
        figure.text(left + width / 2, 0.395, "forward: image to noise", ha="center", fontsize=11, color="#b5541c")
        figure.text(left + width / 2, 0.03, "reverse: noise to image", ha="center", fontsize=11, color="#1c6fb5")
    canvas.print_figure(str(out))
    print(out)


def _arrow(start: tuple[float, float], end: tuple[float, float], color: str, style: dict):
    from matplotlib.patches import FancyArrowPatch

    return FancyArrowPatch(start, end, color=color, **style)


if __name__ == "__main__":
    main()
