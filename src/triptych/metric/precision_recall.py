from typing import Any

import torch
from torch import Tensor, nn

from triptych.metric.base import FeatureMetric
from triptych.metric.extractor import FrozenExtractor


class PrecisionRecall(FeatureMetric):
    """Improved Precision and Recall Metric for Assessing Generative Models. Kynkäänniemi et al. 2019. arXiv:1904.06991.

    A set's manifold is the union of balls around its features, each reaching to the k-th nearest other one.
    Precision is the share of generated features inside the real manifold, recall the share of real features inside
    the generated one. Both depend on N and k: the papers' tables use k = 3 and 10,000 to 50,000 images a side (T-F14).
    """

    higher_is_better = True
    of_points = True

    def __init__(
        self,
        extractor: nn.Module | FrozenExtractor | None,
        k: int = 3,
        reset_real: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(extractor, reset_real, **kwargs)
        if k < 1:
            raise ValueError(f"PrecisionRecall: k must be at least 1, got {k}.")
        self.k, self.fewest = k, k + 1
        self.store_features()

    def add(self, features: Tensor, real: bool, index: Tensor | None) -> None:
        self.add_features(features, real, index)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"k": self.k}

    def real_summary(self) -> Tensor:
        return self.stored(real=True)

    def compute(self) -> dict[str, Tensor]:
        """`precision` and `recall`, float64."""
        real, fake = self.stored(real=True, at_least=self.k + 1), self.stored(real=False, at_least=self.k + 1)
        return {
            "precision": share_inside(fake, real, neighbour_radii_sq(real, self.k)),
            "recall": share_inside(real, fake, neighbour_radii_sq(fake, self.k)),
        }


def neighbour_radii_sq(x: Tensor, k: int, block: int = 2000) -> Tensor:
    """Squared distance of each point to its k-th nearest other one, [N, D] -> [N]."""
    radii = []
    for first in range(0, len(x), block):
        squares = _squares(x[first : first + block], x)
        rows = torch.arange(len(squares), device=x.device)
        squares[rows, first + rows] = torch.inf  # a point is not its own neighbour
        radii.append(squares.kthvalue(k, 1).values)
    return torch.cat(radii)


def share_inside(points: Tensor, centres: Tensor, radii_sq: Tensor, block: int = 2000) -> Tensor:
    """The share of `points` [N, D] inside any ball around `centres` [M, D] with `radii_sq` [M] -> []."""
    inside = [(_squares(part, centres) <= radii_sq).any(1) for part in points.split(block)]
    return torch.cat(inside).double().mean()


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2, [N, D], [M, D] -> [N, M]"""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.mT).clamp(min=0)
