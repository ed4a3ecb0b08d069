"""Where a run's numbers and pictures go: `metrics.csv` always, Weights & Biases if asked, and nothing ever waits.

The x-axis is images seen, so that runs with different batch sizes compare (T-D13).
"""

import functools

import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from triptych.scalars import AXIS, read_csv
from triptych.tracking.metrics_csv import MetricsCSV
from triptych.tracking.thread import aside
from triptych.tracking.weights_and_biases import (
    Wandb,
    connect,
    finish,
    how_to_look,
    log_evaluation,
    logged_in,
    name_of,
)

__all__ = [
    "AXIS",
    "MetricsCSV",
    "Wandb",
    "aside",
    "connect",
    "finish",
    "how_to_look",
    "log_evaluation",
    "log_picture",
    "log_scalars",
    "logged_in",
    "name_of",
    "read_csv",
]


@rank_zero_only
def log_picture(loggers: list[Logger], name: str, picture: torch.Tensor, step: int, images_seen: int) -> None:
    """A uint8 [C, H, W] picture to every logger that takes pictures."""
    for logger in loggers:
        if isinstance(logger, Wandb):
            aside.call(logger, functools.partial(logger.log_picture, name, picture, step, images_seen))


@rank_zero_only
def log_scalars(loggers: list[Logger], metrics: dict[str, float], step: int, images_seen: int) -> None:
    """Scalars to every logger, with the x-axis."""
    row = {**metrics, AXIS: images_seen}
    for logger in loggers:
        if isinstance(logger, MetricsCSV):
            logger.log_metrics(row, step)
        else:
            aside.call(logger, functools.partial(logger.log_metrics, dict(row), step))
