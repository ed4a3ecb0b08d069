"""An exponential moving average of the weights, by which samples are judged."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from triptych.callback.clock import Steps, images_seen


class EMA(Callback):
    """The averaged weights: a float32 shadow of every trained parameter, on its device (T-E4, T-E7, T-E8).

    Either the half-life in images of Karras et al. 2022 (arXiv:2206.00364, App. F), which does not depend on the batch
    size and is shortened at the start to `ramp` times the images seen (T-E1, T-E2); or a decay per optimizer step,
    shortened at the start to (1 + n) / (10 + n) as in Song et al. 2021 if `warmup`.

    Validation, samples and metrics use the average through `apply`, which survives an exception. It is saved in the
    checkpoint under the key `ema`, beside the raw weights (T-E5).
    """

    def __init__(
        self,
        half_life: float | None = 500_000,
        ramp: float | None = 0.05,
        decay: float | None = None,
        warmup: bool = True,
    ) -> None:
        if (half_life is None) == (decay is None):
            raise ValueError("EMA needs either half_life (in images) or decay (per step): set the other one to null.")
        if half_life is not None and half_life <= 0:
            raise ValueError(f"EMA: half_life must be a positive number of images, got {half_life}.")
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"EMA: decay must be at least 0 and below 1, got {decay}.")
        self.half_life, self.ramp, self.constant, self.warmup = half_life, ramp, decay, warmup
        self._shadow: dict[str, Tensor] = {}
        self._restored: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] | None = None
        self._trained: list[Tensor] = []
        self.steps = Steps()

    @property
    def profile(self) -> str:
        """How the average was taken, in words for a record."""
        if self.constant is not None:
            return f"ema(decay={self.constant}, warmup={self.warmup})"
        return f"ema(half_life={self.half_life:g} images, ramp={self.ramp})"

    def decay(self, step: int, global_batch_size: int) -> float:
        """The weight that the average keeps at optimizer step 1, 2, ..."""
        if self.constant is not None:
            return min(self.constant, (1 + step) / (10 + step)) if self.warmup else self.constant
        half_life = self.half_life or math.inf
        if self.ramp is not None:
            half_life = min(half_life, self.ramp * step * global_batch_size)
        return 0.5 ** (global_batch_size / max(half_life, 1e-8))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shadow = {
            name: self._restored.get(name, p.detach()).to(p.device, torch.float32).clone()
            for name, p in parameters(pl_module).items()
        }
        self._restored = {}
        self._trained = [p.detach() for p in parameters(pl_module).values()]  # share their memory
        self.steps.start(trainer)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not self.steps.advanced(trainer):  # a micro-batch of a step that goes on (T-E3)
            return
        weight = 1 - self.decay(trainer.global_step, trainer.datamodule.global_batch_size)  # pyright: ignore
        current = self._trained
        if any(p.dtype != torch.float32 for p in current):
            current = [p.float() for p in current]
        torch._foreach_lerp_(list(self._shadow.values()), current, weight)

    @contextlib.contextmanager
    def apply(self, pl_module: LightningModule) -> Iterator[None]:
        """The module carries the averaged weights inside, and its own again after; may be nested."""
        if self._raw is not None or not self._shadow:
            yield
            return
        self._swap_in(pl_module)
        try:
            yield
        finally:
            self._swap_out(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._shadow and self._raw is None:
            self._swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_out(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._swap_out(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._raw is not None:  # saved in the middle of validation: state_dict still means the raw weights
            for name, value in self._raw.items():
                checkpoint["state_dict"][name] = value
        checkpoint["ema"] = {
            "shadow": {name: value.cpu() for name, value in self._shadow.items()},
            "profile": self.profile,
            "images_seen": images_seen(trainer),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._restored = checkpoint.get("ema", {}).get("shadow", {})

    @torch.no_grad()
    def _swap_in(self, pl_module: LightningModule) -> None:
        self._raw = {name: p.detach().clone() for name, p in parameters(pl_module).items()}
        for name, p in parameters(pl_module).items():
            p.copy_(self._shadow[name])

    @torch.no_grad()
    def _swap_out(self, pl_module: LightningModule) -> None:
        if self._raw is not None:
            for name, p in parameters(pl_module).items():
                p.copy_(self._raw[name])
            self._raw = None


def parameters(module: LightningModule) -> dict[str, torch.nn.Parameter]:
    """The trained parameters by a name that neither compiling nor wrapping changes (T-E9)."""
    return {name.replace("_orig_mod.", ""): p for name, p in module.named_parameters() if p.requires_grad}


def averaged(trainer: Trainer) -> contextlib.AbstractContextManager[None]:
    """The context of the Trainer's EMA callback; without one, nothing changes."""
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, EMA):
            return callback.apply(trainer.lightning_module)
    return contextlib.nullcontext()


def profile(trainer: Trainer) -> str:
    """Which weights `averaged` gives, for a record."""
    return next((c.profile for c in trainer.callbacks if isinstance(c, EMA)), "raw")  # pyright: ignore
