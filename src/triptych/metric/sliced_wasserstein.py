from typing import Any

import torch
from torch import Tensor

from triptych.metric.base import FeatureMetric


class SlicedWasserstein(FeatureMetric):
    """Sliced and Radon Wasserstein Barycenters of Measures. Bonneel, Rabin, Peyré, Pfister 2015.

        SW_2^2 = mean over directions u of W_2^2(<u, x>, <u, y>)

    of points [N, D], for toy data; `compute` returns its root, in the unit of the points. The directions are drawn
    once from `seed`, so that values compare.
    """

    higher_is_better = False
    of_points = True

    def __init__(self, directions: int = 256, seed: int = 0, reset_real: bool = True, **kwargs: Any) -> None:
        super().__init__(None, reset_real, **kwargs)
        if directions < 1:
            raise ValueError(f"SlicedWasserstein: directions must be at least 1, got {directions}.")
        self.directions, self.seed = directions, seed
        self.store_features()

    def add(self, features: Tensor, real: bool, index: Tensor | None) -> None:
        self.add_features(features, real, index)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"directions": self.directions, "seed": self.seed}

    def real_summary(self) -> Tensor:
        return self.stored(real=True)

    def compute(self) -> Tensor:
        """[] float64."""
        real, fake = self.stored(real=True), self.stored(real=False)
        if real.shape[1] != fake.shape[1]:
            raise ValueError(f"Real points have {real.shape[1]} coordinates, generated ones {fake.shape[1]}.")
        generator = torch.Generator().manual_seed(self.seed)
        u = torch.randn(real.shape[1], self.directions, generator=generator, dtype=torch.float64).to(real.device)
        u = u / u.norm(dim=0)
        return wasserstein_sq(real @ u, fake @ u).mean().sqrt()


def wasserstein_sq(x: Tensor, y: Tensor) -> Tensor:
    """W_2^2 on the line: the mean square between the two quantile functions. [N, K], [M, K] -> [K]."""
    x, y = x.sort(0).values, y.sort(0).values
    n, m = len(x), len(y)
    # Both quantile functions are constant between neighbouring breaks i / n and j / m, here in units of 1 / (n m)
    breaks = torch.cat([torch.arange(0, n * m, m), torch.arange(0, n * m, n)]).unique().to(x.device)
    widths = torch.cat([breaks[1:], breaks.new_tensor([n * m])]) - breaks
    return (widths[:, None] * (x[breaks // m] - y[breaks // n]).square()).sum(0) / (n * m)
