"""The constants that NCSNv2 derives from a dataset. Song & Ermon 2020. arXiv:2006.09011, Techniques 1, 2 and 4.

All of it holds for data in any range: the sigmas scale with the data, the step size with their square.
"""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

OVERLAP = 0.567  # Technique 2 asks for "about 0.5"; all four ladders that the paper publishes have 0.567


def largest_distance(x: Tensor, chunk: int = 2048) -> float:
    """Technique 1: sigma_max is the largest Euclidean distance between any two samples. x [N, ...].

    Exact over all N (N - 1) / 2 pairs, by matrix products of chunks. Samples are sorted by their distance from the
    mean, since two of them are no further apart than the sum of theirs: most chunks need not be looked at.
    """
    if len(x) < 2:
        raise ValueError(f"The largest distance needs at least two samples, got {len(x)}.")
    x = x.flatten(1).float()
    x = x - x.mean(0)
    radius = x.norm(dim=1)
    radius, order = radius.sort(descending=True)
    best, pair = -1.0, (0, 1)
    for i in range(0, len(x), chunk):
        if 2 * float(radius[i]) <= best:
            break
        rows = x[order[i : i + chunk]]
        for j in range(i, len(x), chunk):
            if float(radius[i] + radius[j]) <= best:
                break
            columns = x[order[j : j + chunk]]
            square = radius[i : i + chunk, None].square() + radius[j : j + chunk].square()
            square = torch.addmm(square, rows, columns.T, alpha=-2)
            value, index = square.flatten().max(0)
            if float(value) > best * abs(best):
                best = math.sqrt(max(0.0, float(value)))
                pair = (int(order[i + int(index) // len(columns)]), int(order[j + int(index) % len(columns)]))
    return float((x[pair[0]].double() - x[pair[1]].double()).norm())


def level_ratio(dimension: int, overlap: float = OVERLAP) -> float:
    """Technique 2: the ratio gamma > 1 of neighbouring levels at which the shells of noise overlap as wanted, i.e.

    Phi(sqrt(2 D) (gamma - 1) + 3 gamma) - Phi(sqrt(2 D) (gamma - 1) - 3 gamma) = overlap.
    """
    if not (isinstance(dimension, int) and dimension >= 1):
        raise ValueError(f"dimension, the number of values of one sample, must be at least 1, got {dimension}.")
    if not 0 < overlap < 0.99:
        raise ValueError(f"overlap must be above 0 and below 0.99, got {overlap}.")
    root, phi = math.sqrt(2 * dimension), NormalDist().cdf

    def excess(log_step: float) -> float:
        step = math.expm1(log_step)  # gamma - 1
        return phi(root * step + 3 * (1 + step)) - phi(root * step - 3 * (1 + step)) - overlap

    low, high = 0.0, 1.0
    while excess(high) > 0:
        if high > 100:  # root < 3: the shells overlap at any ratio
            raise ValueError(
                f"Technique 2 has no ratio for {dimension} dimensions at overlap={overlap}: it is made for images; "
                "choose the number of levels yourself."
            )
        high *= 2
    return math.exp(_root(excess, low, high))


def number_of_levels(sigma_min: float, sigma_max: float, ratio: float) -> int:
    """The L of a geometric ladder from sigma_min to sigma_max whose ratio is as near to `ratio` as it can be."""
    if not 0 < sigma_min < sigma_max or not ratio > 1:
        raise ValueError(f"0 < sigma_min < sigma_max and ratio > 1 are needed, got {sigma_min}, {sigma_max}, {ratio}.")
    return max(2, 1 + round(math.log(sigma_max / sigma_min) / math.log(ratio)))


def langevin_step_size(sigma_min: float, ratio: float, steps_per_level: int) -> float:
    """Technique 4: the epsilon whose T steps at a level bring the variance nearest to that level's.

    With u = epsilon / sigma_min^2, a level entered with gamma^2 times its variance is left with

        (1 - u)^(2 T) (gamma^2 - 2 / (2 - u)) + 2 / (2 - u)

    times its variance, which the paper wants to be about 1. It lies between gamma^2 and 2 / (2 - u), hence above 1 for
    any u: its minimum is found as the root of its derivative on 0 < u < 1.
    """
    if not sigma_min > 0 or not ratio > 1 or steps_per_level < 1:
        raise ValueError(
            "sigma_min > 0, ratio > 1 and steps_per_level >= 1 are needed, "
            f"got {sigma_min}, {ratio}, {steps_per_level}."
        )
    excess, power = math.expm1(2 * math.log(ratio)), 2 * steps_per_level  # gamma^2 - 1

    def slope(log_u: float) -> float:
        u = math.exp(log_u)
        log_keep = math.log1p(-u)
        falling = -power * math.exp((power - 1) * log_keep) * (excess - u / (2 - u))
        return falling - math.expm1(power * log_keep) * 2 / (2 - u) ** 2

    return math.exp(_root(slope, -80.0, -1e-12)) * sigma_min**2


class Constants(NamedTuple):
    """What NCSNv2 suggests for a dataset."""

    sigma_min: float
    sigma_max: float
    L: int
    steps_per_level: int
    step_size: float


def suggest(x: Tensor, sigma_min: float = 0.02, steps_per_level: int = 5) -> Constants:
    """The constants for these samples, x [N, ...]; sigma_min is the paper's 0.01, doubled for data in [-1, 1]."""
    sigma_max = largest_distance(x)
    levels = number_of_levels(sigma_min, sigma_max, level_ratio(x[0].numel()))
    ratio = (sigma_max / sigma_min) ** (1 / (levels - 1))
    step_size = langevin_step_size(sigma_min, ratio, steps_per_level)
    return Constants(sigma_min, sigma_max, levels, steps_per_level, step_size)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function changes its sign between two points, by bisection to the last bit."""
    sign = function(low) > 0
    for _ in range(200):
        middle = (low + high) / 2
        if (function(middle) > 0) == sign:
            low = middle
        else:
            high = middle
    return (low + high) / 2
