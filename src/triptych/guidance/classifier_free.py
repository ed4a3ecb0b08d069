"""Classifier-free guidance."""

import torch
from torch import Tensor

from triptych.denoiser import Cond, Denoiser, expand
from triptych.schedule import Schedule


class ClassifierFree:
    """Classifier-Free Diffusion Guidance. Ho & Salimans 2022. arXiv:2207.12598, Eq. 6.

        x_0 = x_0(null) + scale (x_0(cond) - x_0(null)),      scale = 1 + w of the paper

    The paper adds scores; since all of them are affine in x_0 with the same coefficients, adding x_0 is the same. Both
    halves go through the network in one call of twice the batch. A learned variance passes through from the conditional
    half.

    Args:
        denoiser: trained with labels, some of them dropped.
        scale: 1 is no guidance, 0 is unconditional.
        interval: (low, high) of t in which guidance acts; outside it the scale is 1 (Kynkäänniemi et al. 2024.
            arXiv:2404.07724).
    """

    needs_labels = True

    def __init__(self, denoiser: Denoiser, scale: float = 2.0, interval: tuple[float, float] = (0.0, 1.0)) -> None:
        low, high = interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"guidance.interval must be [low, high] with 0 <= low < high <= 1, got {list(interval)}.")
        self.denoiser = denoiser
        self.scale = scale
        self.interval = (low, high)
        if hasattr(denoiser, "moments"):
            self.moments = self._moments

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    @property
    def levels(self) -> Tensor | None:
        return getattr(self.denoiser, "levels", None)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        x_0 = self.denoiser(*self._twice(x_t, t, cond))
        return self._guide(x_0, t)

    def _moments(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> tuple[Tensor, Tensor]:
        x_0, v = self.denoiser.moments(*self._twice(x_t, t, cond))  # pyright: ignore[reportAttributeAccessIssue]
        return self._guide(x_0, t), v[: len(x_t)]

    def _twice(self, x_t: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, Tensor, Cond]:
        """The conditional half, then the same with the null label."""
        label = cond["label"] if isinstance(cond, dict) else cond
        if label is None:
            raise ValueError("guidance=classifier_free needs labels: give labels=0, a list of them, or labels=random.")
        label = torch.cat([label, torch.full_like(label, -1)])
        both: Cond = label
        if isinstance(cond, dict):
            both = {key: torch.cat([value, value]) for key, value in cond.items()} | {"label": label}
        return torch.cat([x_t, x_t]), torch.cat([t, t]), both

    def _guide(self, x_0: Tensor, t: Tensor) -> Tensor:
        conditional, null = x_0.chunk(2)
        low, high = self.interval
        inside = (t >= low) & (t <= high)
        scale = expand(torch.where(inside, self.scale, 1.0).to(x_0.dtype), conditional)
        return torch.lerp(null, conditional, scale.expand_as(null))
