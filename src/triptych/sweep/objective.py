"""What a search measures: which numbers a run will log, and what they are in the end."""

import math
import re
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from torchmetrics import MetricCollection

from triptych.callback import Evaluate, Likelihood
from triptych.record import read, short_count
from triptych.sweep import progress
from triptych.sweep.feasible import as_chosen

OF_THE_RECORD = ("nfe", "images_per_second")  # fields of the record of the evaluation at the end
ALWAYS = ("val/loss", "val/eps_mse", "train/loss")  # and their bins
FINAL, FAST = "final", "fast"


class Logged:
    """The numbers that a run of this config will log, by name.

    Attributes:
        at_the_end: measured once. meanwhile: measured again and again, so that a trial can be pruned by them.
    """

    def __init__(self, config: DictConfig) -> None:
        self.at_the_end: list[str] = []
        self.meanwhile: list[str] = list(ALWAYS)
        self.aliases: dict[str, str] = {}
        self.rare = ""
        with as_chosen(config):
            callbacks = [instantiate(node) for node in config.callback.values() if node is not None]
        most = config.trainer.max_steps * config.global_batch_size
        for callback in callbacks:
            if isinstance(callback, Evaluate):
                self._evaluate(callback, most if most > 0 else None)
            if isinstance(callback, Likelihood) and callback.num_images:
                self.at_the_end.append(f"{callback.name}_{short_count(callback.num_images)}")

    def _evaluate(self, callback: Evaluate, most: int | None) -> None:
        metric = callback.metric
        parts = list(metric.keys(keep_base=True)) if isinstance(metric, MetricCollection) else [callback.name]
        if callback.num_samples:
            self.at_the_end += [f"{part}_{short_count(callback.num_samples)}" for part in parts]
            self.at_the_end += OF_THE_RECORD
            self.aliases[FINAL] = self.at_the_end[0]
        if callback.every.images:
            fast = [f"{part}_{short_count(callback.fast_num_samples)}" for part in parts]
            self.aliases[FAST] = fast[0]
            self.meanwhile += fast
            if most is not None and callback.every.images >= most:
                self.rare = (
                    f"The evaluation during training is due every {callback.every.images} images, and a trial sees "
                    f"{most}: give callback.evaluate.every_images={max(1, most // 5)}, or less."
                )

    def resolve(self, name: str, meanwhile: bool = False) -> str:
        """The column of metrics.csv that a name stands for; refuses what will never be logged."""
        column = self.aliases.get(name, name)
        names = self.meanwhile if meanwhile else self.at_the_end + self.meanwhile
        base = re.sub(r"/[^/]*_", "_", column)  # precision_recall/recall_1k, of a metric with two numbers
        bins = any(column.startswith(f"{always}/log_snr_") for always in ALWAYS)
        if column in names or bins or (base in names and not column.startswith(("val/", "train/"))):
            if column in self.meanwhile and column not in ALWAYS and self.rare:
                raise ValueError(self.rare)
            return column
        allowed = [a for a in (FINAL, FAST) if a in self.aliases and (not meanwhile or self.aliases[a] in names)]
        when = " again and again during training" if meanwhile else ""
        raise ValueError(f"Nothing called {name!r} is logged{when}: choose {', '.join([*allowed, *names])}.")


def final_value(folder: Path, column: str) -> float | None:
    """The last value of a column in a run's folder; None if there is none, or none that is a number."""
    if column in OF_THE_RECORD:
        found = [r.get(column) for r in read(folder / "evaluations") if r.get("sampler")]
    else:
        found: list[Any] = [row[column] for row in progress.rows(folder / "metrics.csv") if column in row]
    value = found[-1] if found else None
    return float(value) if value is not None and math.isfinite(value) else None


def values_so_far(folder: Path, column: str) -> list[float]:
    """Every value of a column that a running trial has logged, in order."""
    return [row[column] for row in progress.rows(folder / "metrics.csv") if column in row]
