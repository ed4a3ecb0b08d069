"""Looking at samples while a model trains: a grid and a strip from fixed seeds, so that they compare over time."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from triptych import disk
from triptych.callback.clock import Every, autocast, images_seen, on_device, rehearsed
from triptych.callback.ema import averaged
from triptych.callback.guard import alarm
from triptych.callback.stop import interruptible, stopping
from triptych.generate import Job, evaluating, storable
from triptych.image import filmstrip, picture, save
from triptych.sampler import Sampler
from triptych.tracking import log_picture, log_scalars


class Samples(Callback):
    """At intervals and at the end: a grid of samples, and how a few of them came about, with the averaged weights.

    Args:
        sampler: a fast one, for looks.
        every_images: images between two looks; null for the end only.
        count: samples in the grid (points in the plane: 64 times as many).
        strip: samples in the strip. moments: pictures of each.
        seed: of the samples.
        labels: of the samples: "random" for class-conditional models, or null.
    """

    def __init__(
        self,
        sampler: Sampler,
        every_images: int | None = None,
        count: int = 64,
        strip: int = 8,
        moments: int = 10,
        seed: int = 0,
        labels: str | None = None,
    ) -> None:
        self.sampler, self.every = sampler, Every(every_images)
        self.latest: Path | None = None
        self.count, self.strip, self.moments, self.seed, self.labels = count, strip, moments, seed, labels

    def summary(self) -> list[str]:
        """Lines for the end of training."""
        return [f"samples   {os.path.relpath(self.latest)}"] if self.latest else []

    def check(self, formulation: LightningModule, dataset: Any) -> None:
        """Refuses, before training, a sampler or labels that cannot work."""
        self.job(formulation, dataset, self.count)

    def job(self, formulation: LightningModule, dataset: Any, count: int) -> Job:
        return Job(
            formulation,  # pyright: ignore[reportArgumentType]
            self.sampler,
            dataset.shape,
            count * (64 if len(dataset.shape) == 1 else 1),
            seed=self.seed,
            labels=self.labels if dataset.conditional else None,
            num_classes=dataset.num_classes,
            device=formulation.device,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.every.start(trainer)
        self.on_train_batch_end(trainer, pl_module)  # what was due when a run was stopped

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.every.due(trainer) and trainer.global_step != trainer.max_steps and not stopping(trainer):
            with interruptible(trainer):
                self.look(trainer, pl_module)
                self.every.done(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.every.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.every.last = state_dict["last"]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not stopping(trainer) and not rehearsed(trainer):
            with on_device(trainer):
                self.look(trainer, pl_module)

    @torch.no_grad()
    def look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws and logs; every rank makes its share."""
        seen = images_seen(trainer)
        with averaged(trainer), autocast(trainer), evaluating(pl_module):  # pyright: ignore[reportArgumentType]
            dataset = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
            samples = self.job(pl_module, dataset, self.count).collect(None, trainer.global_rank, trainer.world_size)
            if not trainer.is_global_zero:
                return
            wrong = alarm(samples)
            if wrong:
                print(f"\nAt step {trainer.global_step}: {wrong}.", flush=True)
            log_scalars(trainer.loggers, {"samples/alarm": float(bool(wrong))}, trainer.global_step, seen)
            shown = range(self.strip if samples.ndim == 4 else len(samples))
            states = list(self.job(pl_module, dataset, self.strip).trajectory(shown))
        kept = torch.linspace(0, len(states) - 1, min(self.moments, len(states))).round().long().tolist()
        strip = filmstrip([storable(states[k]).cpu() for k in kept])
        grid = picture(samples)
        folder = Path(trainer.default_root_dir) / "samples"
        with disk.forgiving("Pictures cannot be written"):
            self.latest = save(grid, folder / f"images_seen={seen:09d}.png")
            save(strip, folder / "strip" / f"images_seen={seen:09d}.png")
        log_picture(trainer.loggers, "samples", grid, trainer.global_step, seen)
        log_picture(trainer.loggers, "denoising", strip, trainer.global_step, seen)
