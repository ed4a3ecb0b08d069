"""What metrics of a denoiser share: a number for each image of a data set, averaged over all of them, once each."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from triptych.denoiser import Cond, Denoiser
from triptych.noise import Noise, SampleNoise


class PerImage(Metric, ABC):
    """The mean over images, whatever the batches, ranks and their padding (T-K10, T-K11).

    Args:
        seed: of the random numbers, which for an image depend on (seed, its index) alone.

    Attributes:
        standard_error: of the mean over images; known after `compute`.
        count: number of images; known after `compute`.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    values: list[Tensor]
    indices: list[Tensor]

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.standard_error, self.count = math.nan, 0
        self.add_state("values", [], dist_reduce_fx="cat")
        self.add_state("indices", [], dist_reduce_fx="cat")

    @abstractmethod
    def score(self, denoiser: Denoiser, images: Tensor, cond: Cond, noise: Noise) -> Tensor:
        """The number of each image. [B, ...] -> [B]."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What else shapes the number, for its record."""
        return {}

    def update(
        self, denoiser: Denoiser, images: Tensor, cond: Cond = None, index: Tensor | list[int] | None = None
    ) -> None:
        """Adds uint8 images [B, C, H, W], or real-valued data [B, ...].

        Args:
            index: of each image in its data set, [B]; an image that comes twice counts once. None counts every image.
        """
        seen = sum(len(v) for v in self.values)
        numbers = range(seen, seen + len(images)) if index is None else torch.as_tensor(index).tolist()
        scores = self.score(denoiser, images, cond, SampleNoise(self.seed, numbers, images.device))
        stored = [-1] * len(images) if index is None else numbers
        self.values.append(scores.detach().double())
        self.indices.append(torch.tensor(stored, device=images.device))

    def compute(self) -> Tensor:
        values, indices = dim_zero_cat(self.values), dim_zero_cat(self.indices)
        indices, order = indices.sort(stable=True)
        again = torch.zeros_like(indices, dtype=torch.bool)
        again[1:] = (indices[1:] == indices[:-1]) & (indices[1:] >= 0)
        values = values[order][~again]
        self.count = len(values)
        self.standard_error = float(values.std() / math.sqrt(self.count)) if self.count > 1 else math.nan
        return values.mean()
