"""Training time is counted in images: what every callback asks of the Trainer."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.plugins import MixedPrecision


def images_seen(trainer: Trainer) -> int:
    """Images the network has been trained on, over all processes and accumulated micro-batches (T-D1, T-E3)."""
    dataset: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    position = getattr(dataset, "position", None)  # knows of a resumed run's earlier batch size
    return position() if position else trainer.global_step * dataset.global_batch_size


def rehearsed(trainer: Trainer) -> bool:
    """Whether this is `trainer.fast_dev_run`, one batch of everything: then nothing is sampled or measured."""
    return bool(trainer.fast_dev_run)  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def on_device(trainer: Trainer) -> Iterator[None]:
    """Lightning takes the network to the host's memory before `on_fit_end`: inside it is back where it was trained."""
    module, before = trainer.lightning_module, trainer.lightning_module.device
    module.to(trainer.strategy.root_device)
    try:
        yield
    finally:
        module.to(before)


def autocast(trainer: Trainer) -> AbstractContextManager:
    """In which samples are made while a model trains: in mixed precision as it trains, and as sample.py and evaluate.py
    do. It keeps its copies of the weights until it ends: to be entered once the right ones are in place."""
    plugin = trainer.precision_plugin
    return plugin.forward_context() if isinstance(plugin, MixedPrecision) else nullcontext()


class Agreement:
    """Whether any process wishes it: the same answer on all.

    Several processes ask each other every few seconds only, since that waits for the device; in how many steps they
    ask again they agree upon as well, from the slowest one's pace.
    """

    seconds = 2.0
    most = 200  # steps

    def start(self, trainer: Trainer) -> None:
        self._next = self._step = trainer.global_step
        self._time = time.monotonic()

    def __call__(self, trainer: Trainer, wish: bool, now: bool = False) -> bool:
        """Called on every process at the same steps. now: ask in any case."""
        if trainer.world_size == 1:
            return wish
        step = trainer.global_step
        if not now and step < self._next:
            return False
        pace = (time.monotonic() - self._time) / max(1, step - self._step) if hasattr(self, "_time") else 0.0
        wishes = torch.tensor([float(wish), pace], device=trainer.strategy.root_device)
        any_wish, slowest = trainer.strategy.reduce(wishes, reduce_op="max").tolist()
        self._next = step + int(min(self.most, max(1.0, self.seconds / max(slowest, 1e-9))))
        self._step, self._time = step, time.monotonic()
        return bool(any_wish)


class Steps:
    """Tells when an optimizer step has been completed, which not every micro-batch does."""

    def __init__(self) -> None:
        self._seen = 0

    def start(self, trainer: Trainer) -> None:
        self._seen = trainer.global_step

    def advanced(self, trainer: Trainer) -> bool:
        before, self._seen = self._seen, trainer.global_step
        return self._seen != before


class Every:
    """Is due when a multiple of `images` has been passed since it was done last; never if `images` is None.

    What was due when a run was stopped, and not done, is due when it goes on: the last time is kept in the checkpoint.
    """

    def __init__(self, images: int | None) -> None:
        if images is not None and images < 1:
            raise ValueError(f"An interval in images must be at least 1, or null for never, got {images}.")
        self.images = images
        self.last: int | None = None  # images seen when it was done

    def start(self, trainer: Trainer) -> None:
        """Called when training starts or goes on: without knowledge of the past, what lies behind is not due."""
        if self.last is None:
            self.last = images_seen(trainer)

    def due(self, trainer: Trainer) -> bool:
        return self.images is not None and images_seen(trainer) // self.images > (self.last or 0) // self.images

    def done(self, trainer: Trainer) -> None:
        self.last = images_seen(trainer)
