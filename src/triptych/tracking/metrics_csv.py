"""metrics.csv, the numbers of a run that nothing else is needed to read."""

import csv
import io
import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from triptych import disk
from triptych.scalars import AXIS


class MetricsCSV(Logger):
    """Every scalar of a run, one row a step: `step, images_seen, time, ...`.

    What is logged at a step after its row was written is added to that row. On resume the rows after the checkpoint's
    step are cut, so that there are neither gaps nor duplicates. A new column rewrites the file, by a rename. Rows that
    cannot be written, because the disk is full, are kept until they can.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] = []
        self._row: dict[str, Any] = {}  # of the current step
        self._start: int | None = None  # where it begins in the file; None if it is not there
        self._changed = False
        self._waiting: list[dict[str, Any]] = []  # earlier rows that could not be written

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return "csv"

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config has a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        step = int(step or 0)
        if self._row and self._row["step"] != step:
            self.save()
            if self._changed:
                self._waiting.append(self._row)
            self._row, self._start = {}, None
        self._row |= {"step": step, "time": round(time.time(), 3)} | metrics
        self._changed = True

    @rank_zero_only
    def save(self) -> None:
        """Writes the row of the current step, and those that wait."""
        with disk.forgiving("metrics.csv cannot be written"):
            while self._waiting:
                self._append(self._waiting[0])
                del self._waiting[0]
            if self._changed:
                self._start = self._append(self._row, self._start)
                self._changed = False

    @rank_zero_only
    def cut(self, step: int) -> None:
        """Forgets everything after an optimizer step, from which a run is about to continue."""
        if not self.path.exists():
            return
        self._read_columns()
        rows = self._rewrite(self._columns, step)
        if rows and int(float(rows[-1]["step"])) == step:
            kept = {name: value for name, value in rows[-1].items() if value not in ("", None)}
            self._row = kept | {"step": step}
            self._start = self.path.stat().st_size - len(self._line(rows[-1]))

    def finalize(self, status: str) -> None:
        self.save()

    def _append(self, row: dict[str, Any], start: int | None = None) -> int:
        """Adds a row, in the place of the last one if that begins at `start`; returns where it begins."""
        if not self._columns and self.path.exists():
            self._read_columns()
        new = [name for name in row if name not in self._columns]
        if new:
            columns = self._columns + sorted(new, key=lambda n: (n not in ("step", AXIS, "time"), n))
            self._rewrite(columns, None if start is None else int(row["step"]) - 1)
            start = None
        with self.path.open("r+b") as file:
            begin = file.seek(0, os.SEEK_END) if start is None else start
            file.truncate(begin)
            file.seek(begin)
            try:
                file.write(self._line(row))
                file.flush()
            except OSError:  # no half of a row
                file.truncate(begin)
                raise
        return begin

    def _line(self, row: dict[str, Any]) -> bytes:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._columns).writerow(row)
        return text.getvalue().encode()

    def _read_columns(self) -> None:
        with self.path.open(newline="") as file:
            self._columns = next(csv.reader(file), [])

    def _rewrite(self, columns: list[str], up_to: int | None = None) -> list[dict[str, str]]:
        text = self.path.read_text() if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1].splitlines()  # a crash may have left half a line
        rows = [r for r in csv.DictReader(whole) if up_to is None or int(float(r["step"])) <= up_to]
        with disk.replacing(self.path, newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        self._columns = columns
        return rows
