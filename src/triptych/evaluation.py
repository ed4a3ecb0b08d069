"""From samples and metrics to records: the one way a number is measured, in training and after it."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torchmetrics import Metric, MetricCollection

from triptych.denoiser import Denoiser
from triptych.generate import Job, Progress, evaluating, storable
from triptych.metric import FeatureMetric, FrechetDistance, PerImage, Statistics
from triptych.record import Record, describe_sampler, short_count

CHUNK = 500  # reference images a feature pass
POINTS = 10_000  # real points in the plane that generated ones are compared with
QUANTISATION = "uint8, floor(127.5 x + 128)"


class Evaluator:
    """Measures a metric, or several on the features of one pass, against one split of a dataset.

    A metric of samples (`FeatureMetric`) is given the samples of a job; a metric of the denoiser (`PerImage`: bits per
    dimension) the images of the split itself.

    Args:
        name: of the metric; of several, each has its own.
        split: the reference: "train" or "test" (T-F5); a metric of the denoiser reads it image by image.
    """

    def __init__(self, metric: Metric | MetricCollection, name: str, dataset: Any, split: str = "train") -> None:
        self.metric, self.name, self.dataset, self.split = metric, name, dataset, split
        self.parts: dict[str, Metric] = {name: metric}  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(metric, MetricCollection):
            self.parts = {str(part): m for part, m in metric.items(keep_base=True)}  # pyright: ignore
        self._reference: dict[str, Any] | None = None

    @property
    def of_samples(self) -> bool:
        """Whether samples are needed at all."""
        return not isinstance(self.metric, PerImage)

    def check(self, count: int) -> None:
        """Refuses, before any sampling, fewer samples than a metric is defined for."""
        for name, metric in self.parts.items():
            fewest = getattr(metric, "fewest", 1)
            if count < fewest:
                raise ValueError(f"metric={name} needs num_samples of at least {fewest}, got {count}.")

    def prepare(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Builds the reference once, or finds it in the cache; tells what it is. Every process reads all of it."""
        if self._reference is not None:
            return self._reference
        images = self.dataset.images(self.split)
        if images.ndim == 2:
            images = images[:POINTS]
        self.metric.to(device)
        missing = [m for m in self.parts.values() if isinstance(m, FeatureMetric) and not self._cached(m, len(images))]
        for i in range(0, len(images) if missing else 0, CHUNK):
            chunk = torch.from_numpy(images[i : i + CHUNK].copy())
            index = torch.arange(i, i + len(chunk))
            extractor = missing[0].extractor
            features = chunk if extractor is None else extractor(chunk, missing[0].device)
            for metric in missing:
                metric.update_features(features, real=True, index=index)
        for metric in missing:
            metric.freeze_reference()
            if isinstance(metric, FrechetDistance) and metric.extractor is not None and metric.extractor.sha256:
                with contextlib.suppress(OSError):  # a place that cannot be written: dataset.cache names another
                    metric.reference.save(self._cache(metric, len(images)))
        self._reference = {
            "dataset": self.dataset.name,
            "split": self.split,
            "transform": self.dataset.transform_hash,
            "num_images": len(images),
        }
        return self._reference

    def _cache(self, metric: FrechetDistance, count: int) -> Path:
        extractor = metric.extractor
        assert extractor is not None
        key = f"{self.dataset.name}-{self.split}-{self.dataset.transform_hash}-{count}"
        return Path(self.dataset.cache) / "statistics" / f"{extractor.name}-{(extractor.sha256 or '')[:8]}-{key}.npz"

    def _cached(self, metric: FeatureMetric, count: int) -> bool:
        if not isinstance(metric, FrechetDistance) or metric.extractor is None or not metric.extractor.sha256:
            return False
        path = self._cache(metric, count)
        if not path.exists():
            return False
        metric.use_reference(Statistics.load(path))
        return True

    def measure(self, job: Job, progress: Progress | None = None, rank: int = 0, world: int = 1) -> dict[str, float]:
        """Samples the job, every rank its share, and computes every metric on all of it. The same on every rank."""
        self.prepare(job.device)
        for indices, x in job.run(progress, rank, world):
            self.metric.update(storable(x), real=False, index=torch.tensor(indices))
        return self._values()

    def measure_denoiser(
        self, denoiser: Denoiser, device: torch.device | str, count: int | None = None, rank: int = 0, world: int = 1
    ) -> dict[str, float]:
        """Scores the split's images, or the first `count` of them, every rank its share."""
        images = self.dataset.images(self.split)[:count]
        self.prepare(device)
        with evaluating(denoiser):
            first, end = rank * len(images) // world, (rank + 1) * len(images) // world
            for i in range(first, end, 100):
                chunk = torch.from_numpy(images[i : min(i + 100, end)].copy()).to(device)
                self.metric.update(denoiser, chunk, index=torch.arange(i, i + len(chunk)))
        return self._values()

    def _values(self) -> dict[str, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fewer samples than features: N is in the name
            values = dict(_flat(self.name, self.metric.compute()))
        self.metric.reset()
        return values

    def record(self, name: str, values: list[float], job: Job | None, count: int, **protocol: Any) -> Record:
        """The record of one of the measured values over seed blocks; without a job, of a metric of the denoiser."""
        metric = self.parts.get(name.partition("/")[0], next(iter(self.parts.values())))
        extractor = getattr(metric, "extractor", None)
        images = len(self.dataset.shape) == 3
        return Record(
            metric=f"{name}_{short_count(count)}",
            values=values,
            num_samples=count,
            extractor=None if extractor is None else {"name": extractor.name, "sha256": extractor.sha256},
            reference=self.prepare(),
            quantisation=QUANTISATION if images and job else "uniform dequantisation" if images else "none",
            resize=getattr(extractor, "resize", None) or "none",
            sampler=describe_sampler(job.sampler) if job else None,
            nfe=job.nfe if job else None,
            images_per_second=job.images_per_second if job else None,
            seeds={"seed": job.seed, "first": job.first, "last": job.first + job.count - 1, "blocks": len(values)}
            if job
            else {"seed": getattr(metric, "seed", 0), "blocks": len(values)},
            labels=job.labels if job else None,
            standard_error=getattr(metric, "standard_error", None),
            **protocol,
        )


def _flat(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """One number, or those of several metrics: (name, value). Two numbers of one metric are name/number."""
    if not isinstance(value, dict):
        yield name, float(value)
        return
    for key, part in value.items():
        yield from _flat(str(key), part)
