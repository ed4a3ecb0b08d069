from typing import Any

import torch
from torch import Tensor, nn

from triptych.metric.base import FeatureMetric
from triptych.metric.extractor import FrozenExtractor
from triptych.metric.mmd import unbiased_mmd


class KernelDistance(FeatureMetric):
    """Demystifying MMD GANs. Binkowski, Sutherland, Arbel, Gretton 2018. arXiv:1801.01401: the KID.

        k(x, y) = (x . y / D + 1)^3

    The unbiased MMD^2 under k, averaged over random subsets drawn without replacement; unbiased at any N, so that
    values of different N compare. Called `kid` only with the features of `Inception`.

    Attributes:
        subset_size: samples a side in one subset, all of the smaller side if it has fewer; None: one set of all
            samples, whose cost grows with N^2. What was taken is told by `arguments`.
        subsets: how many subsets.
        seed: of the draw of subsets.
    """

    higher_is_better = False
    extractor: FrozenExtractor

    def __init__(
        self,
        extractor: nn.Module | FrozenExtractor,
        subset_size: int | None = 1000,
        subsets: int = 100,
        seed: int = 0,
        reset_real: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(extractor, reset_real, **kwargs)
        if subset_size is not None and subset_size < 2:
            raise ValueError(f"KernelDistance: subset_size must be at least 2, or null for all, got {subset_size}.")
        if subsets < 1:
            raise ValueError(f"KernelDistance: subsets must be at least 1, got {subsets}.")
        self.subset_size, self.subsets, self.seed = subset_size, subsets, seed
        self._taken = (subset_size, subsets)  # at the last compute
        self.store_features()

    def add(self, features: Tensor, real: bool, index: Tensor | None) -> None:
        self.add_features(features, real, index)

    def real_summary(self) -> Tensor:
        return self.stored(real=True)

    @staticmethod
    def kernel(x: Tensor, y: Tensor) -> Tensor:
        """[N, D], [M, D] -> [N, M]"""
        return (x @ y.mT / x.shape[1] + 1) ** 3

    def subset_values(self) -> Tensor:
        """The estimate of each subset, float64 [subsets]; their std over sqrt(subsets) is the draw's error."""
        real, fake = self.stored(real=True, at_least=2), self.stored(real=False, at_least=2)
        size = min(self.subset_size or max(len(real), len(fake)), len(real), len(fake))
        if self.subset_size is None or size == len(real) == len(fake):  # every subset would be the whole
            self._taken = (None, 1)
            return unbiased_mmd(self.kernel, real, fake)[None]
        self._taken = (size, self.subsets)
        generator = torch.Generator().manual_seed(self.seed)

        def draw(features: Tensor) -> Tensor:
            chosen = torch.randperm(len(features), generator=generator)[:size]
            return features[chosen.to(features.device)]

        return torch.stack([unbiased_mmd(self.kernel, draw(real), draw(fake)) for _ in range(self.subsets)])

    @property
    def arguments(self) -> dict[str, Any]:
        size, subsets = self._taken
        return {"subset_size": size or "all", "subsets": subsets, "seed": self.seed}

    def compute(self) -> Tensor:
        """[] float64."""
        return self.subset_values().mean()
