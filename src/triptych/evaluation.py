"""From samples and metrics to records: the one way a number is measured, in training and after it."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from triptych import reference
from triptych.collection import Collection
from triptych.denoiser import Denoiser
from triptych.generate import Job, Watcher, evaluating, storable
from triptych.metric import FeatureMetric, PerImage, Statistics
from triptych.progress import bar
from triptych.record import QUANTISATION, Record, describe_sampler, short_count


class Evaluator:
    """Measures a metric, or several on the features of one pass, against a reference.

    A metric of samples (`FeatureMetric`) is given the samples of a job, or somebody's images; a metric of the denoiser
    (`PerImage`: bits per dimension) the images of the split itself.

    Args:
        name: of the metric; of several, each has its own.
        dataset: what the samples resemble; may be None if the reference is a file.
        against: the reference: "train", "val" or "test" (T-F5), or a file (see `reference.use`); a metric of the
            denoiser reads the split image by image.

    Attributes:
        notes: sentences about what the last value suffers from, such as fewer samples than features (T-F4).
    """

    def __init__(self, metric: Metric | MetricCollection, name: str, dataset: Any, against: str = "train") -> None:
        reference.check(against)
        self.metric, self.name, self.dataset, self.against = metric, name, dataset, against
        self.parts: dict[str, Metric] = {name: metric}  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(metric, MetricCollection):
            self.parts = {str(part): m for part, m in metric.items(keep_base=True)}  # pyright: ignore
        if not self.of_samples and against not in reference.SPLITS:
            raise ValueError(f"{name} scores the images of a split: give reference=train, val or test, not {against}.")
        self._fit()
        self._reference: dict[str, Any] | None = None
        self._standing: list[str] = []  # notes on the reference, of every value
        self.notes: list[str] = []

    @property
    def of_samples(self) -> bool:
        """Whether samples are needed at all."""
        return not isinstance(self.metric, PerImage)

    def _fit(self) -> None:
        """Refuses a metric of images for points, and of points for images."""
        if self.dataset is None or not self.of_samples:
            return
        points = len(self.dataset.shape) == 1
        for name, metric in self.parts.items():
            if isinstance(metric, FeatureMetric) and points != (metric.extractor is None):
                raise ValueError(
                    f"metric={name} measures images, but {self.dataset.name} holds points: give "
                    "metric=sliced_wasserstein or mmd."
                    if points
                    else f"metric={name} measures points, but {self.dataset.name} holds images: give metric=fid, or an "
                    "fd_<dataset>."
                )

    @contextlib.contextmanager
    def _noting(self, notes: list[str]) -> Iterator[None]:
        """What metrics warn of inside becomes a note, once."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
        notes += [sentence for sentence in dict.fromkeys(said) if sentence not in notes]

    def check(self, count: int) -> None:
        """Refuses, before any sampling, fewer samples than a metric is defined for."""
        for name, metric in self.parts.items():
            fewest = getattr(metric, "fewest", 1)
            if count < fewest:
                raise ValueError(f"metric={name} needs num_samples of at least {fewest}, got {count}.")

    def prepare(self, device: torch.device | str = "cpu", shown: bool = False) -> dict[str, Any]:
        """Builds the reference once, or finds it in the cache; tells what it is."""
        if self._reference is None:
            self.metric.to(device)
            if self.of_samples:
                metrics = [m for m in self.parts.values() if isinstance(m, FeatureMetric)]
                with self._noting(self._standing):
                    self._reference = reference.use(metrics, self.dataset, self.against, shown)
            else:
                self._reference = reference.describe(self.dataset, self.against)
        return self._reference

    def save_reference(self, path: Path | str) -> Path:
        """Writes the reference's mu and sigma, as the ADM evaluator, EDM and pytorch-fid read them."""
        self.prepare()
        for metric in self.parts.values():
            known = getattr(metric, "reference", None)
            if isinstance(known, Statistics):
                known.save(path)
                return Path(path)
        raise ValueError(f"metric={self.name} keeps no mu and sigma of its reference: give a Fréchet distance.")

    def measure(
        self,
        job: Job,
        progress: Watcher | None = None,
        rank: int = 0,
        world: int = 1,
        keep: Callable[[range, Tensor], None] | None = None,
    ) -> dict[str, float]:
        """Samples the job, every rank its share, and computes every metric on all of it. The same on every rank.

        What fails on one rank fails on all, with the same sentence.

        Args:
            keep: is given the indices and the stored samples (uint8) of each of this rank's blocks.
        """
        self.prepare(job.device)
        self.metric.reset()  # of a measurement that was interrupted
        self.notes = [*self._standing]
        error: Exception | None = None
        try:
            for indices, x in job.run(progress, rank, world):
                if not bool(torch.isfinite(x).all()):
                    raise ValueError(f"The samples {indices.start} to {indices.stop - 1} hold NaN or Inf.")
                stored = storable(x)
                with self._noting(self.notes):
                    self.metric.update(stored, real=False, index=torch.tensor(indices))
                if keep is not None:
                    keep(indices, stored)
        except Exception as failure:
            error = failure
        self._agree(error, world)
        job.nfe = max(gathered(job.nfe, world))  # an adaptive solver's differs from block to block
        return self._values()

    def _agree(self, error: Exception | None, world: int) -> None:
        """What failed on one rank fails on all, which would wait for it."""
        said = "" if error is None else str(error) or type(error).__name__
        if failed := next(filter(None, gathered(said, world)), ""):
            self.metric.reset()
            raise error or RuntimeError(failed)

    def measure_images(self, collection: Collection, shown: bool = False) -> dict[str, float]:
        """Computes every metric on somebody's images."""
        self.prepare(shown=shown)
        images = collection.images
        self.notes = [*self._standing]
        with bar("images", len(images), shown) as advance:
            for i in range(0, len(images), reference.CHUNK):
                chunk = torch.from_numpy(images[i : i + reference.CHUNK].copy())
                with self._noting(self.notes):
                    self.metric.update(chunk, real=False, index=torch.arange(i, i + len(chunk)))
                advance(len(chunk))
        return self._values()

    def measure_denoiser(
        self,
        denoiser: Denoiser,
        device: torch.device | str,
        count: int | None = None,
        rank: int = 0,
        world: int = 1,
        shown: bool = False,
    ) -> dict[str, float]:
        """Scores the split's images, or the first `count` of them, every rank its share."""
        images = self.dataset.images(self.against)
        images = images if count is None else images[:count]
        self.prepare(device)
        self.notes = []
        # A conditional network is told the images' own labels: it may know no other way
        labels = self.dataset.labels(self.against) if getattr(self.dataset, "conditional", False) else None
        first, end = rank * len(images) // world, (rank + 1) * len(images) // world
        error: Exception | None = None
        try:
            with evaluating(denoiser), bar(self.name, end - first, shown) as advance:
                for i in range(first, end, 100):
                    chunk = torch.from_numpy(images[i : min(i + 100, end)].copy()).to(device)
                    index = torch.arange(i, i + len(chunk))
                    cond = None if labels is None else torch.from_numpy(labels[i : i + len(chunk)].copy()).to(device)
                    self.metric.update(denoiser, chunk, cond, index=index)
                    advance(len(chunk))
        except Exception as failure:
            error = failure
        self._agree(error, world)
        return self._values()

    def _values(self) -> dict[str, float]:
        with self._noting(self.notes):
            values = dict(_flat(self.name, self.metric.compute()))
        self.metric.reset()
        return values

    def record(self, name: str, values: list[float], job: Job | None, count: int, **protocol: Any) -> Record:
        """The record of one of the measured values over seed blocks; without a job, of a metric of the denoiser.

        `protocol` says the rest, and what it says goes before what follows from the job.
        """
        metric = self.parts.get(name.partition("/")[0], next(iter(self.parts.values())))
        extractor = getattr(metric, "extractor", None)
        points = self.dataset is not None and len(self.dataset.shape) == 1
        error = getattr(metric, "standard_error", None)
        dequantised = getattr(metric, "quantisation", "uniform dequantisation")
        said = {
            "metric": f"{name}_{short_count(count)}",
            "values": values,
            "num_samples": count,
            "extractor": None if extractor is None else {"name": extractor.name, "sha256": extractor.sha256},
            "reference": self.prepare(),
            "quantisation": "none" if points else QUANTISATION if job else dequantised,
            "resize": getattr(extractor, "resize", None) or "none",
            "sampler": describe_sampler(job.sampler) if job else None,
            "nfe": job.nfe if job else None,
            "images_per_second": job.images_per_second if job else None,
            "seeds": {"seed": job.seed, "first": job.first, "last": job.first + job.count - 1, "blocks": len(values)}
            if job
            else {"seed": getattr(metric, "seed", 0), "blocks": len(values)},
            "labels": job.labels if job else "the images' own" if getattr(self.dataset, "conditional", False) else None,
            "standard_error": None if error is None or math.isnan(error) else error,  # of one image there is none
            "arguments": getattr(metric, "arguments", None) or None,
        }
        return Record(**said | protocol)


def gathered(value: Any, world: int) -> list[Any]:
    """The value of every process, in the order of their rank."""
    if world == 1:
        return [value]
    values: list[Any] = [None] * world
    torch.distributed.all_gather_object(values, value)
    return values


def _flat(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """One number, or those of several metrics: (name, value). Two numbers of one metric are name/number."""
    if not isinstance(value, dict):
        yield name, float(value)
        return
    for key, part in value.items():
        yield from _flat(str(key), part)
