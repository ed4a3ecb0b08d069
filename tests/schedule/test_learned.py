"""The learned schedule: a schedule like any other, and one that training makes better at its task."""

import pytest
import torch
from oracles import MODES, WEIGHTS, WIDTH, two_modes
from torch import nn

from triptych.formulation import ScoreSDE
from triptych.schedule import Learned
from triptych.schedule.base import Schedule


def shaken(hidden=8, **options):
    """A schedule that is no longer where it started."""
    schedule, source = Learned(hidden=hidden, **options), torch.Generator().manual_seed(0)
    for parameter in schedule.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=source)
    return schedule


T = torch.linspace(0, 1, 201, dtype=torch.float64)


def test_ends_are_fixed_and_log_snr_falls():
    for schedule in (Learned(), shaken(), shaken(log_snr_max=6.0, log_snr_min=-8.0)):
        log_snr = schedule.log_snr(T).detach()
        assert log_snr[0] == pytest.approx(schedule.log_snr_max) and log_snr[-1] == pytest.approx(schedule.log_snr_min)
        assert (log_snr[1:] < log_snr[:-1]).all()
        torch.testing.assert_close(schedule.alpha(T) ** 2 + schedule.sigma(T) ** 2, torch.ones_like(T))
        torch.testing.assert_close(2 * (schedule.alpha(T) / schedule.sigma(T)).log().detach(), log_snr)


def test_starts_close_to_a_straight_line():
    straight = 13.3 - 18.3 * T
    assert (Learned().log_snr(T) - straight).abs().max() < 0.3


def test_drift_and_diffusion_are_those_of_alpha_and_sigma():
    """The closed forms against the definition in the base, by forward-mode differentiation."""
    schedule = shaken()
    torch.testing.assert_close(schedule.drift(T), Schedule.drift(schedule, T), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(schedule.diffusion_sq(T), Schedule.diffusion_sq(schedule, T), rtol=1e-9, atol=1e-12)


def test_time_inverts_log_snr():
    schedule = shaken()
    with torch.no_grad():
        torch.testing.assert_close(schedule.time(schedule.log_snr(T)), T, rtol=0, atol=1e-12)
        ends = schedule.time(torch.tensor([torch.inf, -torch.inf], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-12)


class Oracle(nn.Module):
    """eps of the two-mode mixture at the log-SNR it is told, differentiable in all it is given."""

    def __init__(self, schedule):
        super().__init__()
        self.log_snr_max, self.log_snr_min = schedule.log_snr_max, schedule.log_snr_min

    def forward(self, x, c_noise, cond=None):
        log_snr = self.log_snr_max - c_noise / 999 * (self.log_snr_max - self.log_snr_min)
        alpha, sigma = log_snr.sigmoid().sqrt()[:, None], (-log_snr).sigmoid().sqrt()[:, None]
        points, weights = torch.tensor(MODES, dtype=x.dtype), torch.tensor(WEIGHTS, dtype=x.dtype)
        variance = (alpha * WIDTH) ** 2 + sigma**2
        square = (x[:, None] - alpha[..., None] * points).square().sum(-1)
        mean = torch.softmax(weights.log() - square / (2 * variance), dim=1) @ points
        x_0 = mean + alpha * WIDTH**2 / variance * (x - alpha * mean)
        return (x - alpha * x_0) / sigma


def losses(formulation, n, seed):
    """Losses at times spread evenly, as `Uniform` draws them."""
    source = torch.Generator().manual_seed(seed)
    t = ((torch.arange(n) + torch.rand(n, generator=source, dtype=torch.float64)) / n)[
        torch.randperm(n, generator=source)
    ]
    x_0 = two_modes(formulation.schedule).sample(n, seed + 10_000)  # another stream than the noise
    z = torch.randn(x_0.shape, generator=source, dtype=torch.float64)
    return formulation.loss(x_0, t, noise=lambda like: z)


def test_parameters_receive_the_gradient_of_the_square():
    """2 L dL/d(parameters) for each sample, while the network, in the same backward pass, receives dL."""

    class Scaled(Oracle):
        def __init__(self, schedule):
            super().__init__(schedule)
            self.scale = nn.Parameter(torch.tensor(0.8, dtype=torch.float64))

        def forward(self, x, c_noise, cond=None):
            return self.scale * super().forward(x, c_noise, cond)

    schedule = shaken()
    formulation = ScoreSDE(Scaled(schedule), schedule, weighting="likelihood")
    torch.manual_seed(0)
    losses(formulation, 64, 1).mean().backward()
    found = [p.grad.clone() for p in schedule.parameters()], formulation.model.scale.grad.clone()
    formulation.zero_grad()
    schedule.lower_variance = lambda loss, *coefficients: None
    torch.manual_seed(0)
    loss = losses(formulation, 64, 1)
    squares = torch.autograd.grad(loss.square().mean(), list(schedule.parameters()), retain_graph=True)
    for gradient, expected in zip(found[0], squares, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found[1], torch.autograd.grad(loss.mean(), formulation.model.scale)[0])


@pytest.mark.slow
def test_training_lowers_the_variance_and_not_the_bound():
    """Kingma et al. 2021: between fixed ends every schedule has the same bound, but not the same variance."""
    schedule = Learned(hidden=8)
    formulation = ScoreSDE(Oracle(schedule), schedule, weighting="likelihood")
    with torch.no_grad():
        before = losses(formulation, 40_000, 100)
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.02)
    for step in range(80):
        optimizer.zero_grad()
        losses(formulation, 4096, step).mean().backward()
        optimizer.step()
    with torch.no_grad():
        after = losses(formulation, 40_000, 100)
    error = float((before.var() + after.var()).sqrt()) / 200  # of the difference of the two means
    assert abs(float(after.mean() - before.mean())) < 3 * error
    assert after.var() < 0.65 * before.var()  # the best density, in proportion to sqrt(E[loss^2]), has 0.53


def test_refusals():
    with pytest.raises(ValueError, match="log_snr_min must be smaller"):
        Learned(log_snr_max=-5.0, log_snr_min=13.3)
    with pytest.raises(ValueError, match="at least 1"):
        Learned(hidden=0)
