from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from triptych.metric.base import FeatureMetric

Kernel = Callable[[Tensor, Tensor], Tensor]  # [N, D], [M, D] -> [N, M]


def unbiased_mmd(kernel: Kernel, x: Tensor, y: Tensor, block: int = 2000) -> Tensor:
    """A Kernel Two-Sample Test. Gretton et al. 2012, JMLR 13, the unbiased estimator of MMD^2.

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

    [N, D], [M, D] -> []. May be negative. Kernels are summed in blocks of rows.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"The unbiased estimator needs at least 2 samples a side, but there are {n} and {m}.")

    def within(z: Tensor) -> Tensor:
        total = z.new_zeros(())
        for first in range(0, len(z), block):
            values = kernel(z[first : first + block], z)
            total += values.sum() - values.diagonal(first).sum()  # without i = j
        return total / (len(z) * (len(z) - 1))

    between = torch.stack([kernel(part, y).sum() for part in x.split(block)]).sum() / (n * m)
    return within(x) + within(y) - 2 * between


class MMD(FeatureMetric):
    """Maximum mean discrepancy, squared and unbiased, of points [N, D] under a sum of Gaussian kernels.

        k(x, y) = mean_b exp(-|x - y|^2 / (2 b^2))

    For toy data. The bandwidths b are fixed, not fitted to the samples, so that values compare.
    """

    higher_is_better = False
    of_points = True

    def __init__(self, bandwidths: Sequence[float] = (0.1, 0.3, 1.0), reset_real: bool = True, **kwargs: Any) -> None:
        super().__init__(None, reset_real, **kwargs)
        if not bandwidths or min(bandwidths) <= 0:
            raise ValueError(f"MMD: bandwidths must be positive numbers, at least one, got {list(bandwidths)}.")
        self.bandwidths = tuple(bandwidths)
        self.store_features()

    def add(self, features: Tensor, real: bool, index: Tensor | None) -> None:
        self.add_features(features, real, index)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"bandwidths": list(self.bandwidths)}

    def real_summary(self) -> Tensor:
        return self.stored(real=True)

    def kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """[N, D], [M, D] -> [N, M]"""
        squares = torch.cdist(x, y).square()
        return torch.stack([(squares / (-2 * b**2)).exp() for b in self.bandwidths]).mean(0)

    def compute(self) -> Tensor:
        """[] float64."""
        return unbiased_mmd(self.kernel, self.stored(real=True), self.stored(real=False))
