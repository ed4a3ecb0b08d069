# pyright: reportAttributeAccessIssue=false
import warnings
from typing import Any

import numpy as np
import torch
from scipy.linalg import blas, eigvalsh, lapack, svdvals
from torch import Tensor, nn

from triptych.metric.base import FeatureMetric
from triptych.metric.extractor import FrozenExtractor
from triptych.metric.statistics import Statistics, add_outer


def frechet_distance(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> Tensor:
    """The distance between two normal distributions. Dowson, Landau 1982.

        d^2 = |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))

    in float64, [D], [D, D], [D], [D, D] -> []. Like FID it is the squared distance. LAPACK does it on the CPU.
    """
    device = mean_1.device
    mean_1, cov_1, mean_2, cov_2 = (x.detach().double().cpu() for x in (mean_1, cov_1, mean_2, cov_2))
    d = mean_1.numel()
    if not (mean_1.shape == mean_2.shape == (d,) and cov_1.shape == cov_2.shape == (d, d)):
        raise ValueError(
            f"The statistics differ in size: means {list(mean_1.shape)} and {list(mean_2.shape)}, "
            f"covariances {list(cov_1.shape)} and {list(cov_2.shape)}."
        )
    if not all(bool(torch.isfinite(x).all()) for x in (mean_1, cov_1, mean_2, cov_2)):
        raise ValueError("The statistics hold NaN or Inf, so no distance is defined.")
    traces = cov_1.trace() + cov_2.trace() - 2 * trace_sqrt(cov_1.numpy(), cov_2.numpy())
    return ((mean_1 - mean_2).square().sum() + traces).clamp(min=0).to(device)


def trace_sqrt(cov_1: np.ndarray, cov_2: np.ndarray) -> float:
    """tr (S_1 S_2)^(1/2) of two positive semi-definite matrices, float64 [D, D].

    With S_1 = F F^T, F [D, rank], it is the sum of the square roots of the eigenvalues mu of the symmetric F^T S_2 F.
    Of deficient matrices (fewer samples than features, dead features) the one of lower rank is factored, with as many
    columns as the rank: then no mu is there that should be zero and has a root of 1e-8 (T-F9). Rounding moves each
    mu by about eps mu_max, hence its root by eps mu_max / (2 sqrt(mu)): where that adds up, the singular values
    of F_1^T F_2 serve, which need no root.
    """
    cov_1, cov_2 = cov_1.T, cov_2.T  # the same matrices, column-major as LAPACK wants them
    tolerable = 1e-11 * (cov_1.trace() + cov_2.trace())
    lower, failed_1 = lapack.dpotrf(cov_1, lower=True, clean=True)
    if failed_1 == lapack.dpotrf(cov_2, lower=True, clean=False)[1] == 0:
        product = blas.dtrmm(1.0, lower, cov_2, lower=True, trans_a=True)
        product = blas.dtrmm(1.0, lower, product, side=True, lower=True, overwrite_b=True)
        total, error = _sum_of_roots(product)
        if error <= tolerable:
            return total
    factor_1, factor_2 = _factor(cov_1), _factor(cov_2)
    if factor_2.shape[1] < factor_1.shape[1]:
        factor_1, factor_2, cov_2 = factor_2, factor_1, cov_1
    if factor_1.shape[1] == 0:
        return 0.0
    if factor_1.shape[1] < len(cov_2):
        total, error = _sum_of_roots(factor_1.T @ cov_2 @ factor_1)
        if error <= tolerable:
            return total
    return svdvals(factor_1.T @ factor_2, overwrite_a=True, check_finite=False).sum()


def _sum_of_roots(product: np.ndarray) -> tuple[float, float]:
    """sum sqrt(mu) over the eigenvalues of a symmetric matrix, and a bound of what rounding does to it."""
    mu = eigvalsh(product, overwrite_a=True, check_finite=False)
    roots = np.sqrt(mu.clip(min=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return roots.sum(), np.finfo(float).eps * mu[-1] * (0.5 / roots).sum()


def _factor(cov: np.ndarray) -> np.ndarray:
    """F [D, rank] with F F^T = S by Cholesky with pivoting, which stops where only rounding is left."""
    tolerance = len(cov) * np.finfo(float).eps * cov.diagonal().max()
    lower, pivots, rank, _ = lapack.dpstrf(cov, lower=True, tol=tolerance)
    factor = np.zeros((len(cov), rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    return factor


class FrechetDistance(FeatureMetric):
    """GANs Trained by a Two Time-Scale Update Rule Converge. Heusel et al. 2017. arXiv:1706.08500, Eq. 6.

    `frechet_distance` between the features of real and of generated images. It is the FID only with the features
    of `Inception`; with any other extractor it is called `fd_<extractor>`.

    n, sum f and sum f f^T are float64 and reduced over processes by addition (T-F10). `reference` is a `Statistics`.
    """

    higher_is_better = False
    real_total: Tensor
    extractor: FrozenExtractor

    def __init__(self, extractor: nn.Module | FrozenExtractor, reset_real: bool = True, **kwargs: Any) -> None:
        super().__init__(extractor, reset_real, **kwargs)
        d = self.extractor.num_features
        for side in ("real", "fake"):
            self.add_state(f"{side}_n", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state(f"{side}_total", torch.zeros(d, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_outer", torch.zeros(d, d, dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, features: Tensor, real: bool, index: Tensor | None) -> None:
        features = features.double()
        n, total, outer = self._sums(real)
        n += len(features)
        total += features.sum(0)
        add_outer(outer, features)

    def compute(self) -> Tensor:
        """[] float64. Warns where a covariance has fewer samples than features (T-F4)."""
        real, fake = self.real_statistics, self.fake_statistics
        d = self.extractor.num_features
        fewest = min(s.n for s in (real, fake) if s.n)
        if fewest <= d:
            warnings.warn(
                f"{fewest} samples for {d} features: this Fréchet distance is biased upwards and compares only "
                f"with others of the same N. Use more than {d} samples, or KernelDistance (metric=kid), which has no "
                "bias, or FrechetInfinity (metric=fid_infinity), which extrapolates.",
                stacklevel=2,
            )
        return frechet_distance(real.mean, real.cov, fake.mean, fake.cov).to(self.device)

    @property
    def real_statistics(self) -> Statistics:
        """Of this process's real images, of all processes' inside `sync_context()`; or the loaded reference."""
        return self._statistics(real=True) if self.reference is None else self.reference

    @property
    def fake_statistics(self) -> Statistics:
        """Of the generated images, likewise."""
        return self._statistics(real=False)

    def real_summary(self) -> Statistics:
        return self.real_statistics

    def use_reference(self, reference: Statistics) -> None:
        """Compares with these statistics instead of real images; `reset()` keeps them."""
        reference.check(self.extractor.identity, self.extractor.num_features)
        super().use_reference(reference)

    def _sums(self, real: bool) -> tuple[Tensor, Tensor, Tensor]:
        side = "real" if real else "fake"
        return getattr(self, f"{side}_n"), getattr(self, f"{side}_total"), getattr(self, f"{side}_outer")

    def _statistics(self, real: bool) -> Statistics:
        n, total, outer = self._sums(real)
        if n < 2:
            kind = "real" if real else "generated"
            raise ValueError(f"A Fréchet distance needs at least 2 {kind} images, but has seen {int(n)}.")
        return Statistics.from_sums(n, total, outer, self.extractor.identity)
