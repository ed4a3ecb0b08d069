"""Bits per dimension at the end of training, so that formulations compare by likelihood as well as by samples."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from triptych.callback.clock import on_device, rehearsed
from triptych.callback.ema import averaged
from triptych.callback.results import report
from triptych.callback.stop import stopping
from triptych.evaluation import Evaluator
from triptych.metric import VLB, PerImage
from triptych.record import Record


class Likelihood(Callback):
    """Scores held-out images with the averaged weights; skipped where it is not defined: a network that
    knows its own levels only has no flow, and only DDPM has a variational bound.

    Args:
        metric: a metric of the denoiser, such as bits per dimension. name: what it is called.
        num_images: of the split, the first so many; 0 for none.
        split: "test" or "train".
    """

    def __init__(self, metric: PerImage, name: str = "bits_per_dim", num_images: int = 32, split: str = "test") -> None:
        self.metric, self.name, self.num_images, self.split = metric, name, num_images, split
        self.records: list[Record] = []

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.num_images or stopping(trainer) or rehearsed(trainer):
            return
        if getattr(pl_module, "levels", None) is not None:
            return
        dataset: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        bounded = hasattr(pl_module, "variational_bound") and len(dataset.shape) == 3  # its decoder is for 256 levels
        if isinstance(self.metric, VLB) and not bounded:
            return
        evaluator = Evaluator(self.metric, self.name, dataset, self.split)
        with on_device(trainer), averaged(trainer):
            values = evaluator.measure_denoiser(
                pl_module,  # pyright: ignore[reportArgumentType]
                pl_module.device,
                self.num_images,
                trainer.global_rank,
                trainer.world_size,
            )
        self.records += report(trainer, evaluator, values, None, self.metric.count)

    def summary(self) -> list[str]:
        """Lines for the end of training."""
        return [f"{r.metric} {r.value:.2f} ± {r.standard_error:.2f} on {self.split} images" for r in self.records]
