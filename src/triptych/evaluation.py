"""From samples and metrics to records: the one way a number is measured, in training and after it."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torchmetrics import Metric

from triptych.generate import Job, Progress, storable
from triptych.metric import FrechetDistance, Statistics
from triptych.record import Record, describe_sampler, short_count

CHUNK = 500  # reference images a feature pass
QUANTISATION = "uint8, floor(127.5 x + 128)"


class Evaluator:
    """Measures any number of metrics on the samples of a job, against one split of a dataset.

    Args:
        metrics: name -> Metric with `update(images, real=…)`; a Fréchet distance keeps the reference's statistics.
        dataset: gives `images(split)`, raw and never augmented (T-F6).
        split: the reference, "train" or "test" (T-F5).
    """

    def __init__(self, metrics: Mapping[str, Metric], dataset: Any, split: str = "train") -> None:
        self.metrics, self.dataset, self.split = dict(metrics), dataset, split
        self._reference: dict[str, Any] | None = None

    def prepare(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Builds the reference once, or finds it in the cache; tells what it is."""
        if self._reference is not None:
            return self._reference
        images = self.dataset.images(self.split)
        for metric in self.metrics.values():
            metric.to(device)
            if isinstance(metric, FrechetDistance):
                metric.use_reference(self._statistics(metric, images))
            else:
                for i in range(0, len(images), CHUNK):
                    metric.update(torch.from_numpy(images[i : i + CHUNK].copy()), real=True)
        self._reference = {
            "dataset": self.dataset.name,
            "split": self.split,
            "transform": self.dataset.transform_hash,
            "num_images": len(images),
        }
        return self._reference

    def _statistics(self, metric: FrechetDistance, images: Any) -> Statistics:
        extractor = metric.extractor
        key = f"{self.dataset.name}-{self.split}-{self.dataset.transform_hash}-{len(images)}"
        path = Path(self.dataset.cache) / "statistics" / f"{extractor.name}-{(extractor.sha256 or '')[:8]}-{key}.npz"
        if extractor.sha256 and path.exists():
            return Statistics.load(path)
        for i in range(0, len(images), CHUNK):
            metric.update(torch.from_numpy(images[i : i + CHUNK].copy()), real=True)
        with metric.sync_context(should_sync=False):
            statistics = metric.real_statistics
        if extractor.sha256:
            statistics.save(path)
        return statistics

    def measure(self, job: Job, progress: Progress | None = None, rank: int = 0, world: int = 1) -> dict[str, float]:
        """Samples the job, every rank its share, and computes every metric on all of it. The same on every rank."""
        self.prepare(job.device)
        for _, x in job.run(progress, rank, world):
            for metric in self.metrics.values():
                metric.update(storable(x), real=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # too few samples for the features: N is in the name
            values = {name: float(metric.compute()) for name, metric in self.metrics.items()}
        for metric in self.metrics.values():
            metric.reset()
        return values

    def record(self, name: str, values: list[float], job: Job, **protocol: Any) -> Record:
        """The record of a metric over seed blocks."""
        metric = self.metrics[name]
        extractor = getattr(metric, "extractor", None)
        return Record(
            metric=f"{name}_{short_count(job.count)}",
            values=values,
            num_samples=job.count,
            extractor=None if extractor is None else {"name": extractor.name, "sha256": extractor.sha256},
            reference=self.prepare(job.device),
            quantisation=QUANTISATION if len(job.shape) == 3 else "none",
            resize=getattr(extractor, "resize", None) or "none",
            sampler=describe_sampler(job.sampler),
            nfe=job.nfe,
            images_per_second=job.images_per_second,
            seeds={"seed": job.seed, "first": job.first, "last": job.first + job.count - 1, "blocks": len(values)},
            labels=job.labels,
            **protocol,
        )
