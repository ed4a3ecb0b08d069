"""The numbers of training: loss, loss per noise level, gradient norm, learning rate, images/s."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from triptych.callback.clock import Steps, images_seen
from triptych.tracking import log_scalars


class Monitor(Callback):
    """Logs what the formulation has tallied, with images seen as the axis; nothing is logged per step.

    Args:
        every_n_steps: optimizer steps between two rows.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self.latest: dict[str, float] = {}
        self.steps = Steps()
        self._last_logged = 0
        self._seconds, self._began = 0.0, 0.0
        self._norm: torch.Tensor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps.start(trainer)
        self._last_logged = trainer.global_step

    def on_train_batch_start(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if (trainer.global_step + 1) % self.every_n_steps == 0 or trainer.global_step == 0:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            self._norm = torch.nn.utils.get_total_norm(gradients)  # before clipping

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._seconds += time.perf_counter() - self._began
        if not self.steps.advanced(trainer):
            return
        if trainer.global_step % self.every_n_steps == 0 or trainer.global_step == 1:
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > self._last_logged:
            self._log(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = _named("val/loss", pl_module.validation_losses.read())  # pyright: ignore
        metrics |= _named("val/eps_mse", pl_module.validation_errors.read())  # pyright: ignore
        self.latest |= {"val/loss": metrics["val/loss"]} if "val/loss" in metrics else {}
        if not trainer.sanity_checking:
            log_scalars(trainer.loggers, metrics, trainer.global_step, images_seen(trainer))

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        began = time.perf_counter()
        tallied = pl_module.train_losses.read()  # pyright: ignore (waits for the device)
        self._seconds += time.perf_counter() - began
        steps = trainer.global_step - self._last_logged
        batch = trainer.datamodule.global_batch_size  # pyright: ignore[reportAttributeAccessIssue]
        metrics = _named("train/loss", tallied)
        metrics["train/learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        metrics["train/images_per_second"] = steps * batch / max(1e-9, self._seconds)
        if self._norm is not None:
            metrics["train/gradient_norm"] = float(self._norm)
        if torch.cuda.is_available():
            metrics["train/memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self._seconds, self._last_logged, self._norm = 0.0, trainer.global_step, None
        self.latest |= metrics
        log_scalars(trainer.loggers, metrics, trainer.global_step, images_seen(trainer))


def _named(prefix: str, tallied: dict[str, float]) -> dict[str, float]:
    """Adds the metric's name: the mean under the name itself, the bins of log-SNR below it."""
    return {f"{prefix}/log_snr_{name}" if name else prefix: value for name, value in tallied.items()}
