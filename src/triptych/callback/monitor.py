"""The numbers of training: loss, loss per noise level, gradient norm, learning rate, images/s."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from triptych.callback.clock import Steps, images_seen
from triptych.callback.guard import guard_of
from triptych.callback.stop import cut
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
        self._restored: dict[str, Any] = {}
        self._validated: int | None = None  # the step of the last whole validation
        self._gone: Path | None = None  # what the data set has lost, and was said

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps.start(trainer)
        self._last_logged = self._restored.get("logged", trainer.global_step)
        if "losses" in self._restored:
            tally: Any = pl_module.train_losses
            tally.restore(self._restored["losses"], trainer.global_rank, trainer.world_size, pl_module.device)
        self._restored = {}
        if self._validated is not None and self._validated != trainer.global_step and validation_due(trainer):
            validate(trainer)  # the run was stopped, or killed, after this step and before its validation had ended

    def on_train_batch_start(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._seconds += time.perf_counter() - self._began
        if not self.steps.advanced(trainer):
            return
        if trainer.global_step % self.every_n_steps == 0 or trainer.global_step == 1:
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > self._last_logged and not cut(trainer):  # else it is in the checkpoint
            self._log(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = _named("val/loss", pl_module.validation_losses.read())  # pyright: ignore
        metrics |= _named("val/eps_mse", pl_module.validation_errors.read())  # pyright: ignore
        self.latest |= {"val/loss": metrics["val/loss"]} if "val/loss" in metrics else {}
        if not trainer.sanity_checking and not cut(trainer):  # a validation that was cut short
            self._validated = trainer.global_step
            log_scalars(trainer.loggers, metrics, trainer.global_step, images_seen(trainer))

    @staticmethod
    def _norms(trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """The gradient's norm before clipping; how many steps were clipped, and how many skipped since the start."""
        guard, limit = guard_of(trainer), trainer.gradient_clip_val
        if guard is None:
            norm: Any = pl_module.gradient_norm
            return {} if norm is None else {"train/gradient_norm": float(norm)}
        norms = guard.take(trainer, pl_module)
        metrics = {"train/gradient_norm": norms[-1], "train/skipped_steps": float(guard.skipped)} if norms else {}
        if norms and limit and trainer.gradient_clip_algorithm != "value":
            metrics["train/clip_fraction"] = sum(norm > limit for norm in norms) / len(norms)
        return metrics

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        tally: Any = pl_module.train_losses
        checkpoint["monitor"] = {
            "validated": self._validated or 0,
            "logged": self._last_logged,
            "losses": tally.state(pl_module.device),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._restored = checkpoint.get("monitor", {})
        self._validated = self._restored.get("validated")

    def _watch(self, trainer: Trainer) -> None:
        """Says once that the files of the data set are gone: the run goes on with what it holds, and no other can."""
        before, self._gone = self._gone, trainer.datamodule.gone()  # pyright: ignore[reportAttributeAccessIssue]
        if self._gone is not None and before is None and trainer.is_global_zero:
            print(
                f"The data set's {self._gone} is there no more; this run goes on with what it has open, but neither "
                "resume=… nor another run can begin before it is back.",
                flush=True,
            )

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch(trainer)
        began = time.perf_counter()
        tallied = pl_module.train_losses.read()  # pyright: ignore (waits for the device)
        self._seconds += time.perf_counter() - began
        steps = trainer.global_step - self._last_logged
        batch = trainer.datamodule.global_batch_size  # pyright: ignore[reportAttributeAccessIssue]
        metrics = _named("train/loss", tallied)
        metrics["train/learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        metrics["train/images_per_second"] = steps * batch / max(1e-9, self._seconds)
        metrics |= self._norms(trainer, pl_module)
        if pl_module.device.type == "cuda":
            metrics["train/memory_gib"] = torch.cuda.max_memory_allocated(pl_module.device) / 2**30
        self._seconds, self._last_logged = 0.0, trainer.global_step
        self.latest |= metrics
        log_scalars(trainer.loggers, metrics, trainer.global_step, images_seen(trainer))


def validation_due(trainer: Trainer) -> bool:
    """Whether a validation belongs to the step that has just been made."""
    interval = trainer.val_check_batch  # in micro-batches, if it is a whole number
    per_epoch = trainer.check_val_every_n_epoch is not None
    if not trainer.enable_validation or per_epoch or not isinstance(interval, int) or interval < 1:
        return False
    batches = trainer.global_step * trainer.accumulate_grad_batches
    return batches > 0 and batches % interval == 0


def validate(trainer: Trainer) -> None:
    """A validation at the start of training, as Lightning runs one after a step."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True


def _named(prefix: str, tallied: dict[str, float]) -> dict[str, float]:
    """Adds the metric's name: the mean under the name itself, the bins of log-SNR below it."""
    return {f"{prefix}/log_snr_{name}" if name else prefix: value for name, value in tallied.items()}
