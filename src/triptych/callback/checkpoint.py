"""Checkpoints: written whole or not at all, often enough, and always before anything that may fail."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO

from triptych import disk
from triptych.callback.clock import Agreement, Every, Steps


class AtomicIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file, syncs it to the disk and renames it: a reader never sees half of one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with disk.replacing(path, "wb", durable=True) as file:
            torch.save(checkpoint, file)


class Checkpoint(Callback):
    """Keeps `checkpoints/last.ckpt` fresh, and milestones if asked.

    Args:
        every_images: images between two saves; null for none but the last.
        every_minutes: the same in minutes of training.
        milestone_images: keep a copy that is never overwritten, every so many images.
    """

    def __init__(
        self,
        every_images: int | None = None,
        every_minutes: float | None = 10.0,
        milestone_images: int | None = None,
    ) -> None:
        self.every, self.milestones, self.every_minutes = Every(every_images), Every(milestone_images), every_minutes
        self.steps, self.agreement = Steps(), Agreement()
        self._saved_at, self._saved_step = time.monotonic(), -1

    @staticmethod
    def io() -> CheckpointIO:
        """The plugin that the Trainer needs for atomic saves."""
        return AtomicIO()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps.start(trainer)
        self.agreement.start(trainer)
        self.every.start(trainer)
        self.milestones.start(trainer)
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not self.steps.advanced(trainer):
            return
        late = self.every_minutes is not None and self.agreement(
            trainer, time.monotonic() - self._saved_at > 60 * self.every_minutes
        )
        if self.milestones.due(trainer):
            self.save(trainer, f"step={trainer.global_step}.ckpt")
            self.milestones.done(trainer)
        if (self.every.due(trainer) or late) and trainer.global_step != trainer.max_steps:
            self.save(trainer)
            self.every.done(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._saved_step != trainer.global_step:
            self.save(trainer)

    def save(self, trainer: Trainer, name: str = "last.ckpt") -> Path:
        """Called on every rank."""
        path = Path(trainer.default_root_dir) / "checkpoints" / name
        trainer.save_checkpoint(path, weights_only=False)
        if name == "last.ckpt":
            self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        return path
