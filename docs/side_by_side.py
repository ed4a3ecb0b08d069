"""Sample grids of several runs side by side: python docs/side_by_side.py out=docs/digits.png NAME=<run> …

Each run draws with its own sampler from the same seed; the names become the titles.
"""

import sys
from pathlib import Path

from hydra.utils import instantiate
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from triptych import run
from triptych.generate import Job
from triptych.image import grid, to_numpy

SIDE = 8  # samples along each side of a grid


def main() -> None:
    given = dict(a.split("=", 1) for a in sys.argv[1:])
    out = Path(given.pop("out", "docs/digits.png"))
    figure = Figure(figsize=(3.1 * len(given), 3.5), dpi=110, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    for k, (name, path) in enumerate(given.items()):
        config = run.read_config(path, run.read_checkpoint(path))
        dataset = run.build(config["dataset"])
        job = Job(run.load(path), instantiate(config["sampler"]), dataset.shape, SIDE**2, seed=0)
        axes = figure.add_axes((k / len(given) + 0.004, 0.01, 1 / len(given) - 0.008, 0.86))
        axes.imshow(to_numpy(grid(job.collect(), SIDE)), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(name.replace("_", " "), fontsize=14)
        axes.set_axis_off()
    canvas.print_figure(str(out))
    print(out)


if __name__ == "__main__":
    main()
