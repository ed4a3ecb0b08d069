"""Bits per dimension by the probability-flow ODE."""

import math
from typing import Any

import torch
from torch import Tensor

from triptych.denoiser import Cond, Denoiser
from triptych.image import dequantise
from triptych.metric.likelihood import DIVERGENCES, flow_likelihood
from triptych.metric.per_image import PerImage
from triptych.noise import Noise


class BitsPerDim(PerImage):
    """-log2 P(image) per dimension. Theis, van den Oord, Bethge 2016. arXiv:1511.01844; Song et al. 2021, App. D.2.

    An image of 256 levels is dequantised to x_0 = 2 (k + u) / 256 - 1, u ~ U[0, 1) (T-K7), so that

        bits/dim = -log p(x_0) / (D log 2) + 7,      7 = log2(256 / 2), the bins being 2 / 256 wide (T-K6),

    is an upper bound on average. Real-valued data is taken as it is, and its density has no offset.

    Args:
        divergence: "hutchinson" or "exact".
        rtol, atol: of the adaptive solver. steps: None, or that many fixed steps of Runge-Kutta, 4 calls each.
        repeats: draws of u and of the probe for each image.
    """

    def __init__(
        self,
        divergence: str = "hutchinson",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        steps: int | None = None,
        repeats: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if repeats < 1:
            raise ValueError(f"bits_per_dim: repeats must be at least 1, got {repeats}.")
        if divergence not in DIVERGENCES:
            raise ValueError(f"bits_per_dim: divergence must be one of {', '.join(DIVERGENCES)}, got {divergence!r}.")
        if steps is not None and steps < 1:
            raise ValueError(f"bits_per_dim: steps must be at least 1, or null for the adaptive solver, got {steps}.")
        self.divergence, self.rtol, self.atol, self.steps, self.repeats = divergence, rtol, atol, steps, repeats
        self.calls: list[Tensor] = []
        self.add_state("calls", [], dist_reduce_fx="cat")

    @property
    def arguments(self) -> dict[str, Any]:
        solver = {"rtol": self.rtol, "atol": self.atol} if self.steps is None else {"steps": self.steps}
        return {"divergence": self.divergence, **solver, "repeats": self.repeats}

    def score(self, denoiser: Denoiser, images: Tensor, cond: Cond, noise: Noise) -> Tensor:
        total = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        for _ in range(self.repeats):
            x_0, offset = (dequantised(images, noise), 7.0) if images.dtype == torch.uint8 else (images, 0.0)
            found = flow_likelihood(
                denoiser,
                x_0,
                divergence=self.divergence,
                cond=cond,
                noise=lambda like: torch.where(noise(like) < 0, -1.0, 1.0).to(like.dtype),
                rtol=self.rtol,
                atol=self.atol,
                steps=self.steps,
            )
            self.calls.append(found.calls)
            total += offset - found.nats / (x_0[0].numel() * math.log(2))
        return total / self.repeats


def dequantised(images: Tensor, noise: Noise) -> Tensor:
    """uint8 [B, ...] -> float32 in [-1, 1], each image by its own stream."""
    return dequantise(images, torch.special.ndtr(noise(images.float())))
