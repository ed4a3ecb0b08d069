"""NCSNv2's Techniques 1, 2 and 4 against brute force and against the constants that the paper publishes."""

import math

import pytest
import torch

from triptych.schedule.technique import (
    langevin_step_size,
    largest_distance,
    level_ratio,
    number_of_levels,
    suggest,
)

# CIFAR-10, CelebA 64, LSUN bedroom 128, FFHQ 256, on images in [0, 1]: D, sigma_1, L, T, epsilon; sigma_L = 0.01.
PUBLISHED = [
    (3 * 32**2, 50.0, 232, 5, 6.2e-6),
    (3 * 64**2, 90.0, 500, 5, 3.3e-6),
    (3 * 128**2, 190.0, 1086, 3, 1.8e-6),
    (3 * 256**2, 348.0, 2311, 3, 0.9e-6),
]


def ratio(sigma_1, L):
    return (sigma_1 / 0.01) ** (1 / (L - 1))


@pytest.mark.parametrize(("D", "sigma_1", "L", "T", "epsilon"), PUBLISHED)
def test_step_size_is_the_published_one(D, sigma_1, L, T, epsilon):
    """To the one or two digits in which the paper gives it."""
    assert langevin_step_size(0.01, ratio(sigma_1, L), T) == pytest.approx(epsilon, rel=0.02)


@pytest.mark.parametrize(("D", "sigma_1", "L", "T", "epsilon"), PUBLISHED)
def test_levels_are_the_published_ones(D, sigma_1, L, T, epsilon):
    """One overlap gives all four ladders to 0.1 %; the paper's 'about 0.5', read as 0.5, gives 5.5 % fewer levels."""
    assert number_of_levels(0.01, sigma_1, level_ratio(D)) == pytest.approx(L, rel=1e-3)
    assert number_of_levels(0.01, sigma_1, level_ratio(D, overlap=0.5)) == pytest.approx(L / 1.058, rel=5e-3)


@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.567])
@pytest.mark.parametrize("D", [64, 3072, 3 * 1024**2])
def test_level_ratio_solves_its_equation(D, overlap):
    gamma = torch.tensor(level_ratio(D, overlap), dtype=torch.float64)
    root = math.sqrt(2 * D)
    phi = torch.special.ndtr
    value = phi(root * (gamma - 1) + 3 * gamma) - phi(root * (gamma - 1) - 3 * gamma)
    assert float(value) == pytest.approx(overlap, abs=1e-11)


@pytest.mark.parametrize("T", [1, 5, 100])
@pytest.mark.parametrize("gamma", [1.004, 1.04, 1.6])
def test_step_size_is_the_best_of_a_dense_scan(gamma, T):
    """The variance after T steps, by iterating the steps themselves on a Gaussian, is nowhere nearer to 1."""
    u = torch.logspace(-6, 0, 20001, dtype=torch.float64)[:-1]
    variance = torch.full_like(u, gamma**2)
    for _ in range(T):
        variance = (1 - u) ** 2 * variance + 2 * u
    best = float(u[(variance - 1).abs().argmin()])
    assert langevin_step_size(0.3, gamma, T) / 0.3**2 == pytest.approx(best, rel=2e-3)


def test_step_size_follows_the_range_of_the_data():
    """Images in [-1, 1] instead of [0, 1]: sigmas times 2, step size times 4."""
    assert langevin_step_size(0.02, 1.0376, 5) == pytest.approx(4 * langevin_step_size(0.01, 1.0376, 5))


@pytest.mark.parametrize("chunk", [7, 64, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_largest_distance_is_that_of_all_pairs(seed, chunk):
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(300, 3, 2, 2, generator=source) + 10
    brute = torch.cdist(x.flatten(1).double(), x.flatten(1).double()).max()
    assert largest_distance(x, chunk) == pytest.approx(float(brute), rel=1e-6)


def test_largest_distance_of_points_on_a_sphere_prunes_nothing_away():
    """All radii alike, where the bound by radii excludes nothing."""
    x = torch.nn.functional.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    assert largest_distance(x, 50) == pytest.approx(float(torch.cdist(x.double(), x.double()).max()), rel=1e-6)


def test_suggestion_for_a_dataset():
    x = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    constants = suggest(x)
    assert constants.sigma_max == pytest.approx(float(torch.cdist(x.flatten(1), x.flatten(1)).max()), rel=1e-5)
    gamma = (constants.sigma_max / constants.sigma_min) ** (1 / (constants.L - 1))
    assert gamma == pytest.approx(level_ratio(192), rel=5e-3)
    assert constants.step_size == pytest.approx(langevin_step_size(0.02, gamma, 5))


def test_what_has_no_answer_is_refused():
    with pytest.raises(ValueError, match="choose the number of levels yourself"):
        level_ratio(2)
    with pytest.raises(ValueError, match="two samples"):
        largest_distance(torch.zeros(1, 2))
