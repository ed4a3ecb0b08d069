"""UniPC."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.denoiser import Cond, Denoiser
from triptych.noise import Noise
from triptych.sampler.base import Path, Sampler, combine


@dataclass(frozen=True, kw_only=True)
class UniPC(Sampler):
    """UniPC: A Unified Predictor-Corrector Framework. Zhao et al. 2023. arXiv:2302.04867, multistep, B(h) = B_2(h).

    In l = log(alpha / sigma), half our log-SNR, with h = l_s - l_t and r_k = (l_k - l_t) / h for past times k:

        x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) (x_0 + sum_k rho_k (x_0(k) - x_0) / r_k)

    The predictor sums over past x_0 only. The corrector repeats the step with the new x_0 as one more node, r = 1,
    without a call of its own; its result takes the predictor's place as x_t of the next step. As in the paper's code,
    the order falls to 1 in the last steps to sigma = 0. A time of infinite log-SNR is never history.

    Attributes:
        order: 1, 2 or 3.
    """

    order: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2, 3):
            raise ValueError(f"UniPC: order must be 1, 2 or 3, got {self.order}.")

    def coefficients(self, path: Path) -> list[tuple[float, list[float], list[float]]]:
        """For each step: the predictor's weights of x_t and of past x_0, newest first; then what the corrector adds to
        it, the weights of the new x_0 and of the same past ones; none where there is no corrector."""
        half = [log_snr / 2 for log_snr in path.log_snr]
        rows = []
        for i in range(len(path)):
            h, alpha_s, a = half[i + 1] - half[i], path.alpha[i + 1], path.sigma[i + 1] / path.sigma[i]
            if math.isinf(h):
                rows.append((a, [-alpha_s * math.expm1(-h)], []))
                continue
            known = i + 1 if math.isfinite(half[0]) else i
            left = self.order if math.isfinite(half[-1]) else len(path) - i
            nodes = [(half[i - k] - half[i]) / h for k in range(1, min(self.order, known, left))]
            predicted, corrected = weights(nodes, h), weights([*nodes, 1.0], h)
            difference = [c - p for c, p in zip(corrected[:-1], predicted, strict=True)]
            rows.append((a, [alpha_s * w for w in predicted], [alpha_s * w for w in (corrected[-1], *difference)]))
        return rows

    def trajectory(
        self, denoiser: Denoiser, x: Tensor, cond: Cond = None, noise: Noise = torch.randn_like
    ) -> Iterator[Tensor]:
        path = self.path(denoiser)
        times = path.batches(x)
        past: list[Tensor] = []  # x_0, newest first
        correction: list[float] = []
        for i, (a, predictor, corrector) in enumerate(self.coefficients(path)):
            past = [self.predict(denoiser, x, times[i], cond), *past[: self.order]]
            if correction:
                x = combine((1.0, x), *zip(correction, past, strict=False))
            x = combine((a, x), *zip(predictor, past, strict=False))
            correction = corrector
            yield x
        yield from self.finish(denoiser, x, path, cond)


def weights(nodes: list[float], h: float) -> list[float]:
    """The weights, for alpha_s = 1, of x_0 and of the x_0 at the nodes r_k. Nodes in units of h from t, none of them 0.

    rho solves  sum_k rho_k r_k^(m - 1) = m! phi_(m + 1) / phi_1, m = 1 ... p, where phi_m are the exponential
    integrators' functions of -h; a single node takes the paper's rho = 1/2.
    """
    phi, p = -math.expm1(-h), len(nodes)
    if p == 0:
        return [phi]
    if p == 1:
        rho = [0.5]
    else:
        right, value = [], phi / h  # phi_1(-h)
        for m in range(1, p + 1):
            value = (1 / math.factorial(m) - value) / h  # phi_(m + 1)(-h)
            right.append(math.factorial(m) * value / (phi / h))
        r = torch.tensor(nodes, dtype=torch.float64)
        matrix = torch.stack([r**m for m in range(p)])
        rho = torch.linalg.solve(matrix, torch.tensor(right, dtype=torch.float64)).tolist()
    shares = [phi * c / r for c, r in zip(rho, nodes, strict=True)]
    return [phi - sum(shares), *shares]
