"""Fréchet arithmetic against torchmetrics: 2048 features, float64, one core, interleaved runs, CPU seconds.

    python bench/frechet.py [repeats] [samples]

Statistics of `samples` features in batches of 100, and one distance: of full rank, and with fewer samples than
features, where the singular values of the centred features are the truth. Prints a table and one JSON line with the
medians and their ratios. Targets: statistics 3 times torchmetrics' rate (1.8 in plain torch), distance 2.5 times and
8 times sqrtm's, errors below 1e-9.
"""

import argparse
import math
import statistics
import time
import warnings

import scipy.linalg
import torch
from harness import finish
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, _compute_fid

from triptych.metric import FrechetDistance, Statistics, frechet_distance

D = 2048
BATCH = 100


class Given(nn.Module):
    """Features that are there already."""

    num_features = D

    def forward(self, features: Tensor) -> Tensor:
        return features


def features(n: int, seed: int) -> Tensor:
    """Positive and correlated, standard deviations over two decades, as pooled ReLU features are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(D, D, generator=torch.Generator().manual_seed(9)) / D**0.5
    x = (torch.randn(n, D, generator=generator) @ mixing).relu()
    return x * torch.logspace(-1, 1, D)[torch.randperm(D, generator=torch.Generator().manual_seed(8))] + 0.1


def seconds(function) -> tuple[float, object]:
    begun = time.process_time()
    result = function()
    return time.process_time() - begun, result


def update_ours(x: Tensor) -> Tensor:
    metric = FrechetDistance(Given())
    for part in x.split(BATCH):
        metric.update_features(part, real=True)
    return metric.real_statistics.cov


def update_torchmetrics(x: Tensor) -> Tensor:
    metric = FrechetInceptionDistance(feature=Given())
    for part in x.split(BATCH):
        metric.update(part, real=True)
    n, total = metric.real_features_num_samples, metric.real_features_sum
    return (metric.real_features_cov_sum - n * torch.outer(total / n, total / n)) / (n - 1)


def update_plain_torch(x: Tensor) -> Tensor:
    """What runs where there is no BLAS on the CPU to call."""
    outer, total = torch.zeros(D, D, dtype=torch.float64), torch.zeros(D, dtype=torch.float64)
    for part in x.split(BATCH):
        part = part.double()
        total += part.sum(0)
        outer.addmm_(part.mT, part)
    return Statistics.from_sums(torch.tensor(len(x)), total, outer).cov


def sqrtm(a: Statistics, b: Statistics) -> Tensor:
    """As pytorch-fid, clean-fid and EDM do it."""
    root = scipy.linalg.sqrtm(a.cov.numpy() @ b.cov.numpy())
    return (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * root.real.trace()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repeats", type=int, nargs="?", default=3)
    parser.add_argument("samples", type=int, nargs="?", default=10_000)
    arguments = parser.parse_args()
    repeats, samples = arguments.repeats, arguments.samples
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    threadpool_limits(1)
    x, y = features(samples, 0), 1.1 * features(samples, 1)
    few = features(1024, 2)
    a, b, c = (Statistics.from_features(f) for f in (x, y, few))
    rows: dict[str, list[float]] = {}
    values: dict[str, float] = {}
    updates = {"ours": update_ours, "plain torch": update_plain_torch, "torchmetrics": update_torchmetrics}
    distances = {
        "ours": lambda p, q: frechet_distance(p.mean, p.cov, q.mean, q.cov),
        "torchmetrics": lambda p, q: _compute_fid(p.mean, p.cov, q.mean, q.cov),
    }
    for _ in range(repeats):
        for name, update in updates.items():
            took, cov = seconds(lambda: update(x))  # noqa: B023
            rows.setdefault(f"update, {name}", []).append(took)
            values[f"update, {name}"] = float((cov - a.cov).norm() / a.cov.norm())
        for case, other in (("full rank", b), ("1024 samples", c)):
            for name, distance in distances.items():
                took, value = seconds(lambda: distance(a, other))  # noqa: B023
                rows.setdefault(f"distance, {case}, {name}", []).append(took)
                values[f"distance, {case}, {name}"] = float(value)
    for case, other in (("full rank", b), ("1024 samples", c)):
        took, value = seconds(lambda: sqrtm(a, other))  # noqa: B023
        rows[f"distance, {case}, sqrtm"] = [took]
        values[f"distance, {case}, sqrtm"] = float(value)

    def centred(f: Tensor) -> Tensor:
        return (f.double() - f.double().mean(0)) / math.sqrt(len(f) - 1)

    truths = {}
    for case, f, other in (("full rank", y, b), ("1024 samples", few, c)):
        triangle = torch.linalg.qr(centred(x), "r").R  # R^T R = S_1, without S_1's rounding
        nuclear = torch.linalg.svdvals(triangle @ centred(f).mT).sum()
        means = (a.mean - other.mean).square().sum()
        truths[case] = float(means + a.cov.trace() + other.cov.trace() - 2 * nuclear)
    result: dict[str, float] = {}
    print(f"{'':44}{'median s':>10}{'error':>12}{'times torchmetrics':>22}")
    for name, took in rows.items():
        *case, who = name.split(", ")
        median = statistics.median(took)
        base = statistics.median(rows[", ".join([*case, "torchmetrics"])])
        error = values[name] if case == ["update"] else abs(values[name] / truths[case[1]] - 1)
        result |= {f"{name}: s": median, f"{name}: ratio": base / median, f"{name}: error": error}
        print(f"{name:44}{median:10.3f}{error:12.1e}{base / median:22.2f}")
    finish("frechet", repeats=repeats, samples=samples, results=result)


if __name__ == "__main__":
    main()
