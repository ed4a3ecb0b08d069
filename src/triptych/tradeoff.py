"""Quality against cost: several samplers on one checkpoint, as a table and as a picture."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.record import Record

LENGTH = "relative length of the average (sigma_rel)"


@dataclass(frozen=True)
class Point:
    """One sampler's numbers: the settings that tell it from the others, and a record for each metric."""

    settings: dict[str, str]
    records: list[Record]

    def family(self, by_cost: bool = True) -> str:
        """What stays the same along a curve: everything but the number of steps, or the length of the average."""
        along = "sampler.steps" if by_cost else "ema"
        said = [v if k == "sampler" else f"{_short(k)} {v}" for k, v in self.settings.items() if k != along]
        return ", ".join(said) or str((self.records[0].sampler or {}).get("name", "sampler"))


def _short(key: str) -> str:
    return key.removeprefix("sampler.")


def table(points: Sequence[Point]) -> str:
    """A line a sampler: its settings, counted network calls, every value with its spread, images a second."""
    keys = list(points[0].settings)
    metrics = [r.metric for r in points[0].records]
    head = [*map(_short, keys), "NFE", *metrics, "images/s"]
    rows = [head]
    for point in points:
        first = point.records[0]
        values = [f"{r.value:.4g}" + (f" ± {r.spread:.2g}" if r.spread is not None else "") for r in point.records]
        settings = [point.settings.get(key, "") for key in keys]
        rows.append([*settings, str(first.nfe), *values, f"{first.images_per_second or 0:.1f}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    left = len([k for k in keys if k == "sampler"])
    lines = []
    for row in rows:
        sides = [str.ljust] * left + [str.rjust] * (len(row) - left)
        lines.append("  ".join(side(cell, w) for side, cell, w in zip(sides, row, widths, strict=True)).rstrip())
    return "\n".join(lines)


def draw(points: Sequence[Point], index: int, path: Path) -> Path:
    """Each sampler's value of metric number `index` against network calls, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(7, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lengths = _lengths(points)
    families: dict[str, list[tuple[float, Record]]] = {}
    for point, length in zip(points, lengths or [None] * len(points), strict=True):
        record = point.records[index]
        families.setdefault(point.family(not lengths), []).append((length or record.nfe or 1, record))
    markers = "osD^vP*X<>"
    for k, (name, pairs) in enumerate(families.items()):
        pairs = sorted(pairs, key=lambda pair: pair[0])
        records = [record for _, record in pairs]
        x, y = [at for at, _ in pairs], [r.value for r in records]
        spread = [r.spread or 0 for r in records] if any(r.spread for r in records) else None
        axes.errorbar(x, y, spread, label=name, marker=markers[k % len(markers)], ms=5, lw=1.6, capsize=3)
    first = points[0].records[index]
    axes.set_xscale("log")
    axes.set_xticks(_apart([at for pairs in families.values() for at, _ in pairs]))
    values = [p.records[index].value for p in points]
    if min(values) > 0 and max(values) > 8 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    against = first.reference or {}
    axes.set(xlabel=LENGTH if lengths else "network calls a sample (NFE)", ylabel=first.metric)
    where = f"{against.get('dataset')}/{against.get('split')}"
    weights = [first.weights] * (len({p.records[index].weights for p in points}) == 1)
    axes.set_title(", ".join([f"{first.metric} against {where}", *weights]), fontsize=9)
    axes.grid(alpha=0.25, which="both", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png")
    temporary.replace(path)
    return path


def _lengths(points: Sequence[Point]) -> list[float]:
    """Of the averages, where they are what varies, and cost does not; else none."""
    if len({record.nfe for point in points for record in point.records}) > 1:
        return []
    try:
        return [float(point.settings["ema"]) for point in points]
    except (KeyError, ValueError):
        return []


def _apart(values: Sequence[float], ratio: float = 1.18) -> list[float]:
    """Those of the values that stand far enough apart for their labels, the most frequent first."""
    kept: list[float] = []
    for value, _ in Counter(values).most_common():
        if all(max(value, other) >= ratio * min(value, other) for other in kept):
            kept.append(value)
    return kept


class Progress:
    """One bar over several jobs whose costs are known: what is measured now, and the time left for all of them.

    Args:
        work: samples times network calls of each job.
    """

    def __init__(self, work: Sequence[int], shown: bool = True) -> None:
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        more = (TextColumn("{task.fields[rate]}"), TimeRemainingColumn(elapsed_when_finished=True))
        self._bar = Bar(*columns, *more, disable=not shown)
        self._task = self._bar.add_task("", total=sum(work), rate="")
        self._work, self._at = list(work), -1
        self._samples, self._calls, self._begun = 0, 1, time.perf_counter()

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, title: str, calls: int) -> None:
        """The next job, of so many network calls a sample."""
        self._at += 1
        self._samples, self._calls, self._begun = 0, calls, time.perf_counter()
        self._bar.update(self._task, description=title, completed=sum(self._work[: self._at]))

    def say(self, sentence: str) -> None:
        """Prints it above the bar."""
        self._bar.console.print(sentence, markup=False, highlight=False)

    def skip(self, to: int) -> None:
        """So many jobs are behind us, finished or not."""
        self._at = to - 1

    def call(self, size: int, calls: int) -> None:
        self._show(self._samples * self._calls + size * min(calls, self._calls))

    def block(self, size: int, calls: int) -> None:
        self._samples += size
        self._show(self._samples * self._calls)

    def _show(self, work: int) -> None:
        rate = work / self._calls / max(1e-9, time.perf_counter() - self._begun)
        done = sum(self._work[: self._at]) + min(work, self._work[self._at])
        self._bar.update(self._task, completed=done, rate=f"{rate:.1f} images/s")


def name_of(settings: dict[str, str], sampler: Any) -> str:
    """A sampler in a few words: dpm_solver, steps 20."""
    said = [v if k == "sampler" else f"{_short(k)} {v}" for k, v in settings.items()]
    return ", ".join(said) or type(sampler).__name__
