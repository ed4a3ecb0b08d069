"""Is one mean better than another, or within the noise? A stated test, or none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.05
TEST = (
    "Best of a column: ★. Within the noise of it: ≈, if Welch's t-test (two-sided, 5 %, no correction for many "
    "comparisons) does not tell the means over training seeds apart. Where either has a single seed: the same test on "
    "its seed blocks of samples, then a z-test on its standard errors, which both leave out how training varies. "
    "?: no test is possible."
)


@dataclass(frozen=True)
class Sample:
    """What was measured of one row in one column.

    Attributes:
        values: one a training seed.
        blocks: of a single seed, one a disjoint block of samples.
        standard_error: of a single seed's value.
    """

    values: tuple[float, ...]
    blocks: tuple[float, ...] = ()
    standard_error: float | None = None

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def std(self) -> float | None:
        return deviation(self.values)


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation (n - 1); None of one value."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))


def compare(best: Sample, other: Sample) -> tuple[float | None, str]:
    """(two-sided p that the means are equal, by which test); (None, why) where no test is possible."""
    if len(best.values) > 1 and len(other.values) > 1:
        return welch(best.values, other.values), f"Welch's t on {len(best.values)} and {len(other.values)} seeds"
    if len(best.blocks) > 1 and len(other.blocks) > 1:
        return welch(best.blocks, other.blocks), f"Welch's t on {len(best.blocks)} and {len(other.blocks)} seed blocks"
    if best.standard_error and other.standard_error:
        z = (best.mean - other.mean) / math.hypot(best.standard_error, other.standard_error)
        return math.erfc(abs(z) / math.sqrt(2)), "z-test on standard errors"
    return None, "one seed, one seed block, no standard error: no test is possible"


def welch(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of Welch's t-test, Biometrika 34 (1947), with the Welch-Satterthwaite degrees of freedom."""
    from scipy.special import stdtr

    n, m = len(a), len(b)
    mean_a, mean_b = sum(a) / n, sum(b) / m
    std_a, std_b = deviation(a), deviation(b)
    assert std_a is not None and std_b is not None
    u, v = std_a**2 / n, std_b**2 / m
    if u + v == 0:
        return 1.0 if mean_a == mean_b else 0.0
    t = (mean_a - mean_b) / math.sqrt(u + v)
    freedom = (u + v) ** 2 / (u**2 / (n - 1) + v**2 / (m - 1))
    return float(2 * stdtr(freedom, -abs(t)))
