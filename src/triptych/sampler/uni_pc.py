"""UniPC."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.denoiser import Cond, Denoiser
from triptych.noise import Noise
from triptych.sampler.base import Path, Row, Sampler
from triptych.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class UniPC(Sampler):
    """UniPC: A Unified Predictor-Corrector Framework. Zhao et al. 2023. arXiv:2302.04867, multistep, B(h) = B_2(h).

    In l = log(alpha / sigma), half our log-SNR, with h = l_s - l_t and r_k = (l_k - l_t) / h for past times k:

        x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) (x_0 + sum_k rho_k (x_0(k) - x_0) / r_k)

    The predictor sums over past x_0 only. The corrector repeats the step with the new x_0 as one more node, r = 1,
    without a call of its own; its result takes the predictor's place as x_t of the next step. It is linear in the
    predicted x_t and in the x_0 that are kept, so it is never formed: its weights are added to those of the next step.

    As in the paper's code, the order falls to 1 in the last steps to sigma = 0. A time of infinite log-SNR is never
    history.

    Attributes:
        order: 1, 2 or 3.
    """

    order: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2, 3):
            raise ValueError(f"UniPC: order must be 1, 2 or 3, got {self.order}.")

    def coefficients(self, schedule: Schedule, path: Path) -> list[Row]:
        """For each step: the weights of the predicted x_t, and of x_0 and those before it, newest first."""
        return rows_of(self.order, path)

    def trajectory(
        self, denoiser: Denoiser, x: Tensor, cond: Cond = None, noise: Noise = torch.randn_like
    ) -> Iterator[Tensor]:
        path = self.path(denoiser)
        yield from self.walk(denoiser, x, path, self.coefficients(denoiser.schedule, path), cond, noise)


@functools.lru_cache(maxsize=8)
def rows_of(order: int, path: Path) -> list[Row]:
    """The coefficients; kept, since they cost as much as a few kernels a step and are the same for every batch."""
    half = [log_snr / 2 for log_snr in path.log_snr]
    rows, correction = [], [0.0]  # the corrector's part of x_t: the weights of the same x_0
    for i in range(len(path)):
        h, alpha_s, a = half[i + 1] - half[i], path.alpha[i + 1], path.sigma[i + 1] / path.sigma[i]
        if math.isinf(h):
            predicted, corrected = [-math.expm1(-h)], []
        else:
            known = i + 1 if math.isfinite(half[0]) else i
            left = order if math.isfinite(half[-1]) else len(path) - i
            nodes = [(half[i - k] - half[i]) / h for k in range(1, min(order, known, left))]
            predicted, corrected = weights(nodes, h), weights([*nodes, 1.0], h)
        row = [a * c for c in correction] + [0.0] * (len(predicted) - len(correction))
        for k, w in enumerate(predicted):
            row[k] += alpha_s * w
        rows.append((a, row, 0.0))
        *past, new = corrected or [0.0]
        correction = [alpha_s * new, *(alpha_s * (c - w) for c, w in zip(past, predicted, strict=False))]
    return rows


def weights(nodes: list[float], h: float) -> list[float]:
    """The weights, for alpha_s = 1, of x_0 and of the x_0 at the nodes r_k. Nodes in units of h from t, none of them 0.

    rho solves  sum_k rho_k r_k^(m - 1) = m! phi_(m + 1) / phi_1, m = 1 ... p, where phi_m are the exponential
    integrators' functions of -h; a single node takes the paper's rho = 1/2.
    """
    share = -math.expm1(-h)
    if not nodes:
        return [share]
    if len(nodes) == 1:
        rho = [0.5]
    else:
        phi_1 = share / h
        phi_2 = (1 - phi_1) / h
        phi_3 = (1 / 2 - phi_2) / h
        phi_4 = (1 / 6 - phi_3) / h
        rho = vandermonde(nodes, [phi_2 / phi_1, 2 * phi_3 / phi_1, 6 * phi_4 / phi_1])
    others = [share * c / r for c, r in zip(rho, nodes, strict=True)]
    return [share - sum(others), *others]


def vandermonde(nodes: list[float], right: list[float]) -> list[float]:
    """Solves sum_k rho_k r_k^(m - 1) = right_m, m = 1 ... p, at two or three nodes, by Lagrange's polynomials."""
    c, d, e = right
    if len(nodes) == 2:
        r, s = nodes
        return [(d - s * c) / (r - s), (d - r * c) / (s - r)]
    r, s, u = nodes
    orders = (r, s, u), (s, r, u), (u, r, s)
    return [(e - (y + z) * d + y * z * c) / ((x - y) * (x - z)) for x, y, z in orders]
