"""Measuring while a model trains: a cheap number at intervals, the real one at the end, both with their protocol."""

import contextlib
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torchmetrics import Metric

from triptych.callback.clock import Every, autocast, on_device, rehearsed
from triptych.callback.ema import averaged
from triptych.callback.results import report
from triptych.callback.stop import interruptible, stopping
from triptych.evaluation import Evaluator
from triptych.generate import Job, Progress
from triptych.record import Record
from triptych.sampler import Sampler

WEIGHTS = {"ema": (False,), "raw": (True,), "both": (False, True)}  # which of them are the raw ones


class Evaluate(Callback):
    """Metrics on samples from fixed seeds, with the averaged weights; on several devices each makes its share.

    Args:
        metric: what is measured. name: its name, to which the number of samples is added.
        sampler: of the number at the end. fast_sampler: of those during training.
        every_images: images between two cheap evaluations; null for none.
        num_samples: at the end; 0 for no evaluation. fast_num_samples: during training.
        split: of the dataset, the reference.
        block: samples a network call.
        seed: of the samples.
        weights: "ema", "raw", or "both", which are then told apart by the name /raw.
    """

    def __init__(
        self,
        metric: Metric,
        name: str,
        sampler: Sampler,
        fast_sampler: Sampler,
        every_images: int | None = None,
        num_samples: int = 1000,
        fast_num_samples: int = 500,
        split: str = "train",
        block: int = 250,
        seed: int = 0,
        weights: str = "ema",
    ) -> None:
        if weights not in WEIGHTS:
            raise ValueError(f"callback.evaluate.weights must be one of {', '.join(WEIGHTS)}, got {weights!r}.")
        self.weights = WEIGHTS[weights]
        self.metric, self.name, self.sampler, self.fast_sampler = metric, name, sampler, fast_sampler
        self.every = Every(every_images)
        self.num_samples, self.fast_num_samples = num_samples, fast_num_samples
        self.split, self.block, self.seed = split, block, seed
        self.records: list[Record] = []
        self._evaluator: Evaluator | None = None

    def summary(self) -> list[str]:
        """Lines for the end of training: each value, and below it what it was measured with."""
        lines = []
        for r in self.records:
            _, sampler, *protocol = r.parts()
            lines += [f"{r.metric:<9} {r.value:.3f}   ({sampler}; {r.images_per_second:.1f} images/s)"]
            lines += ["          " + "; ".join(protocol)]
        return lines

    def check(self, formulation: LightningModule, dataset: Any) -> None:
        """Refuses, before training, a sampler or labels that cannot work."""
        if self.num_samples:
            self.job(formulation, dataset, final=True)
        if self.every.images:
            self.job(formulation, dataset, final=False)

    def job(self, formulation: LightningModule, dataset: Any, final: bool) -> Job:
        return Job(
            formulation,  # pyright: ignore[reportArgumentType]
            self.sampler if final else self.fast_sampler,
            dataset.shape,
            self.num_samples if final else self.fast_num_samples,
            seed=self.seed,
            block=self.block,
            labels="random" if dataset.conditional else None,
            num_classes=dataset.num_classes,
            device=formulation.device,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.every.start(trainer)
        self.on_train_batch_end(trainer, pl_module)  # what was due when a run was stopped

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.every.due(trainer) and trainer.global_step != trainer.max_steps and not stopping(trainer):
            with interruptible(trainer):
                self.measure(trainer, pl_module, final=False)
                self.every.done(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.every.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.every.last = state_dict["last"]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.num_samples and not stopping(trainer) and not rehearsed(trainer):
            with on_device(trainer):
                self.measure(trainer, pl_module, final=True)

    def measure(self, trainer: Trainer, pl_module: LightningModule, final: bool) -> None:
        dataset = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        self._evaluator = self._evaluator or Evaluator(self.metric, self.name, dataset, self.split)
        job = self.job(pl_module, dataset, final)
        shown = final and trainer.is_global_zero
        for raw in self.weights:
            total = Progress(job.count, job.sampler.steps, "evaluating raw weights" if raw else "evaluating", shown)
            with contextlib.nullcontext() if raw else averaged(trainer), autocast(trainer), total as progress:
                values = self._evaluator.measure(job, progress, trainer.global_rank, trainer.world_size)
            records = report(trainer, self._evaluator, values, job, job.count, kept=final, raw=raw)
            if final:
                self.records += records
