from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from triptych.metric.base import FeatureMetric
from triptych.metric.extractor import FrozenExtractor
from triptych.metric.frechet import frechet_distance
from triptych.metric.statistics import Statistics, add_outer


class FrechetInfinity(FeatureMetric):
    """Effectively Unbiased FID and Inception Score and Where to Find Them. Chong, Forsyth 2020. arXiv:1911.07023.

    The bias of a Fréchet distance in the number N of generated samples is linear in 1 / N to first order: the
    distances at several N are extrapolated to 1 / N = 0. The real side keeps its own bias.

    Attributes:
        points: how many N, evenly spaced between `smallest` and all samples, nested and in a random order.
        smallest: as a share of all samples; the paper goes from 5,000 to 50,000.
        reference: a `Statistics`, as for `FrechetDistance`.
    """

    higher_is_better = False
    extractor: FrozenExtractor

    def __init__(
        self,
        extractor: nn.Module | FrozenExtractor,
        points: int = 15,
        smallest: float = 0.1,
        seed: int = 0,
        reset_real: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(extractor, reset_real, **kwargs)
        if points < 2 or not 0 < smallest < 1:
            raise ValueError(f"A line needs points >= 2 and 0 < smallest < 1, but they are {points} and {smallest}.")
        self.points, self.smallest, self.seed = points, smallest, seed
        self.fewest = 4 * points
        self.store_features()

    def add(self, features: Tensor, real: bool, index: Tensor | None) -> None:
        self.add_features(features, real, index)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"points": self.points, "smallest": self.smallest, "seed": self.seed}

    def real_summary(self) -> Statistics:
        return self.reference or Statistics.from_features(self.stored(real=True, at_least=2), self.extractor.identity)

    def use_reference(self, reference: Statistics) -> None:
        """Compares with these statistics instead of real images; `reset()` keeps them."""
        reference.check(self.extractor.identity, self.extractor.num_features)
        super().use_reference(reference)

    def curve(self) -> tuple[Tensor, Tensor]:
        """N and the distance at each, float64 [points], [points]."""
        real = self.real_summary()
        fake = self.stored(real=False, at_least=4 * self.points)
        order = torch.randperm(len(fake), generator=torch.Generator().manual_seed(self.seed))
        fake = fake[order.to(fake.device)]
        counts = np.linspace(max(2, self.smallest * len(fake)), len(fake), self.points).round().astype(int)
        outer = fake.new_zeros(fake.shape[1], fake.shape[1])
        distances = []
        for before, n in zip([0, *counts], counts, strict=False):
            add_outer(outer, fake[before:n])
            part = Statistics.from_sums(torch.tensor(n), fake[:n].sum(0), outer)
            distances.append(frechet_distance(part.mean, part.cov, real.mean, real.cov).to(fake.device))
        return torch.from_numpy(counts).to(fake), torch.stack(distances)

    def compute(self) -> Tensor:
        """The intercept of the least-squares line of distance against 1 / N, [] float64."""
        n, distances = self.curve()
        line = torch.stack([torch.ones_like(n), 1 / n], 1)
        return torch.linalg.lstsq(line.cpu(), distances.cpu()[:, None]).solution[0, 0].to(n.device)
