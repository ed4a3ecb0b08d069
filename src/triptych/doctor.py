"""What a dataset is like, and the constants that the papers derive from it: one page before any training."""

import hashlib
from typing import Any

import numpy as np
import torch

from triptych.dataset import Dataset, normalise
from triptych.metric import FrechetDistance
from triptych.schedule import technique

SHOWN = 50_000  # images that the pairwise distance looks at


def examine(dataset: Dataset, metric: Any | None = None) -> list[tuple[str, str]]:
    """(what, value) pairs of the page, in order.

    Args:
        metric: a Fréchet distance, to measure the floor between two halves of the real images.
    """
    images = dataset.images("train")
    test = dataset.images("test")
    page = [("images", f"{len(images):,} for training, {len(test):,} in the test split")]
    labels = dataset.labels("train")
    if labels is not None:
        counts = np.bincount(labels, minlength=dataset.num_classes)
        page.append(("classes", f"{dataset.num_classes}, {counts.min():,} to {counts.max():,} images each"))
    page.append(("shape", " x ".join(map(str, images.shape[1:])) + f", {images.dtype}"))
    shown = images[np.linspace(0, len(images) - 1, min(len(images), SHOWN)).astype(int)]
    x = normalise(torch.from_numpy(shown)).numpy()
    page.append(("range", f"{x.min():.3g} to {x.max():.3g} (stored {images.min()} to {images.max()})"))
    axes = (0, 2, 3) if x.ndim == 4 else (0,)
    page.append(("channel means", ", ".join(f"{v:.4f}" for v in x.mean(axes))))
    page.append(("channel stds", ", ".join(f"{v:.4f}" for v in x.std(axes))))
    sigma_data = float(x.std())
    page.append(("sigma_data", f"{sigma_data:.4f}   (EDM's; 0.5 is its default)"))
    page.append(("duplicates", _duplicates(images, test)))
    page += ladder(torch.from_numpy(x.reshape(len(x), -1)))
    if isinstance(metric, FrechetDistance):
        page += floor(images, metric)
    return page


def ladder(x: torch.Tensor) -> list[tuple[str, str]]:
    """The noise levels of Song & Ermon 2020 (arXiv:2006.09011), Techniques 1, 2 and 4, for x [N, D] in [-1, 1]."""
    if x.shape[1] <= 3:  # points: Technique 2 is made for images
        return [("largest distance", f"{technique.largest_distance(x[:10_000]):.4g}   (Technique 1: sigma_max)")]
    c = technique.suggest(x)
    ratio = (c.sigma_max / c.sigma_min) ** (1 / (c.L - 1))
    return [
        ("largest distance", f"{c.sigma_max:.4g}   (Technique 1: sigma_max)"),
        ("levels", f"{c.L} from {c.sigma_min} to {c.sigma_max:.4g}   (Technique 2: ratio {ratio:.4f})"),
        ("Langevin", f"step_size {c.step_size:.3g} at {c.steps_per_level} steps a level   (Technique 4)"),
        ("to type", f"schedule.sigma_max={c.sigma_max:.4g} schedule.L={c.L}   (geometric; ve takes sigma_max)"),
    ]


def floor(images: np.ndarray, metric: FrechetDistance) -> list[tuple[str, str]]:
    """Real against real: the distance of two disjoint random sets of N images, below which nothing can be told."""
    page = []
    order = np.random.default_rng(0).permutation(len(images))
    for n in (500, 2_000, 10_000, 25_000):
        if 2 * n > len(images):
            break
        twin = FrechetDistance(metric.extractor)
        for half, real in ((order[:n], True), (order[n : 2 * n], False)):
            for i in range(0, n, 500):
                twin.update(torch.from_numpy(images[np.sort(half[i : i + 500])].copy()), real=real)
        distance = float(twin.compute())
        page.append((f"floor at N={n:,}", f"{distance:.4f}   (fd_{metric.extractor.name}, real against real)"))
    return page


def _duplicates(train: np.ndarray, test: np.ndarray) -> str:
    def digests(images: np.ndarray) -> list[bytes]:
        return [hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest() for image in images]

    seen, others = digests(train), digests(test)
    inside, across = len(seen) - len(set(seen)), len(set(seen) & set(others))
    return f"{inside:,} within training, {across:,} shared with the test split"
