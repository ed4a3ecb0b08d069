"""The narrow waist: what a sampler, a guidance or a metric may know of a model, and the ways to say the same thing.

x_0, eps, score, v and velocity at (x_t, t) carry the same information, since  x_t = alpha x_0 + sigma eps.  x_0 is the
interchange: it is finite at both ends, and clipping and guidance act on it. Every function takes coefficients that
broadcast against x, or plain floats.
"""

from typing import Protocol

from torch import Tensor

from triptych.schedule import Schedule

Cond = Tensor | dict[str, Tensor] | None
Coefficient = Tensor | float


class Denoiser(Protocol):
    """E[x_0 | x_t], and the schedule that says what t means. Optional: `levels`, the only times the network knows."""

    @property
    def schedule(self) -> Schedule: ...

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        """x_t [B, ...], t [B] -> E[x_0 | x_t], [B, ...]."""
        ...


def levels(denoiser: Denoiser) -> Tensor | None:
    """The times the network was trained on, if it knows no others; None otherwise."""
    return getattr(denoiser, "levels", None)


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, ...], to broadcast against x [B, ...]."""
    return coefficient.reshape(-1, *[1] * (x.ndim - 1))


def x_0_from_eps(x_t: Tensor, eps: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    return (x_t - sigma * eps) / alpha


def eps_from_x_0(x_t: Tensor, x_0: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    return (x_t - alpha * x_0) / sigma


def x_0_from_score(x_t: Tensor, score: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    """Tweedie's formula: alpha x_0 = x_t + sigma^2 score."""
    return (x_t + sigma**2 * score) / alpha


def score_from_x_0(x_t: Tensor, x_0: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    """grad log p_t(x_t) = (alpha x_0 - x_t) / sigma^2."""
    return (alpha * x_0 - x_t) / sigma**2


def x_0_from_v(x_t: Tensor, v: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    """v = alpha eps - sigma x_0. Salimans & Ho 2022. arXiv:2202.00512, App. D; here for any alpha^2 + sigma^2."""
    return (alpha * x_t - sigma * v) / (alpha**2 + sigma**2)


def v_from_x_0(x_t: Tensor, x_0: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    return (alpha * x_t - (alpha**2 + sigma**2) * x_0) / sigma


def x_0_from_velocity(x_t: Tensor, velocity: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    """velocity = eps - x_0, the derivative of the straight path alpha = 1 - t, sigma = t."""
    return (x_t - sigma * velocity) / (alpha + sigma)


def velocity_from_x_0(x_t: Tensor, x_0: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    return (x_t - (alpha + sigma) * x_0) / sigma
