"""NCSN and NCSNv2: their norm, and what they do with the noise level."""

import pytest
import torch

from triptych.model import NCSN, NCSNv2
from triptych.model.norm import ConditionalInstanceNormPlus, InstanceNormPlus, instance_norm_plus


def naive(x, gamma, alpha, beta):
    """Channel by channel, sample by sample."""
    out = torch.empty_like(x)
    for b in range(x.shape[0]):
        mu = torch.stack([c.mean() for c in x[b]])
        lifted = (mu - mu.mean()) / (mu.var(unbiased=True) + 1e-5).sqrt()
        for c in range(x.shape[1]):
            normed = (x[b, c] - mu[c]) / (x[b, c].var(unbiased=False) + 1e-5).sqrt()
            out[b, c] = gamma[b, c] * (normed + alpha[b, c] * lifted[c]) + beta[b, c]
    return out


def test_instance_norm_plus():
    torch.manual_seed(0)
    x = 3 + 2 * torch.randn(2, 5, 4, 4, dtype=torch.float64)
    styles = torch.randn(3, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(instance_norm_plus(x, *styles), naive(x, *styles))


def test_it_brings_back_a_shift_that_instance_norm_loses():
    """Song & Ermon 2019, appendix A: why the ++."""
    torch.manual_seed(0)
    x = torch.randn(1, 8, 8, 8)
    brighter = x + torch.linspace(-3, 3, 8).view(1, 8, 1, 1)
    one, zero = torch.ones(8), torch.zeros(8)
    lost = instance_norm_plus(x, one, zero, zero) - instance_norm_plus(brighter, one, zero, zero)
    kept = instance_norm_plus(x, one, one, zero) - instance_norm_plus(brighter, one, one, zero)
    assert lost.abs().max() < 1e-4 < 0.1 < kept.abs().max()


def test_instance_norm_plus_keeps_float32_statistics():
    """T-D8: channel means around 100 that differ by less than bfloat16's spacing there, 0.5."""
    torch.manual_seed(0)
    x = (100 + torch.randn(2, 8, 32, 32)).bfloat16()
    styles = torch.ones(8), torch.ones(8), torch.zeros(8)
    exact = instance_norm_plus(x.double(), *(s.double() for s in styles))
    torch.testing.assert_close(instance_norm_plus(x, *styles).double(), exact, atol=0.05, rtol=0.02)


def test_initial_scales_are_around_one():
    torch.manual_seed(0)
    norm, conditional = InstanceNormPlus(5000), ConditionalInstanceNormPlus(500, levels=10)
    gamma, alpha, beta = conditional.styles.weight.chunk(3, dim=1)
    for scale in (norm.gamma, norm.alpha, gamma, alpha):
        assert abs(scale.mean() - 1) < 0.002 and abs(scale.std() - 0.02) < 0.002
    assert not norm.beta.any() and not beta.any()


def test_ncsn_has_one_style_a_level_and_no_others():
    torch.manual_seed(0)
    model = NCSN(1, 1, 8, levels=4, channels=8)
    x = torch.randn(4, 1, 8, 8)
    out = model(x[:1].expand(4, -1, -1, -1), torch.arange(4.0))
    assert torch.cdist(out.flatten(1), out.flatten(1)).fill_diagonal_(1).min() > 1e-3
    with pytest.raises(IndexError):
        model(x, torch.full((4,), 4.0))


def test_ncsn_index_is_rounded_not_truncated():
    torch.manual_seed(0)
    model, x = NCSN(1, 1, 8, levels=4, channels=8), torch.randn(1, 1, 8, 8)
    assert torch.equal(model(x, torch.tensor([2.9999998])), model(x, torch.tensor([3.0])))


@pytest.mark.parametrize("multipliers, smallest", [((1, 2, 2, 2), 16), ((1, 2, 2, 4, 4), 8), ((1, 2, 2, 2, 4, 4), 4)])
def test_only_the_middle_levels_halve(multipliers, smallest):
    """The last two dilate by 2 and 4 instead."""
    model = NCSNv2(3, 3, 32, channels=4, multipliers=multipliers)
    sides = []
    for block in list(model.network.residual)[1::2]:
        block.register_forward_hook(lambda _, __, out: sides.append(out.shape[-1]))
    model(torch.randn(1, 3, 32, 32), torch.zeros(1))
    assert sides[0] == 32 and sides[-3:] == [smallest] * 3
    dilations = [block.conv1.dilation[0] for block in list(model.network.residual)[1::2]]
    assert dilations == [1] * (len(multipliers) - 2) + [2, 4]
