"""An exponential moving average of the weights, by which samples are judged."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from triptych.callback.clock import Steps, images_seen
from triptych.shard import for_checkpoint, gathered, local, placed_like


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
        if ramp is not None and ramp <= 0:
            raise ValueError(f"EMA: ramp must be a positive share of the images seen, or null for none, got {ramp}.")
        self.half_life, self.ramp, self.constant, self.warmup = half_life, ramp, decay, warmup
        self._shadow: dict[str, Tensor] = {}
        self._restored: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] | None = None
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None
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
            name: placed_like(self._restored.get(name, p.detach()), p) for name, p in parameters(pl_module).items()
        }
        self._pairs = None
        self.steps.start(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restored = {}
        self.steps.start(trainer)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not self.steps.advanced(trainer):  # a micro-batch of a step that goes on (T-E3)
            return
        weight = 1 - self.decay(trainer.global_step, trainer.datamodule.global_batch_size)  # pyright: ignore
        if self._pairs is None:  # each process's share of both, in the same memory
            trained = parameters(pl_module).values()
            self._pairs = [local(v) for v in self._shadow.values()], [local(p.detach()) for p in trained]
        lerp(*self._pairs, weight)

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
        raw = {name: for_checkpoint(value, trainer) for name, value in (self._raw or {}).items()}
        shadow = {name: for_checkpoint(value, trainer) for name, value in self._shadow.items()}
        if checkpoint["state_dict"]:  # of several processes that share a network, the first one's alone
            checkpoint["state_dict"].update(raw)  # saved in the middle of validation it still means the raw weights
        checkpoint["ema"] = {"shadow": shadow, "profile": self.profile, "images_seen": images_seen(trainer)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._restored = checkpoint.get("ema", {}).get("shadow", {})
        if self._shadow:  # a sharded network is loaded after the fit has started
            self.on_fit_start(trainer, pl_module)

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


def lerp(averages: list[Tensor], current: list[Tensor], weight: float) -> None:
    """averages += weight (current - averages), in one operator."""
    if any(p.dtype != torch.float32 for p in current):
        current = [p.float() for p in current]
    torch._foreach_lerp_(averages, current, weight)  # pyright: ignore[reportPrivateImportUsage]


@contextlib.contextmanager
def averaged(trainer: Trainer) -> Iterator[None]:
    """Inside, the network has the weights of the Trainer's EMA callback, if there is one, and is whole everywhere."""
    module = trainer.lightning_module
    average = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)  # pyright: ignore
    with average.apply(module) if average else contextlib.nullcontext(), gathered(module):
        yield


def profile(trainer: Trainer) -> str:
    """Which weights `averaged` gives, for a record."""
    return next((c.profile for c in trainer.callbacks if isinstance(c, EMA)), "raw")  # pyright: ignore
