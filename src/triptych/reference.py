"""What samples are compared with: a split of a data set as it lies on disk, or somebody's file.

Statistics of a split are built once, by whoever needs them first, from the raw images and never through the training
loader (T-F6), and kept under a key of data set, split, transform, images and extractor.
"""

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from triptych import collection
from triptych.metric import FeatureMetric, FrechetDistance, FrechetInfinity, Statistics
from triptych.progress import bar

CHUNK = 500  # images a feature pass
POINTS = 10_000  # real points in the plane that generated ones are compared with
SPLITS = ("train", "val", "test")


def check(reference: str) -> None:
    """Refuses what is neither a split nor a file or folder."""
    if reference not in SPLITS and not Path(reference).exists():
        raise ValueError(
            f"There is no split {reference!r}, and no such file: give reference={', '.join(SPLITS)}, an npz of "
            "statistics (mu, sigma) or of images (arr_0), or a folder of pictures."
        )


def use(metrics: Sequence[FeatureMetric], dataset: Any, reference: str, shown: bool = False) -> dict[str, Any]:
    """Gives every metric its reference; tells what it is. Every process reads all of it.

    Args:
        dataset: may be None where the reference is a file.
        shown: a progress bar, if it has to be built.
    """
    if reference in SPLITS:
        return _use_split(metrics, dataset, reference, shown)
    return _use_file(metrics, dataset, Path(reference), shown)


def describe(dataset: Any, split: str) -> dict[str, Any]:
    """A split, for the record of an evaluation."""
    return {
        "dataset": dataset.name,
        "split": split,
        "transform": dataset.transform_hash,
        "num_images": len(dataset.images(split)),
    }


def _use_split(metrics: Sequence[FeatureMetric], dataset: Any, split: str, shown: bool) -> dict[str, Any]:
    images = dataset.images(split)
    if images.ndim == 2:
        images = images[:POINTS]
    about = describe(dataset, split) | {"num_images": len(images)}
    metrics = [m for m in metrics if m.reads_real]
    kept = [m for m in metrics if _keepable(m)]
    if not kept:
        _build(metrics, images, shown)
        return about
    assert kept[0].extractor is not None
    path = statistics_file(dataset, split, images, kept[0].extractor)
    with _alone(path):  # the first builds, the others wait and read
        found = _read(path)
        for metric in kept if found else []:
            metric.use_reference(found)
        _build([m for m in metrics if m not in kept or not found], images, shown)
        if not found:
            with contextlib.suppress(OSError):  # a full or read-only disk costs time next time, not this number
                kept[0].reference.save(path)
    return about


def _use_file(metrics: Sequence[FeatureMetric], dataset: Any, path: Path, shown: bool) -> dict[str, Any]:
    about = {"dataset": path.name, "split": "file", "transform": collection.digest(path), "num_images": None}
    missing = [m for m in metrics if m.reads_real]
    names = collection.names(path)
    if {"mu", "sigma"} <= set(names):
        known = Statistics.load(path)
        fitting = [m for m in missing if _statistical(m) and m.extractor.num_features == len(known.mean)]  # pyright: ignore
        for metric in fitting:
            metric.use_reference(known)
        about["num_images"] = known.n or None
        missing = [m for m in missing if m not in fitting]
        if missing and not set(names) - {"mu", "sigma", "n", "extractor", "mu_s", "sigma_s"}:
            metric, width = missing[0], len(known.mean)
            needs = f"reads {metric.extractor.num_features} features" if metric.extractor else "reads points"
            raise ValueError(
                f"{path} holds statistics of {width} features, but {type(metric).__name__} {needs}"
                + (" and compares image with image" if not _statistical(metric) else "")
                + ": give the images themselves, or another metric."
            )
    if missing:
        read = collection.read(path, shown)
        if dataset is not None:
            read = collection.like(read, dataset.shape, dataset.name)
        for sentence in read.warnings:
            warnings.warn(sentence, stacklevel=2)
        about["num_images"] = len(read.images)
        _build(missing, read.images, shown)
    return about


def _build(metrics: Sequence[FeatureMetric], images: np.ndarray, shown: bool) -> None:
    """One pass over the images for all metrics."""
    if not metrics:
        return
    with bar("reference", len(images), shown) as advance:
        for i in range(0, len(images), CHUNK):
            chunk = torch.from_numpy(images[i : i + CHUNK].copy())
            index = torch.arange(i, i + len(chunk))
            extractor = metrics[0].extractor
            features = chunk if extractor is None else extractor(chunk, metrics[0].device)
            for metric in metrics:
                metric.update_features(features, real=True, index=index)
            advance(len(chunk))
    for metric in metrics:
        metric.freeze_reference()


def _statistical(metric: FeatureMetric) -> bool:
    return isinstance(metric, (FrechetDistance, FrechetInfinity))


def _keepable(metric: FeatureMetric) -> bool:
    """Whether a metric's reference is small, and its extractor has a name that no other has."""
    return _statistical(metric) and metric.extractor is not None and bool(metric.extractor.sha256)


def statistics_file(dataset: Any, split: str, images: np.ndarray, extractor: Any) -> Path:
    """Where the statistics of a split are kept: inside the data set's cache, or the user's own if that is not to be
    written. A few images spread over the split are part of the key, so that another set of the same name is another."""
    looked_at = images[np.linspace(0, len(images) - 1, min(len(images), 256)).astype(int)]
    content = hashlib.sha256(np.ascontiguousarray(looked_at).tobytes()).hexdigest()[:8]
    key = f"{dataset.name}-{split}-{dataset.transform_hash}-{len(images)}-{content}"
    name = f"{extractor.name}-{hashlib.sha256(extractor.identity.encode()).hexdigest()[:8]}-{key}.npz"
    own = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "triptych"
    places = [Path(dataset.cache) / "statistics", own / "statistics"]
    for place in places:
        if (place / name).exists():
            return place / name
    for place in places:
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            if os.access(place, os.W_OK):
                return place / name
    return places[0] / name


def _read(path: Path) -> Statistics | None:
    """What is kept there; a damaged file counts as none and is made again."""
    try:
        return Statistics.load(path) if path.exists() else None
    except (ValueError, OSError, EOFError, KeyError):
        return None


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time, where a lock can be made."""
    if not os.access(path.parent, os.W_OK):
        yield
        return
    with FileLock(f"{path}.lock"):
        yield
