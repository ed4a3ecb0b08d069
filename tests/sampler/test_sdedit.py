"""Image to image: begun with given images at t_start, in closed form on Gaussian data."""

import dataclasses
import math

import pytest
import torch
from oracles import gaussian, two_modes

from triptych.sampler import DDIM, Ancestral, AnnealedLangevin, DPMSolver, EulerMaruyama, Heun, ProbabilityFlow, UniPC
from triptych.schedule import EDM, VE, VP, Geometric, Rectified, Schedule

MEAN, STD = 0.3, 0.5  # of the data
SCHEDULES = [VP(), VE(0.02, 8.0), EDM(0.002, 8.0), Rectified()]
FLOW = [
    Heun(steps=200, t_start=0.6),
    DPMSolver(steps=200, order=3, t_start=0.6),
    UniPC(steps=200, t_start=0.6),
    ProbabilityFlow(t_start=0.6),
    DDIM(steps=1, grid=[0.6 * (1 - i / 2000) for i in range(2001)]),
]
POSTERIOR = [
    Ancestral(steps=1000, t_start=0.6),
    DDIM(steps=1000, eta=1.0, t_start=0.6),
    EulerMaruyama(steps=2000, t_start=0.6),
]


def name(value):
    return type(value).__name__


def numbers(schedule: Schedule, t: float) -> tuple[float, float]:
    at = torch.tensor(t, dtype=torch.float64)
    return float(schedule.alpha(at)), float(schedule.sigma(at))


def law(sampler, denoiser, given, draws):
    """Mean and standard deviation of what becomes of one given number, exactly: all is affine in the random numbers."""
    x_0 = torch.full((draws + 1, 1), given, dtype=torch.float64)
    count = iter(range(1, draws + 1))

    def noise(like):
        z = torch.zeros_like(like)
        z[next(count)] = 1
        return z

    y = sampler(denoiser, sampler.start_from(denoiser, x_0, noise), noise=noise)
    return float(y[0]), float((y[1:] - y[0]).square().sum().sqrt())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("sampler", FLOW, ids=name)
def test_the_flow_from_a_given_image(sampler, schedule):
    """x_t = alpha a + sigma z; the flow multiplies x_t - alpha m by the ratio of the marginals' widths."""
    (alpha, sigma), (alpha_0, sigma_0) = numbers(schedule, 0.6), numbers(schedule, 0.0)
    ratio = math.hypot(alpha_0 * STD, sigma_0) / math.hypot(alpha * STD, sigma)
    mean, std = law(sampler, gaussian(schedule, MEAN, STD), -0.7, 1)
    assert mean == pytest.approx(MEAN + ratio * alpha * (-0.7 - MEAN), abs=3e-3)
    assert std == pytest.approx(ratio * sigma, rel=6e-3)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("sampler", POSTERIOR, ids=name)
def test_a_stochastic_sampler_draws_from_the_posterior(sampler, schedule):
    """x_0 ~ p(x_0 | x_t): the given image counts by alpha gain, gain = alpha s^2 / (alpha^2 s^2 + sigma^2)."""
    alpha, sigma = numbers(schedule, 0.6)
    gain = alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2)
    spread = math.hypot(gain * sigma, STD * sigma / math.hypot(alpha * STD, sigma))
    mean, std = law(sampler, gaussian(schedule, MEAN, STD), -0.7, sampler.steps)
    assert mean == pytest.approx(MEAN + gain * alpha * (-0.7 - MEAN), abs=0.01)
    assert std == pytest.approx(spread, rel=0.02)


def test_the_noise_is_that_of_the_first_time_that_is_visited():
    """Design 4.3: a network of levels is asked at its nearest level, and x is as noisy as that level says."""
    schedule, z = Geometric(10, 0.02, 2.0), torch.ones(1, 2, dtype=torch.float64)
    denoiser = two_modes(schedule, levels=schedule.levels)
    for sampler in (DDIM(steps=20, t_start=0.5), AnnealedLangevin(t_start=0.5)):
        x = sampler.start_from(denoiser, 0 * z, lambda like: z)
        sampler(denoiser, x)
        assert float(x[0, 0]) == pytest.approx(float(schedule.sigma(denoiser.times[0][0])))
        denoiser.times.clear()


def test_noise_at_t_start_and_images_at_1_are_refused():
    for sampler in (DDIM(steps=5), AnnealedLangevin()):
        with pytest.raises(ValueError, match=r"nothing is left of the given images.*t_start=0.5"):
            sampler.start_from(two_modes(Geometric()), torch.zeros(1, 2))
        with pytest.raises(ValueError, match=r"t_start=0.5 begins with given images"):
            dataclasses.replace(sampler, t_start=0.5).start(Geometric(), (1, 2))
