"""Sinusoids of the noise level, and its rescaling."""

import math

import pytest
import torch

from triptych.model.embedding import SinusoidalEmbedding, rescale_noise


@pytest.mark.parametrize("endpoint, last", [(True, 7), (False, 8)])
def test_sinusoids(endpoint, last):
    """DDPM divides the exponent by channels/2 - 1, ADM and DiT by channels/2."""
    c = [0.0, 1.0, 617.25]
    rows = [[f(x * 10_000 ** (-i / last)) for f in (math.sin, math.cos) for i in range(8)] for x in c]
    out = SinusoidalEmbedding(16, endpoint=endpoint)(torch.tensor(c))
    torch.testing.assert_close(out, torch.tensor(rows), atol=1e-4, rtol=0)


def test_rescaling_maps_the_ends_to_0_and_1000():
    low, high = math.log(0.01), math.log(50)
    out = rescale_noise(torch.tensor([low, (low + high) / 2, high]), (low, high))
    torch.testing.assert_close(out, torch.tensor([0.0, 500.0, 1000.0]), atol=1e-3, rtol=0)
    c = torch.tensor([1.0, 2.0])
    assert rescale_noise(c, None) is c
