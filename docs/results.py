"""Fills docs/results.md and draws its pictures from runs and their records: python docs/results.py <run> <run> …

With --table the pictures stay as they are. The runs are those of the fashion_* experiments, measured by evaluate.py;
what is not in a run's folder is left out. A file time.txt in it, with the seconds of CPU of each call of train.py, a
line each, gives the training's time.
"""

import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from triptych import run
from triptych.generate import Job
from triptych.image import grid, to_numpy
from triptych.record import read
from triptych.sampler import DPMSolver
from triptych.scalars import read_csv

HERE = Path(__file__).resolve().parent
ROWS, COLUMNS = 6, 8  # of a grid
NAMES = {
    "fashion_ddpm": "DDPM",
    "fashion_ncsn": "NCSN",
    "fashion_vp": "Score SDE, VP",
    "fashion_sub_vp": "Score SDE, sub-VP",
    "fashion_ve": "Score SDE, VE",
    "fashion_edm": "EDM",
    "fashion_flow": "Flow matching",
}


class Result:
    """What a run's folder says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = run.read_checkpoint(folder)
        self.config = run.read_config(folder, self.checkpoint)
        self.name = str(self.config["name"])
        self.title = NAMES[self.name]
        self.formulation = run.load(folder)
        self.dataset = run.build(self.config["dataset"])
        self.records = read(folder / "evaluations")
        self.images_seen = int(self.checkpoint["global_step"]) * int(self.config["global_batch_size"])
        times = folder / "time.txt"
        self.seconds = sum(map(float, times.read_text().split())) if times.exists() else None

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.formulation.model.parameters())

    def samples(self, sampler: Any) -> torch.Tensor:
        """The first samples of seed 0, [N, C, H, W] in uint8: the same noise whatever the formulation."""
        return Job(self.formulation, sampler, self.dataset.shape, ROWS * COLUMNS, seed=0, block=250).collect()

    def errors(self) -> list[tuple[float, float]]:
        """(log-SNR, mean squared error of eps) of the held-out images, when last measured."""
        prefix, found = "val/eps_mse/log_snr_", []
        for row in read_csv(self.folder / "metrics.csv"):
            bins = {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix) and v not in (None, "")}
            found = [
                (sum(map(float, name.split("_to_"))) / 2, float(v)) for name, v in bins.items() if "_to_" in name
            ] or found
        return sorted(found)

    def cells(self, record: dict[str, Any]) -> list[str]:
        """The columns of the table that a measurement fills."""
        spread = f" ± {record['spread']:.2f}" if record.get("spread") is not None else ""
        sampler = record["sampler"]
        return [
            f"{sampler['name']}, {sampler['steps']} steps",
            str(record["nfe"]),
            f"{record['value']:.2f}{spread}",
        ]


def pictures(results: list[Result], sampler: Any, out: Path, title: str) -> None:
    """The grids of all runs, side by side, and as many real images last."""
    panels = {r.title: r.samples(sampler if sampler is not None else run.build(r.config["sampler"])) for r in results}
    panels["Real images"] = torch.from_numpy(results[0].dataset.images("test")[: ROWS * COLUMNS].copy())
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    width, height, head, top = 3.2, 3.2 * ROWS / COLUMNS, 0.35, 0.3  # inches; of a grid, its title, the figure's
    total = (height + head) * down + top
    figure = Figure(figsize=(width * across, total), dpi=110, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    for k, (name, images) in enumerate(panels.items()):
        row, column = divmod(k, across)
        bottom = 1 - (top + (row + 1) * (height + head)) / total
        axes = figure.add_axes((column / across + 0.004, bottom, 1 / across - 0.008, height / total))
        axes.imshow(to_numpy(grid(images, COLUMNS)), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(name, fontsize=11)
        axes.set_axis_off()
    figure.text(0.5, 1 - 0.2 / total, title, ha="center", fontsize=9, color="0.35")
    canvas.print_figure(str(out))
    print(out)


def levels(results: list[Result], out: Path) -> None:
    """The error of eps at each noise level: the one quantity that all formulations share."""
    figure = Figure(figsize=(7.2, 3.6), dpi=110, facecolor="white", layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    for result in results:
        points = result.errors()
        if points:
            axes.plot(*np.array(points).T, marker="o", markersize=3, linewidth=1.4, label=result.title)
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.set_xlabel("log-SNR: clean on the left, noise on the right")
    axes.set_ylabel("mean squared error of ε")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    canvas.print_figure(str(out))
    print(out)


def table(results: list[Result]) -> list[str]:
    """A row a measurement of the newest weights; columns in which nothing was measured are left out."""
    names = ["formulation", "schedule", "images", "sampler", "calls", "fd_fashion_mnist_1k", "bits/dim", "CPU min"]
    rows: list[list[str]] = []
    for result in results:
        records = [r for r in result.records if r["images_seen"] == result.images_seen]
        distances = [r for r in records if r["metric"] == "fd_fashion_mnist_1k"]
        bits = [r for r in records if r["metric"].startswith("bits_per_dim")][-1:]
        schedule = str(result.config["schedule"]["_target_"]).rpartition(".")[2]
        first = [result.title, schedule, f"{result.images_seen:,}"]
        last = [
            f"{bits[0]['value']:.2f} ± {bits[0]['standard_error']:.2f}" if bits else "",
            "" if result.seconds is None else f"{result.seconds / 60:.1f}",
        ]
        measured = sorted(map(result.cells, distances), key=lambda c: "DPMSolver" not in c[0])
        for cells in measured or [["not measured", "", ""]]:
            rows.append([*first, *cells, *last])
            first, last = [""] * 3, [""] * 2
    kept = [k for k in range(len(names)) if any(row[k] for row in rows)]
    lines = [[names[k] for k in kept], ["---"] * len(kept), *([row[k] for k in kept] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def machine() -> str:
    model = next((x.partition(":")[2].strip() for x in open("/proc/cpuinfo") if x.startswith("model name")), "")
    return f"{model or platform.processor()}, one thread, torch {torch.__version__}"


def main() -> None:
    order = list(NAMES)
    drawn = "--table" not in sys.argv
    paths = [Path(a) for a in sys.argv[1:] if a != "--table"]
    results = sorted(map(Result, paths), key=lambda r: order.index(r.name))
    if not results:
        raise SystemExit(__doc__)
    if drawn:
        pictures(
            results,
            DPMSolver(steps=20, clip=1.0),
            HERE / "fashion.png",
            "48 samples each, seed 0: DPM-Solver++ 2M, 20 network calls",
        )
        pictures(
            results,
            None,
            HERE / "fashion_native.png",
            "48 samples each, seed 0: each by its own sampler, at most 100 network calls",
        )
        levels(results, HERE / "fashion_levels.png")
    page = HERE / "results.md"
    text = page.read_text()
    seen = sorted({r.images_seen for r in results})
    commits = {str(r["code"]["commit"])[:7] for result in results for r in result.records}
    filled = {
        "table": "\n".join(["", *table(results), ""]),
        "machine": f"{machine()}; {results[0].parameters:,} parameters; {' to '.join(f'{n:,}' for n in seen)} images, "
        f"{max(seen) / 60000:.2g} times the training set; code {', '.join(sorted(commits))}",
    }
    for key, value in filled.items():
        begin, end = f"<!-- {key} -->", f"<!-- /{key} -->"
        before, _, rest = text.partition(begin)
        text = before + begin + value + end + rest.partition(end)[2]
    page.write_text(text)
    print(page)


if __name__ == "__main__":
    main()
