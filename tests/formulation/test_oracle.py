"""A network that says the truth in a formulation's language: it is read right, and no other answer has a lower loss."""

import pytest
import torch
from networks import ROWS, ddpm, ncsn
from oracles import two_modes
from torch import nn

from triptych.formulation import ScoreSDE
from triptych.schedule import VE, VP, Cosine, Geometric, LinearBeta, QuadraticBeta, SubVP


def times(formulation, between=True):
    """Native levels and times between them, away from where sigma = 0. float64 [n]."""
    schedule = formulation.schedule
    low = max(schedule.t_min, 1e-3)
    if schedule.levels is None:
        return torch.linspace(low, schedule.t_max, 41, dtype=torch.float64)
    levels = schedule.levels[:: max(1, len(schedule.levels) // 20)]
    return torch.cat([levels, (schedule.levels[1:] + schedule.levels[:-1])[::7] / 2]) if between else levels


def noisy(formulation, t, dtype=torch.float64):
    schedule, x_0 = formulation.schedule, two_modes(formulation.schedule).sample(len(t), seed=1)
    z = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    alpha, sigma = (c.detach()[:, None] for c in (schedule.alpha(t), schedule.sigma(t)))
    return x_0.to(dtype), (alpha * x_0 + sigma * z).to(dtype)


@pytest.mark.parametrize("row", ROWS)
def test_forward_is_the_posterior_mean(row):
    formulation = ROWS[row]()
    t = times(formulation, between=row != "ncsn 1")
    _, x_t = noisy(formulation, t)
    with torch.no_grad():
        torch.testing.assert_close(formulation(x_t, t), two_modes(formulation.schedule)(x_t, t), rtol=0, atol=1e-8)


@pytest.mark.parametrize("row", ROWS)
def test_forward_in_float32(row):
    """x_0 from eps in float32 is good to about 1e-6 / alpha; the oracle, told a float32 time, adds its own rounding."""
    formulation = ROWS[row]()
    t = times(formulation, between=row != "ncsn 1")
    _, x_t = noisy(formulation, t, torch.float32)
    alpha, sigma = (c.detach()[:, None] for c in (formulation.schedule.alpha(t), formulation.schedule.sigma(t)))
    with torch.no_grad():
        x_0 = formulation(x_t, t.float())
    assert x_0.dtype == torch.float32
    error = (x_0 - two_modes(formulation.schedule)(x_t.double(), t)).abs()
    assert (error <= 1e-4 + 1e-6 * sigma / alpha).all(), float(error.max())


@pytest.mark.parametrize("row", ROWS)
def test_loss_is_lowest_at_the_oracle(row):
    """With the same times and noise, at every time: E[loss] is a parabola in the network's scale, lowest at 1."""
    losses = []
    for scale in (0.9, 1.0, 1.1):
        formulation = ROWS[row](scale)
        # Not where sigma is far beyond the data: there eps is all there is to x_t, and an error of x_0 costs nothing.
        t = formulation.schedule.time(torch.tensor([4.0, 2.0, 0.0, -2.0], dtype=torch.float64)).detach()
        if formulation.schedule.levels is not None:
            levels = formulation.schedule.levels
            t = levels[(levels - t[:, None]).abs().argmin(1)]
        n = 2000
        x_0 = two_modes(formulation.schedule).sample(n * len(t), seed=3)
        z = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        with torch.no_grad():
            loss = formulation.loss(x_0, t.repeat_interleave(n), noise=lambda like, z=z: z)
        assert loss.shape == (n * len(t),) and loss.isfinite().all()
        losses.append(loss.reshape(len(t), n).mean(1))
    low, middle, high = losses
    assert (middle < low).all() and (middle < high).all(), losses


@pytest.mark.parametrize("build", [LinearBeta, lambda: LinearBeta(T=250), lambda: Cosine(T=4000), QuadraticBeta])
def test_ddpm_is_told_the_index(build):
    """Exactly 0, ..., T - 1 at the levels, also from float32 times; linear between; never below 0 (T-L1, T-L3)."""
    schedule = build()
    formulation = ddpm(schedule)
    expected = torch.arange(schedule.T, dtype=torch.float64)
    for levels in (schedule.levels, schedule.levels.float()):
        assert torch.equal(formulation.c_noise(levels), expected)
    assert torch.equal(formulation.c_noise(torch.tensor([0.0, 1e-6, 0.3 / schedule.T])), torch.zeros(3).double())
    between = (schedule.levels[:-1] + schedule.levels[1:]) / 2
    torch.testing.assert_close(formulation.c_noise(between), expected[:-1] + 0.5)


def test_ncsn_is_told_its_level():
    """Version 1: index 0 is sigma_max, as in the paper's code (T-L5), and no time but the levels is known."""
    schedule = Geometric(L=10)
    first, second = ncsn(schedule, version=1), ncsn(schedule)
    assert torch.equal(first.c_noise(schedule.levels.float()), torch.arange(9, -1, -1).double())
    assert torch.equal(first.levels, schedule.levels) and second.levels is None
    torch.testing.assert_close(second.c_noise(schedule.levels), schedule.sigma(schedule.levels).log())


@pytest.mark.parametrize("row", ROWS)
def test_range_of_c_noise(row):
    """T-L7: shared networks scale c_noise by the declared range, so it must hold what the network is told."""
    formulation = ROWS[row]()
    low, high = formulation.noise_range
    t = times(formulation, between=row != "ncsn 1")
    with torch.no_grad():
        formulation(noisy(formulation, t)[1], t)
    told = torch.cat(formulation.model.told)
    if row == "ncsn 1":
        assert told.min() == 0 and told.max() == formulation.schedule.L - 1
        return
    assert low - 1e-9 <= told.min() and told.max() <= high + 1e-9
    assert told.max() - told.min() > 0.5 * (high - low)


@pytest.mark.parametrize("schedule", [VP(), SubVP(), VE(0.02, 10.0)], ids=lambda s: type(s).__name__)
def test_likelihood_weighting_is_half_g_squared(schedule):
    """Song, Durkan, Murray, Ermon 2021, Thm. 1: the integrand is g^2 / 2 |score - target|^2, here for a score of 0."""

    class Silent(nn.Module):
        def forward(self, x, c_noise, cond=None):
            return torch.zeros_like(x)

    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x_0 = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eps = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = ScoreSDE(Silent(), schedule, weighting="likelihood").loss(x_0, t, noise=lambda like: eps)
    target = -eps / schedule.sigma(t)[:, None, None, None]
    assert loss.tolist() == pytest.approx(
        (schedule.diffusion_sq(t) / 2 * target.square().mean((1, 2, 3))).tolist(), rel=1e-6
    )
