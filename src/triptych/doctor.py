"""What a dataset is like, and the constants that the papers derive from it: one page before any training."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from triptych.dataset import Dataset, normalise
from triptych.metric import FeatureMetric, FrechetDistance, Statistics, frechet_distance
from triptych.progress import bar, busy
from triptych.schedule import technique

SHOWN = 50_000  # images that the pairwise distance looks at
MOST = 100_000  # images whose features are compared
SIZES = (500, 2_000, 10_000, 50_000)  # of a floor
Line = tuple[str, str]


def examine(dataset: Dataset, metric: Any | None = None, shown: bool = False) -> Iterator[Line]:
    """(what, value) pairs of the page, in order, as they are found.

    Args:
        metric: a distance, to measure the floor between two halves of the real images.
        shown: progress bars, on a terminal.
    """
    images = dataset.images("train")
    test = dataset.images("test")
    yield "images", f"{len(images):,} for training, {len(test):,} in the test split"
    labels = dataset.labels("train")
    if labels is not None:
        counts = np.bincount(labels, minlength=dataset.num_classes)
        yield "classes", f"{dataset.num_classes}, {counts.min():,} to {counts.max():,} images each"
    yield "shape", " x ".join(map(str, images.shape[1:])) + f", {images.dtype}"
    looked_at = images[np.linspace(0, len(images) - 1, min(len(images), SHOWN)).astype(int)]
    x = normalise(torch.from_numpy(looked_at)).numpy()
    yield "range", f"{x.min():.3g} to {x.max():.3g} (stored {images.min()} to {images.max()})"
    axes = (0, 2, 3) if x.ndim == 4 else (0,)
    yield "channel means", ", ".join(f"{v:.4f}" for v in x.mean(axes, dtype=np.float64))
    yield "channel stds", ", ".join(f"{v:.4f}" for v in x.std(axes, dtype=np.float64))
    yield "sigma_data", f"{x.std(dtype=np.float64):.4f}   (EDM's; 0.5 is its default)"
    with busy("comparing every image with every other", shown):
        same = _duplicates(images, test)
    yield "duplicates", same
    with busy("the largest distance of two images", shown):
        constants = ladder(torch.from_numpy(x.reshape(len(x), -1)))
    yield from constants
    if isinstance(metric, FrechetDistance):
        yield from floor(images, test, metric, shown)
    elif isinstance(metric, FeatureMetric) and metric.extractor is None:
        yield from floor_of_points(images, metric)


def ladder(x: torch.Tensor) -> list[tuple[str, str]]:
    """The noise levels of Song & Ermon 2020 (arXiv:2006.09011), Techniques 1, 2 and 4, for x [N, D] in [-1, 1]."""
    if x.shape[1] <= 3:  # points: Technique 2 is made for images
        return [("largest distance", f"{technique.largest_distance(x[:10_000]):.4g}   (Technique 1: sigma_max)")]
    c = technique.suggest(x)
    ratio = (c.sigma_max / c.sigma_min) ** (1 / (c.L - 1))
    return [
        ("largest distance", f"{c.sigma_max:.4g}   (Technique 1: sigma_max)"),
        ("levels", f"{c.L} from {c.sigma_min} to {c.sigma_max:.4g}   (Technique 2: ratio {ratio:.4f})"),
        (
            "Langevin",
            f"step_size {c.step_size:.3g} at {c.steps_per_level} steps a level   (Technique 4: sampler.pull=null)",
        ),
        ("to type", f"schedule.sigma_max={c.sigma_max:.4g} schedule.L={c.L}   (geometric; ve takes sigma_max)"),
    ]


def floor(images: np.ndarray, test: np.ndarray, metric: FrechetDistance, shown: bool = False) -> Iterator[Line]:
    """Real against real: the distance of two disjoint random sets of N images, below which nothing can be told.

    It falls as 1 / N, by which the N that the set is too small for are extrapolated from its halves.
    """
    order = np.random.default_rng(0).permutation(len(images))[:MOST]
    features = _features(images, order, metric, shown)
    name = "fid" if metric.extractor.name == "inception" else f"fd_{metric.extractor.name}"
    half, last = len(features) // 2, 0.0
    for n in sorted({*(size for size in SIZES if size <= half), half}):
        last = _distance(features[:n], features[n : 2 * n])
        yield f"floor at N={n:,}", f"{last:.4f}   ({name}, two disjoint halves of the training images)"
    for n in (size for size in SIZES if half < size <= 2 * half):
        yield f"floor at N={n:,}", f"about {last * half / n:.4f}   (extrapolated: it falls as 1 / N)"
    if len(test) > 1:
        others = _features(test, np.arange(min(len(test), MOST)), metric, shown)
        sizes = f"{len(features):,} images and {len(others):,}"
        yield "train to test", f"{_distance(features, others):.4f}   ({name}, {sizes})"


def floor_of_points(points: np.ndarray, metric: FeatureMetric) -> Iterator[Line]:
    """The same for points in the plane, by the metric itself."""
    order = np.random.default_rng(0).permutation(len(points))
    for n in (size for size in SIZES[:3] if 2 * size <= len(points)):
        metric.reset_real = True
        metric.reset()
        metric.update(torch.from_numpy(points[order[:n]]), real=True)
        metric.update(torch.from_numpy(points[order[n : 2 * n]]), real=False)
        yield f"floor at N={n:,}", f"{float(metric.compute()):.4g}   ({type(metric).__name__}, real against real)"
    metric.reset()


def _features(images: np.ndarray, order: Sequence[int] | np.ndarray, metric: FrechetDistance, shown: bool) -> Any:
    """The features of these images, in this order. [N, D]"""
    rows = []
    with bar("features", len(order), shown) as advance:
        for i in range(0, len(order), 500):
            chunk = torch.from_numpy(np.stack([images[k] for k in order[i : i + 500]]))
            rows.append(metric.extractor(chunk))
            advance(len(chunk))
    metric.extractor.forget(size=True)
    return torch.cat(rows)


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    a, b = Statistics.from_features(one), Statistics.from_features(other)
    return float(frechet_distance(a.mean, a.cov, b.mean, b.cov))


def _duplicates(train: np.ndarray, test: np.ndarray) -> str:
    def digests(images: np.ndarray) -> list[bytes]:
        return [hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest() for image in images]

    seen, others = digests(train), digests(test)
    inside, across = len(seen) - len(set(seen)), len(set(seen) & set(others))
    return f"{inside:,} within training, {across:,} shared with the test split"
