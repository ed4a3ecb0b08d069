"""Training time is counted in images: what every callback asks of the Trainer."""

from lightning import Trainer


def images_seen(trainer: Trainer) -> int:
    """Images the network has been trained on, over all processes and accumulated micro-batches (T-D1, T-E3)."""
    return trainer.global_step * trainer.datamodule.global_batch_size  # pyright: ignore[reportAttributeAccessIssue]


def rehearsed(trainer: Trainer) -> bool:
    """Whether this is `trainer.fast_dev_run`, one batch of everything: then nothing is sampled or measured."""
    return bool(trainer.fast_dev_run)  # pyright: ignore[reportAttributeAccessIssue]


AGREE_EVERY = 10  # optimizer steps between two agreements of several processes, which wait for the device


def agreed(trainer: Trainer, wish: bool) -> bool:
    """Whether any process wishes it: the same answer on all; of several processes, at some steps only."""
    if trainer.world_size == 1:
        return wish
    return trainer.global_step % AGREE_EVERY == 0 and trainer.strategy.reduce_boolean_decision(wish, all=False)


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
    """Is due whenever a multiple of `images` has been passed; never if `images` is None."""

    def __init__(self, images: int | None) -> None:
        if images is not None and images < 1:
            raise ValueError(f"An interval in images must be at least 1, or null for never, got {images}.")
        self.images = images
        self._last = 0

    def start(self, trainer: Trainer) -> None:
        """Called when training starts or goes on: what lies behind is not due."""
        self._last = images_seen(trainer) // self.images if self.images else 0

    def due(self, trainer: Trainer) -> bool:
        if self.images is None:
            return False
        now = images_seen(trainer) // self.images
        passed, self._last = now > self._last, now
        return passed
