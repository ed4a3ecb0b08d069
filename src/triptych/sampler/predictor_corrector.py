"""Predictor-corrector sampling of score SDE."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.denoiser import Cond, Denoiser
from triptych.noise import Noise
from triptych.sampler.ancestral import Ancestral
from triptych.sampler.base import Sampler, combine
from triptych.sampler.ddim import DDIM
from triptych.sampler.euler_maruyama import EulerMaruyama
from triptych.sampler.reverse_diffusion import ReverseDiffusion
from triptych.schedule import Schedule

PREDICTORS = {"ancestral": Ancestral, "reverse_diffusion": ReverseDiffusion, "euler_maruyama": EulerMaruyama}
NORMS = ("expected", "batch")


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Sampler):
    """Score-Based Generative Modeling through SDEs. Song et al. 2021. arXiv:2011.13456, App. G, Algorithms 4 and 5.

    At each time first the corrector, then the predictor, as in the paper's code (T-S9). The corrector is Langevin's:

        x <- x + step score + sqrt(2 step) z,      step = 2 a (snr ||z|| / ||score||)^2

    The norms are sqrt(D) and sqrt(D) / sigma on average, so that step = 2 (snr sigma)^2, the same for every sample in
    every batch. norm="batch" takes the paper's means over the batch, on which samples then depend (T-S7), and the
    paper's a = 1 - beta, here (alpha_t / alpha_s)^2 (T-S8).

    Attributes:
        predictor: "ancestral", "reverse_diffusion", "euler_maruyama"; or such a sampler, or DDIM, with its own options.
        corrector_steps: Langevin steps at each time; the network is called steps (1 + corrector_steps) times (T-S2).
        snr: signal-to-noise ratio r of the corrector.
        norm: "expected" or "batch".
    """

    predictor: str | Sampler = "ancestral"
    corrector_steps: int = 1
    snr: float = 0.16
    norm: str = "expected"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.predictor, str):
            if self.predictor not in PREDICTORS:
                raise ValueError(
                    f"PredictorCorrector: predictor must be one of {', '.join(PREDICTORS)}, got {self.predictor!r}."
                )
            object.__setattr__(self, "predictor", PREDICTORS[self.predictor](steps=self.steps))
        learned = isinstance(self.predictor, Ancestral) and self.predictor.variance == "learned"
        if learned or not isinstance(self.predictor, (*PREDICTORS.values(), DDIM)):
            raise ValueError(
                f"PredictorCorrector: {type(self.predictor).__name__} cannot be the predictor: choose one of "
                f"{', '.join(PREDICTORS)}, with a fixed variance."
            )
        if not isinstance(self.corrector_steps, int) or self.corrector_steps < 0:
            raise ValueError(f"PredictorCorrector: corrector_steps must be 0 or more, got {self.corrector_steps}.")
        if not self.snr > 0:
            raise ValueError(f"PredictorCorrector: snr must be positive, got {self.snr}.")
        if self.norm not in NORMS:
            raise ValueError(f"PredictorCorrector: norm must be one of {', '.join(NORMS)}, got {self.norm!r}.")

    def span(self, schedule: Schedule) -> tuple[float, float]:
        start, end = self.predictor.span(schedule)  # pyright: ignore[reportAttributeAccessIssue]
        return min(self.t_start, start), end

    def trajectory(
        self, denoiser: Denoiser, x: Tensor, cond: Cond = None, noise: Noise = torch.randn_like
    ) -> Iterator[Tensor]:
        path = self.path(denoiser)
        times = path.batches(x)
        rows = self.predictor.coefficients(denoiser.schedule, path)  # pyright: ignore[reportAttributeAccessIssue]
        for i, (a, weights, std) in enumerate(rows):
            alpha, sigma = path.alpha[i], path.sigma[i]
            for _ in range(self.corrector_steps):
                x_0 = self.predict(denoiser, x, times[i], cond)
                if self.norm == "batch":
                    x = self.by_batch(x, x_0, noise(x), alpha, sigma, (alpha / path.alpha[i + 1]) ** 2)
                else:  # step score = 2 snr^2 (alpha x_0 - x)
                    pull = 2 * self.snr**2
                    x = combine(1 - pull, x, [pull * alpha], [x_0]).add_(noise(x), alpha=2 * self.snr * sigma)
            x_0 = self.predict(denoiser, x, times[i], cond)
            x = combine(a, x, weights, [x_0])
            if std > 0 and not self.is_mean(i, path):
                x.add_(noise(x), alpha=std)
            yield x
        yield from self.finish(denoiser, x, path, cond)

    def by_batch(self, x: Tensor, x_0: Tensor, z: Tensor, alpha: float, sigma: float, a: float) -> Tensor:
        """The corrector's step with norms that are means over the batch. Three [B, ...] -> [B, ...]."""
        score = combine(-1 / sigma**2, x, [alpha / sigma**2], [x_0])
        z_norm, score_norm = (v.flatten(1).norm(dim=1).mean() for v in (z, score))
        root = self.snr * math.sqrt(2 * a) * z_norm / score_norm  # sqrt(step)
        return x + root.square() * score + math.sqrt(2) * root * z
