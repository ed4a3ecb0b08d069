"""Averages of the weights from which any other length can be rebuilt after training (post-hoc EMA)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from triptych.callback.clock import Steps, images_seen
from triptych.callback.ema import lerp, parameters
from triptych.posthoc import FOLDER, Snapshot, decay, exponent
from triptych.shard import for_checkpoint, local, placed_like, whole

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class PowerEMA(Callback):
    """Two power-function averages beside the ordinary one, and snapshots of them in <run>/ema (see `posthoc`).

    The average is updated every few optimizer steps with the decay of the images between, which is the average of the
    weights held constant between. Snapshots lie at multiples of an interval that starts at `every_images` and doubles,
    dropping every other one, whenever there would be more than `keep`: how long a run will be need not be known.

    Args:
        lengths: sigma_rel of the averages; the paper's two.
        every_images: the shortest interval between snapshots.
        keep: the largest number of snapshots that lie on the disk.
        every_steps: optimizer steps between two updates.
        dtype: float16, bfloat16 or float32, of the snapshots; the averages themselves are float32.
    """

    def __init__(
        self,
        lengths: Sequence[float] = (0.05, 0.10),
        every_images: int = 9600,
        keep: int = 32,
        every_steps: int = 4,
        dtype: str = "float16",
    ) -> None:
        for name, value in {"every_images": every_images, "keep": keep, "every_steps": every_steps}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"callback.power_ema.{name} must be a whole number of at least 1, got {value}.")
        if dtype not in DTYPES:
            raise ValueError(f"callback.power_ema.dtype must be one of {', '.join(DTYPES)}, got {dtype}.")
        if len(set(lengths)) < 2:
            raise ValueError(f"callback.power_ema.lengths needs two different lengths, got {list(lengths)}.")
        self.gammas = {float(length): exponent(length) for length in lengths}
        self.every_images, self.keep, self.every_steps, self.dtype = every_images, keep, every_steps, DTYPES[dtype]
        self.steps = Steps()
        self._averages: dict[float, dict[str, Tensor]] = {}
        self._current: list[Tensor] | None = None  # this process's share of the weights, in the same memory
        self._at = 0  # images at the last update
        self._restored: dict[str, Any] = {}
        self._silenced = False

    def interval(self, images: int) -> int:
        """Images between snapshots of a run that is so long."""
        interval = self.every_images
        while images > interval * self.keep:
            interval *= 2
        return interval

    def due(self, images: int, batch: int, now: int | None = None) -> bool:
        """Whether a run that is `now` images long has a snapshot at `images`."""
        interval = self.interval(now or images)
        return images // interval > (images - batch) // interval

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stored = self._restored.get("averages", {})
        if stored and set(stored) != {str(length) for length in self.gammas}:
            raise ValueError(
                f"callback.power_ema.lengths cannot change when a run goes on: it has {', '.join(sorted(stored))}."
            )
        self._averages = {
            length: {
                name: placed_like(stored.get(str(length), {}).get(name, p.detach()), p)
                for name, p in parameters(pl_module).items()
            }
            for length in self.gammas
        }
        self._current = None
        self._at = self._restored.get("at", images_seen(trainer))
        self._restored = {}
        self.steps.start(trainer)
        if trainer.is_global_zero:  # left by a run that was killed after the checkpoint it goes on from
            for snapshot in Snapshot.of(self._folder(trainer)):
                if snapshot.images > images_seen(trainer):
                    snapshot.path.unlink()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not self.steps.advanced(trainer):
            return
        images = images_seen(trainer)
        if trainer.global_step % self.every_steps == 0:
            self._update(self._averages, pl_module, images)
            self._at = images
        if self.due(images, trainer.datamodule.global_batch_size):  # pyright: ignore[reportAttributeAccessIssue]
            self.snapshot(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if images_seen(trainer):
            self.snapshot(trainer, pl_module)

    def snapshot(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the averages of this very step, which may lie between two updates; called on every rank."""
        images = images_seen(trainer)
        averages = self._averages
        if self._at != images:
            averages = {length: {k: v.clone() for k, v in a.items()} for length, a in averages.items()}
            self._update(averages, pl_module, images)
        averages = {length: {k: whole(v) for k, v in average.items()} for length, average in averages.items()}
        if not trainer.is_global_zero:
            return
        batch = trainer.datamodule.global_batch_size  # pyright: ignore[reportAttributeAccessIssue]
        try:
            Snapshot.write(self._folder(trainer), images, averages, self.dtype)
            for old in Snapshot.of(self._folder(trainer)):
                if old.images != images and not self.due(old.images, batch, images):
                    old.path.unlink()
        except OSError as error:  # training is worth more
            if not self._silenced:
                print(f"\nA snapshot of the averaged weights could not be written ({error.strerror}); going on.")
            self._silenced = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        averages = {
            str(length): {k: for_checkpoint(v, trainer) for k, v in average.items()}
            for length, average in self._averages.items()
        }
        checkpoint["power_ema"] = {"images_seen": images_seen(trainer), "at": self._at, "averages": averages}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._restored = checkpoint.get("power_ema", {})

    @torch.no_grad()
    def _update(self, averages: dict[float, dict[str, Tensor]], pl_module: LightningModule, images: int) -> None:
        if self._current is None:
            self._current = [local(p.detach()) for p in parameters(pl_module).values()]
        for length, average in averages.items():
            weight = 1 - decay(self._at, images, self.gammas[length])
            lerp([local(v) for v in average.values()], self._current, weight)

    @staticmethod
    def _folder(trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / FOLDER
