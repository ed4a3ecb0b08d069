"""Telling on disk how far a run is, for whoever looks at its folder: a report, a launcher, a person."""

import platform
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from triptych.callback.checkpoint import device_name
from triptych.callback.clock import images_seen
from triptych.record import code_version
from triptych.status import Reporter


def environment(trainer: Trainer) -> dict[str, Any]:
    """What trains: the code's version, Python's, and how many devices of which kind."""
    device = device_name(trainer.strategy.root_device)
    return code_version() | {"python": platform.python_version(), "devices": f"{trainer.world_size} x {device}"}


class Status(Callback):
    """Writes `status.json` of rank 0: when a phase begins, and every few seconds while training."""

    def __init__(self) -> None:
        self.reporter: Reporter | None = None

    def start(self, folder: Path, trainer: Trainer) -> None:
        """Called on rank 0, before anything long."""
        self.reporter = Reporter(folder, trainer.max_steps)
        self.reporter.write()
        self.reporter.status.environment = environment(trainer)  # for the next time

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._update(trainer, "training")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._update(trainer, "training")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._update(trainer, "evaluating")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._update(trainer, "evaluating")

    @property
    def phase(self) -> str:
        return self.reporter.status.phase if self.reporter else ""

    def end(self, state: str, reason: str, exit_code: int) -> None:
        if self.reporter is not None:
            self.reporter.end(state, reason, exit_code)

    def _update(self, trainer: Trainer, phase: str) -> None:
        if self.reporter is not None:
            self.reporter.update(trainer.global_step, images_seen(trainer), phase)
