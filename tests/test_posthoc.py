"""Rebuilding an average of any length: the closed forms against quadrature, the fit against an average tracked."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from triptych.posthoc import Snapshot, coefficients, decay, exponent, inner_product, rebuild

STEPS = 640


def profile(t, gamma):
    return lambda tau: (gamma + 1) * tau**gamma / t ** (gamma + 1)


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.25])
def test_exponent_gives_the_width_of_the_profile(length):
    p = profile(1.0, exponent(length))
    mean = quad(lambda tau: tau * p(tau), 0, 1)[0]
    width = math.sqrt(quad(lambda tau: (tau - mean) ** 2 * p(tau), 0, 1, epsabs=1e-12)[0])
    assert width == pytest.approx(length, rel=1e-6)


@pytest.mark.parametrize("a", [(1.0, 6.94), (0.4, 16.97)])
@pytest.mark.parametrize("b", [(1.0, 6.94), (0.7, 0.5), (0.4, 3.0)])
def test_inner_product_is_the_integral(a, b):
    p, q = profile(*a), profile(*b)
    integral = quad(lambda tau: p(tau) * q(tau), 0, min(a[0], b[0]), epsabs=1e-13)[0]
    assert float(inner_product(*map(np.asarray, (*a, *b)))) == pytest.approx(integral, rel=1e-10)


def test_the_recursion_weighs_every_step_by_the_integral_of_its_profile():
    gamma, n = exponent(0.1), 30
    weights = np.zeros(n)
    for k in range(1, n + 1):
        kept = decay(k - 1, k, gamma)
        weights *= kept
        weights[k - 1] += 1 - kept
    edges = (np.arange(n + 1) / n) ** (gamma + 1)
    np.testing.assert_allclose(weights, np.diff(edges), atol=1e-14)
    assert weights.sum() == pytest.approx(1)


def walk(steps=STEPS, size=500):
    """Weights that drift and jitter, as those of a training run do."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(steps, size, generator=generator, dtype=torch.float64)
    drift = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None].sqrt() * torch.randn(
        size, generator=generator, dtype=torch.float64
    )
    return drift + 0.3 * noise + 0.05 * noise.cumsum(0)


def tracked(path, length, at):
    """{step: average} by the recursion."""
    gamma, average, found = exponent(length), torch.zeros_like(path[0]), {}
    for k, weights in enumerate(path, 1):
        average = average.lerp(weights, 1 - decay(k - 1, k, gamma))
        if k in at:
            found[k] = average
    return found


@pytest.mark.parametrize("length, bound", [(0.03, 0.1), (0.05, 1e-6), (0.07, 0.003), (0.1, 1e-6), (0.15, 0.01)])
@pytest.mark.parametrize("dtype, rounding", [(torch.float32, 0), (torch.float16, 2e-3)])
def test_rebuilt_is_the_average_that_would_have_been_tracked(tmp_path, length, bound, dtype, rounding):
    path, times = walk(), range(STEPS // 32, STEPS + 1, STEPS // 32)
    stored = {tracked_length: tracked(path, tracked_length, times) for tracked_length in (0.05, 0.1)}
    for t in times:
        Snapshot.write(tmp_path, t, {length: {"w": a[t]} for length, a in stored.items()}, dtype)
    exact = tracked(path, length, [STEPS])[STEPS]
    rebuilt = rebuild(Snapshot.of(tmp_path), length)["w"]
    spread = (tracked(path, 0.25, [STEPS])[STEPS] - exact).norm()  # how far apart averages of other lengths lie
    assert rebuilt.dtype == torch.float32
    assert (rebuilt - exact).norm() <= bound * spread + rounding * exact.norm()


def test_a_stored_profile_is_itself_and_the_error_says_how_far_others_are():
    times, gammas = [0.5, 1.0, 0.5, 1.0], [exponent(0.05)] * 2 + [exponent(0.1)] * 2
    found, error = coefficients(times, gammas, 1.0, exponent(0.1))
    np.testing.assert_allclose(found, [0, 0, 0, 1], atol=1e-9)
    assert error < 1e-6
    found, error = coefficients(times, gammas, 1.0, exponent(0.2))
    target, others = profile(1.0, exponent(0.2)), [profile(t, g) for t, g in zip(times, gammas, strict=True)]

    def difference(tau):
        return target(tau) - sum(c * p(tau) * (tau <= t) for c, p, t in zip(found, others, times, strict=True))

    squared = sum(quad(lambda tau: difference(tau) ** 2, a, b, limit=200)[0] for a, b in ((0, 0.5), (0.5, 1)))
    norm = quad(lambda tau: target(tau) ** 2, 0, 1)[0]
    assert error == pytest.approx(math.sqrt(squared / norm), rel=1e-5)


@pytest.mark.parametrize("length", [0, -0.1, 0.3, "long"])
def test_refuses_lengths_that_no_average_has(length):
    with pytest.raises(ValueError, match="above 0 and at most 0.28"):
        exponent(length)


def test_refuses_a_length_that_the_snapshots_do_not_span(tmp_path):
    for t in (100, 200, 300):
        Snapshot.write(tmp_path, t, {length: {"w": torch.ones(2)} for length in (0.05, 0.1)})
    with pytest.raises(ValueError, match=r"3 snapshots cannot give .* ema=0.01: .* choose ema between"):
        rebuild(Snapshot.of(tmp_path), 0.01)


def test_a_damaged_snapshot_is_named(tmp_path):
    snapshot = Snapshot.write(tmp_path, 100, {0.05: {"w": torch.ones(2)}, 0.1: {"w": torch.ones(2)}})
    snapshot.path.write_bytes(snapshot.path.read_bytes()[:20])
    with pytest.raises(ValueError, match="images=000000000100.*cannot be read"):
        rebuild(Snapshot.of(tmp_path), 0.1)
