"""Bits per dimension of images: offset, dequantisation, and an average over every image once."""

import math

import pytest
import torch
from networks import ddpm
from oracles import Mixture, finite
from torch import nn

from triptych.formulation import DDPM
from triptych.metric import VLB, BitsPerDim
from triptych.metric.bits_per_dim import dequantised
from triptych.noise import SampleNoise
from triptych.schedule import VP, LinearBeta, Rectified


def pictures(n, seed=0):
    return torch.randint(0, 256, (n, 1, 2, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def gaussian(schedule=None, mean=0.0, std=0.6):
    return Mixture(schedule or VP(), torch.full((1, 1, 2, 2), mean), std=std)


class InUnitRange:
    """The same model for data y = (x + 1) / 2 in [0, 1]: a denoiser of its own, with half the spread."""

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, y_t, t, cond=None):
        return gaussian(self.schedule, mean=0.5, std=0.3)(y_t, t)


def test_dequantised_values_fill_their_bins():
    """T-K7: (k + u) / 256, mapped to [-1, 1], so that k can be read back, and u is uniform."""
    images = torch.arange(256, dtype=torch.uint8).repeat(40, 1)
    x = dequantised(images, SampleNoise(0, range(40)))
    assert x.dtype == torch.float32 and x.min() >= -1 and x.max() <= 1
    level = (x.double() + 1) * 128
    assert torch.equal(level.floor().clamp(max=255).long(), images.long())
    u = (level - images).flatten()
    assert abs(float(u.mean()) - 0.5) < 0.01 and abs(float(u.var()) - 1 / 12) < 0.003


def test_offset():
    """T-K6: 7 for [-1, 1]; a model of the same pictures in [0, 1] has 8, and both say the same bits."""
    images = pictures(8)
    metric = BitsPerDim(divergence="exact")
    metric.update(gaussian(), images, index=range(8))
    found = float(metric.compute())
    unit = BitsPerDim(divergence="exact")
    y = (dequantised(images, SampleNoise(0, range(8))) + 1) / 2
    unit.update(InUnitRange(VP()), y.double())
    assert found == pytest.approx(float(unit.compute()) + 8, abs=5e-3)
    # and by hand, without any model: the probability of a picture's bins under the Gaussian
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 0.6)
    edges = images.double() / 128 - 1
    mass = normal.cdf(edges + 2 / 256) - normal.cdf(edges)
    assert found == pytest.approx(float(-mass.log2().mean()), abs=5e-3)


def test_a_uniform_model_needs_eight_bits():
    """The best that can be said of random pictures; a model uniform on [-1, 1] is what a wide finite set looks like."""
    points = (torch.arange(256, dtype=torch.float64)[:, None] + 0.5) / 128 - 1
    images = (torch.arange(64)[:, None] * 4).to(torch.uint8)
    metric = BitsPerDim(divergence="exact")
    metric.update(Mixture(Rectified(), points, std=1 / 128), images)
    assert float(metric.compute()) == pytest.approx(8.0, abs=0.05)


def test_batches_do_not_matter():
    """T-K10, T-K11: all images, the last short batch included, each once; its numbers depend on (seed, index) alone."""
    images, index = pictures(10), list(range(10))
    values = []
    for order in ([index], [index[:4], index[4:8], index[8:]], [index[5:], index[:5], index[3:7]]):
        metric = BitsPerDim(rtol=1e-4, atol=1e-4)
        for part in order:
            metric.update(gaussian(), images[part], index=part)
        values.append((float(metric.compute()), metric.standard_error, metric.count))
    assert values[1] == pytest.approx(values[0]) and values[2] == pytest.approx(values[0]) and values[0][2] == 10


def test_standard_error():
    metric = BitsPerDim(divergence="exact")
    points = torch.randn(50, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    metric.update(gaussian(std=1.0), points.double())
    expected = -torch.distributions.Normal(0.0, 1.0).log_prob(points).flatten(1).mean(1) / math.log(2)
    assert float(metric.compute()) == pytest.approx(float(expected.mean()), abs=1e-3)
    assert metric.standard_error == pytest.approx(float(expected.std() / math.sqrt(50)), rel=1e-2)
    assert (torch.cat(metric.calls) > 6).all()
    metric.reset()
    metric.update(gaussian(std=1.0), points[:1].double())
    metric.compute()
    assert metric.count == 1 and math.isnan(metric.standard_error)


def test_repeats_lower_the_noise():
    """Of one and the same picture under 60 indices, hence 60 draws."""
    spread, images = [], pictures(1).repeat(60, 1, 1, 1)
    for repeats in (1, 8):
        metric = BitsPerDim(repeats=repeats, rtol=1e-3, atol=1e-3)
        metric.update(gaussian(std=0.05), images, index=range(60))
        metric.compute()
        spread.append(metric.standard_error)
    assert spread[1] < 0.5 * spread[0]  # 1 / sqrt(8)


def test_vlb_of_every_image():
    """The mean of DDPM's own bound, with each image's noise from (seed, index)."""
    schedule = LinearBeta(T=50)

    class Half(nn.Module):
        def forward(self, x, c_noise, cond=None):
            return 0.9 * x

    formulation, images = DDPM(model=Half(), schedule=schedule), pictures(5)
    metric = VLB(seed=3)
    for part in ([0, 1], [2, 3, 4], [4]):
        metric.update(formulation, images[part], index=part)
    expected = formulation.variational_bound(images.float() / 127.5 - 1, SampleNoise(3, range(5))).total
    assert float(metric.compute()) == pytest.approx(float(expected.mean()), rel=1e-5) and metric.count == 5


def test_labels_reach_the_network():
    told = []

    class Labelled(nn.Module):
        def forward(self, x, c_noise, cond=None):
            told.append(cond.tolist())
            return 0.9 * x

    formulation = DDPM(model=Labelled(), schedule=LinearBeta(T=50))
    for metric in (VLB(), BitsPerDim(steps=2)):
        metric.update(formulation, pictures(2), torch.tensor([3, 7]))
        assert told and all(cond == [3, 7] for cond in told)
        told.clear()


def test_vlb_refuses_what_has_none():
    with pytest.raises(ValueError, match="needs a DDPM"):
        VLB().update(finite(VP()), pictures(1))
    assert hasattr(ddpm(LinearBeta(T=50)), "variational_bound")
