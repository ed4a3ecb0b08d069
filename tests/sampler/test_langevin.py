"""Annealed Langevin dynamics on Gaussian data, where every step is affine: its law is known without Monte Carlo error.

At level sigma the score of x_0 ~ N(m, s^2) is (m - x) / (s^2 + sigma^2), so a step of size a = u sigma^2 carries

    mean <- mean + a (m - mean) / v,     variance <- (1 - a / v)^2 variance + 2 a,     v = s^2 + sigma^2.

Of one level alone the stationary variance is v / (1 - a / 2 v). Technique 4 chooses u for data of no width, s = 0.
"""

import math

import pytest
import torch
from oracles import gaussian

from triptych.sampler import AnnealedLangevin
from triptych.schedule import EDM, VE, Geometric
from triptych.schedule.technique import langevin_step_size

MEAN = 0.3


def recursion(sigmas, std, steps_per_level, u, mean, variance, denoise):
    for sigma in sigmas:
        v, a = std**2 + sigma**2, u * sigma**2
        for _ in range(steps_per_level):
            mean += a * (MEAN - mean) / v
            variance = (1 - a / v) ** 2 * variance + 2 * a
    if denoise == "mean":
        variance -= 2 * a
    gain = std**2 / v if denoise == "tweedie" else 1.0  # E[x_0 | x] = m + gain (x - m)
    return MEAN + gain * (mean - MEAN), gain * math.sqrt(variance)


def law(sampler, denoiser, draws, std):
    """Mean and standard deviation of the samples, exactly, from x of mean 0: one random number a row of the batch."""
    x = torch.zeros(draws + 2, 1, dtype=torch.float64)
    x[1] = std
    count = iter(range(2, draws + 2))

    def noise(like):
        z = torch.zeros_like(like)
        z[next(count)] = 1
        return z

    y = sampler(denoiser, x, noise=noise)
    return float(y[0]), float((y[1:] - y[0]).square().sum().sqrt())


@pytest.mark.parametrize("denoise", ["tweedie", "mean", "none"])
@pytest.mark.parametrize("std", [0.02, 0.1, 0.75])
@pytest.mark.parametrize(
    ("schedule", "steps", "steps_per_level", "step_size", "pull"),
    [
        (Geometric(22, 0.02, 10.0), None, 5, None, None),
        (Geometric(22, 0.02, 10.0), None, 5, None, 0.5),
        (Geometric(10, 0.02, 2.0), None, 3, 8e-5, 0.5),
        (VE(0.05, 4.0), 7, 2, 1e-3, None),
        (EDM(), 12, 4, None, None),
    ],
)
def test_the_law_is_that_of_the_recursion(schedule, steps, steps_per_level, step_size, pull, std, denoise):
    options = {"steps_per_level": steps_per_level, "step_size": step_size, "pull": pull, "denoise": denoise}
    sampler = AnnealedLangevin(steps=steps, **options)
    levels = steps or schedule.L
    top, bottom = schedule.prior_std, getattr(schedule, "sigma_min", 0.0)
    sigmas = [top * (bottom / top) ** (i / (levels - 1)) for i in range(levels)]
    technique_4 = langevin_step_size(bottom, (top / bottom) ** (1 / (levels - 1)), steps_per_level) / bottom**2
    u = step_size / bottom**2 if step_size else pull or technique_4
    expected = recursion(sigmas, std, steps_per_level, u, 0.0, 1 / 3, denoise)
    drawn = law(sampler, gaussian(schedule, MEAN, std), levels * steps_per_level, math.sqrt(1 / 3))
    assert drawn == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("std", [0.05, 0.3])
def test_one_level_comes_to_its_stationary_variance(std):
    schedule, u = Geometric(2, 0.1, 0.2), 0.3
    sampler = AnnealedLangevin(steps_per_level=200, step_size=u * 0.1**2, denoise="none")
    mean, width = law(sampler, gaussian(schedule, MEAN, std), 400, 1.0)
    v = std**2 + 0.1**2
    assert mean == pytest.approx(MEAN, abs=1e-6)
    assert width == pytest.approx(math.sqrt(v / (1 - u * 0.1**2 / (2 * v))), rel=1e-6)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2, 0.5, 0.75])
def test_the_digits_ladder_is_right_in_width_to_10_percent(std):
    """22 levels of 5 steps from 10 to 0.02, by default; Technique 4's step leaves 7 to 17 %."""
    schedule = Geometric(22, 0.02, 10.0)
    denoiser = gaussian(schedule, MEAN, std)
    _, width = law(AnnealedLangevin(), denoiser, 110, math.sqrt(1 / 3))
    assert width == pytest.approx(std, rel=0.1)
    _, wide = law(AnnealedLangevin(pull=None), denoiser, 110, math.sqrt(1 / 3))
    assert wide > 1.06 * std
