"""The adaptive solver against exact solutions, an independent implementation, and itself on another batch."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp

from triptych.ode import dormand_prince, runge_kutta_4

SPEEDS = torch.tensor([1.0, 5.0, 30.0], dtype=torch.float64)[:, None]
START = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(3, 2)


def rotation(speeds):
    return lambda t, y: torch.cat([y[:, 1:] * speeds, -y[:, :1] * speeds], dim=1)


def exact(t):
    return torch.cat([(t * SPEEDS).cos(), -(t * SPEEDS).sin()], dim=1)


def test_error_follows_the_tolerance():
    errors = []
    for tolerance in (1e-4, 1e-7, 1e-10):
        y, _ = dormand_prince(rotation(SPEEDS), START, 0.0, 2.0, rtol=tolerance, atol=tolerance)
        errors.append(float((y - exact(2.0)).abs().max()))
        assert errors[-1] < 100 * tolerance
    assert errors[0] > 100 * errors[1] > 1e4 * errors[2]


def test_calls_equal_scipys():
    """The same pair, error norm, first step and control as scipy's RK45: the same number of calls."""
    for tolerance in (1e-5, 1e-8):
        _, calls = dormand_prince(rotation(SPEEDS), START, 0.0, 2.0, rtol=tolerance, atol=tolerance)
        for speed, found in zip(SPEEDS[:, 0].tolist(), calls.tolist(), strict=True):
            turn = lambda t, y, w=speed: [w * y[1], -w * y[0]]  # noqa: E731
            reference = solve_ivp(turn, (0, 2), [1, 0], rtol=tolerance, atol=tolerance)
            assert abs(found - reference.nfev) <= 12


def test_a_sample_does_not_know_its_batch():
    """T-K9: solution and number of calls of a sample are the same alone and beside a stiffer one."""
    y, calls = dormand_prince(rotation(SPEEDS), START, 0.0, 2.0, rtol=1e-6, atol=1e-6)
    for i in range(3):
        one, n = dormand_prince(rotation(SPEEDS[i : i + 1]), START[i : i + 1], 0.0, 2.0, rtol=1e-6, atol=1e-6)
        assert torch.equal(one[0], y[i]) and int(n) == int(calls[i])
    assert calls[0] < calls[1] < calls[2]


def test_time_dependent_and_backwards():
    """dy/dt = 2 t y has y = exp(t^2); and back again to 1."""
    y_0 = torch.ones(2, 1, 1, dtype=torch.float64)
    slope = lambda t, y: 2 * t[:, None, None] * y  # noqa: E731
    y, _ = dormand_prince(slope, y_0, 0.0, 1.5, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(y, y_0 * math.exp(1.5**2), rtol=1e-7, atol=0)
    back, _ = dormand_prince(slope, y, 1.5, 0.0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back, y_0, rtol=1e-7, atol=0)


def test_nothing_to_do():
    y, calls = dormand_prince(lambda t, y: torch.zeros_like(y), START, 0.0, 1.0)
    assert torch.equal(y, START) and (calls <= 50).all()


@pytest.mark.parametrize("slope", [lambda t, y: y * math.nan, lambda t, y: y**2])
def test_what_cannot_be_solved_is_said(slope):
    """NaN from the start; and y = 1 / (1 - t), which has no value at 2."""
    with pytest.raises(RuntimeError, match="could not be solved"):
        dormand_prince(slope, torch.ones(1, 1, dtype=torch.float64), 0.0, 2.0)
    with pytest.raises(ValueError, match="positive"):
        dormand_prince(slope, torch.ones(1, 1), 0.0, 2.0, rtol=0.0)


def test_runge_kutta_4_has_order_4():
    errors = []
    for steps in (40, 80, 160):
        y, calls = runge_kutta_4(rotation(SPEEDS[:2]), START[:2], 0.0, 2.0, steps)
        errors.append(float((y - exact(2.0)[:2]).abs().max()))
        assert (calls == 4 * steps).all()
    orders = [math.log2(a / b) for a, b in zip(errors[:-1], errors[1:], strict=True)]
    assert all(3.8 < order < 4.3 for order in orders), orders
