"""Distances of points."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from triptych.metric import MMD, PrecisionRecall, SlicedWasserstein
from triptych.metric.sliced_wasserstein import wasserstein_sq


def points(n: int, seed: int) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(metric, real: Tensor, fake: Tensor):
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric


def test_wasserstein_on_the_line_is_an_assignment():
    """Equal numbers: the least mean square over all pairings; 5 against 7: each point repeated 7 and 5 times."""
    x, y = points(5, 1)[:, 0].numpy(), points(7, 2)[:, 0].numpy()
    cost = (np.repeat(x, 7)[:, None] - np.repeat(y, 5)[None]) ** 2
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    got = wasserstein_sq(torch.from_numpy(x)[:, None], torch.from_numpy(y)[:, None])
    assert float(got) == pytest.approx(cost[rows, columns].mean(), rel=1e-12)


def test_sliced_wasserstein_of_a_shift_and_of_a_set_with_itself():
    """Shifted by a in two dimensions: W_2 along u is |<u, a>|, whose mean square is |a|^2 / 2."""
    x = points(300, 1)
    shifted = filled(SlicedWasserstein(directions=4000), x, x + torch.tensor([0.6, -0.8])).compute()
    assert float(shifted) == pytest.approx(math.sqrt(0.5), rel=0.03)
    assert float(filled(SlicedWasserstein(), x, x).compute()) == 0
    with pytest.raises(ValueError, match="2 coordinates, generated ones 1"):
        filled(SlicedWasserstein(), x, x[:, :1]).compute()


def test_mmd_equals_a_double_loop():
    x, y = points(9, 1), points(7, 2) + 0.5

    def k(a: Tensor, b: Tensor) -> float:
        square = float((a - b).square().sum())
        return sum(math.exp(-square / (2 * b**2)) for b in (0.3, 1.0)) / 2

    def mean(values) -> float:
        return sum(values) / len(values)

    within = [mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    expected = sum(within) - 2 * mean([k(a, b) for a in x for b in y])
    assert float(filled(MMD((0.3, 1.0)), x, y).compute()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MMD([]), "MMD: bandwidths"),
        (lambda: MMD([0.1, 0.0]), "MMD: bandwidths"),
        (lambda: SlicedWasserstein(0), "SlicedWasserstein: directions"),
        (lambda: PrecisionRecall(None, k=0), "PrecisionRecall: k"),
    ],
)
def test_settings_that_measure_nothing_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_bad_points_are_refused():
    for bad in (torch.full((4, 2), torch.nan), torch.zeros(4), torch.zeros(0, 2)):
        with pytest.raises(ValueError, match="finite points"):
            MMD().update(bad, real=True)
    with pytest.raises(ValueError, match="at least 2 samples a side"):
        filled(MMD(), points(5, 1), points(1, 2)).compute()
    with pytest.raises(ValueError, match="at least 1 real samples"):
        SlicedWasserstein().stored(real=True)
