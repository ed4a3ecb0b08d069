"""How far a running trial is, read from the files in its run folder."""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

TAIL = 65_536  # bytes of metrics.csv that are looked at
MEASURED = re.compile(r"(?!train/|val/).*_\d+k?")  # a metric's name ends in its number of samples
BESIDE = ("bits_per_dim", "vlb")  # measured beside the metric that a run is about


@dataclass(frozen=True)
class Progress:
    """The latest numbers of a run. `rate`: images/s of training. `metric`: name and value of the latest one."""

    step: int = 0
    images: int = 0
    rate: float | None = None
    metric: tuple[str, float] | None = None

    def seconds_left(self, steps: int | None) -> float | None:
        """Of training, without evaluations."""
        if not steps or not self.rate or not self.step:
            return None
        return max(0, steps - self.step) * (self.images / self.step) / self.rate


def rows(path: Path, tail: int | None = None) -> list[dict[str, float]]:
    """Whole rows of a metrics.csv that is being written, empty cells left out; only its last bytes if asked."""
    try:
        with path.open("rb") as file:
            header = file.readline().decode()
            start = file.tell()
            if tail:
                end = file.seek(0, io.SEEK_END)
                file.seek(max(start, end - tail))
                if file.tell() > start:
                    file.readline()
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    names = next(csv.reader([header]), [])
    whole = text[: text.rfind("\n") + 1].splitlines()
    found = []
    for cells in csv.reader(whole):
        if len(cells) == len(names):
            found.append({name: float(cell) for name, cell in zip(names, cells, strict=True) if cell})
    return found


def read(folder: Path) -> Progress:
    latest: dict[str, float] = {}
    measured: list[str] = []
    for row in rows(folder / "metrics.csv", TAIL):
        latest |= row
        new = [n for n in row if MEASURED.fullmatch(n)]
        measured = sorted(new, key=lambda n: n.startswith(BESIDE)) or measured
    name = next((n for n in (*measured, "val/loss", "train/loss") if n in latest), None)
    return Progress(
        int(latest.get("step", 0)),
        int(latest.get("images_seen", 0)),
        latest.get("train/images_per_second"),
        (name, latest[name]) if name else None,
    )
