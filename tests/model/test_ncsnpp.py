"""What is NCSN++'s own: filters, the growing input and output, EDM's labels."""

import math

import pytest
import torch
from torch.nn import functional as F

from triptych.model import NCSNpp
from triptych.model.embedding import FourierEmbedding
from triptych.model.resample import ConvResample, Resample

FIR = (1, 3, 3, 1)


def filtered(x, taps, gain, pad):
    """Each channel convolved with the outer product of the taps, `pad` = (before, after) zeros on each side."""
    f = torch.tensor(taps, dtype=x.dtype)
    kernel = (torch.outer(f, f) / f.sum() ** 2 * gain).flip(0, 1)[None, None]
    x = F.pad(x, (*pad, *pad))
    return F.conv2d(x.flatten(0, 1).unsqueeze(1), kernel).unflatten(0, x.shape[:2]).squeeze(2)


def stuffed(x):
    """A zero after each pixel. [B, C, H, W] -> [B, C, 2H, 2W]."""
    B, C, H, W = x.shape
    out = x.new_zeros(B, C, 2 * H, 2 * W)
    out[:, :, ::2, ::2] = x
    return out


@pytest.mark.parametrize("taps", [(1, 1), FIR, (1, 2, 5, 3, 2, 1)])
def test_down_is_filter_then_every_second_pixel(taps):
    """upfirdn2d of StyleGAN2 with down=2, also for taps that are not symmetric."""
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    p = len(taps) - 2
    expected = filtered(x, tuple(reversed(taps)), 1, ((p + 1) // 2, p // 2))[:, :, ::2, ::2]
    torch.testing.assert_close(Resample("down", taps).double()(x), expected)


@pytest.mark.parametrize("taps", [(1, 1), FIR, (1, 2, 5, 3, 2, 1)])
def test_up_is_zeros_between_pixels_then_filter(taps):
    """upfirdn2d of StyleGAN2 with up=2."""
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    p = len(taps) - 2
    expected = filtered(stuffed(x), taps, 4, ((p + 1) // 2 + 1, p // 2))
    torch.testing.assert_close(Resample("up", taps).double()(x), expected)


@pytest.mark.parametrize("taps", [(1, 1), FIR])
def test_a_constant_keeps_its_value_inside(taps):
    x = torch.full((1, 1, 16, 16), 3.0)
    for scale in ("down", "up"):
        inside = Resample(scale, taps)(x)[:, :, 2:-2, 2:-2]
        torch.testing.assert_close(inside, torch.full_like(inside, 3.0))


@pytest.mark.parametrize("taps", [(1, 1), FIR])
def test_conv_down_is_convolution_then_filter_then_every_second_pixel(taps):
    """EDM's order; linear maps without a border between them commute, so ours (filter, strided convolution) agrees."""
    layer = ConvResample(3, 5, "down", taps).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    h = F.conv2d(x, layer.conv.weight, padding=1 + len(taps) // 2 - 1)
    expected = filtered(h, taps, 1, (0, 0))[:, :, ::2, ::2]
    torch.testing.assert_close(layer(x), expected)  # the bias starts at zero


@pytest.mark.parametrize("taps", [(1, 1), FIR])
def test_conv_up_is_zeros_then_filter_then_convolution(taps):
    layer = ConvResample(3, 5, "up", taps).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    p = len(taps) - 2
    h = filtered(stuffed(x), taps, 4, ((p + 1) // 2 + 2, p // 2 + 1))
    torch.testing.assert_close(layer(x), F.conv2d(h, layer.conv.weight))


def test_fourier_features():
    """sin and cos of 2 pi c w, w drawn from N(0, 16^2), kept in the state and never trained."""
    torch.manual_seed(0)
    embedding = FourierEmbedding(20_000)
    w = embedding.frequencies
    assert abs(w.std() / 16 - 1) < 0.03
    c = torch.tensor([0.0, 0.01, -0.4])
    angles = 2 * math.pi * c[:, None].double() * w.double()
    torch.testing.assert_close(embedding(c).double(), torch.cat([angles.sin(), angles.cos()], 1), atol=1e-4, rtol=0)
    assert "frequencies" in embedding.state_dict() and not list(embedding.parameters())


def test_sums_are_divided_by_sqrt_two():
    """Song et al. 2021, appendix H: with its branch at zero, a residual block is x / sqrt(2)."""
    torch.manual_seed(0)
    block = NCSNpp(3, 3, 8, 16, (1,), 1, ()).down[0][0]
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(block(x, torch.randn(2, 16, 1, 1)), x / math.sqrt(2))


def test_the_residual_input_goes_on_to_the_next_level():
    """pyramid_1 = (h_1 + down(x)) / sqrt(2), pyramid_2 = (h_2 + down(pyramid_1)) / sqrt(2)."""
    torch.manual_seed(0)
    model = NCSNpp(3, 3, 8, 16, (1, 1, 1), 1, (), encoder="residual", taps=FIR).eval()
    taken, given = [], []
    for shrink in model.shrink:
        shrink.register_forward_hook(lambda _, args, out: taken.append(args[0]) or given.append(out))
    halved = []
    for level in model.down[1:]:
        level[0].register_forward_hook(lambda _, args, out: halved.append(out))
    x = torch.randn(2, 3, 8, 8)
    model(x, torch.zeros(2))
    assert torch.equal(taken[0], x)
    torch.testing.assert_close(taken[1], (halved[0] + given[0]) / math.sqrt(2))


def test_augmentation_reaches_the_embedding_and_zeros_do_not():
    """EDM's non-leaky augmentation: all zeros, or none given, is an image as it is."""
    torch.manual_seed(0)
    model = NCSNpp(3, 3, 8, 16, (1, 2), 1, (), augment_channels=9).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x, c = torch.randn(2, 3, 8, 8), torch.tensor([-1.0, 0.3])
    plain = model(x, c)
    assert torch.equal(model(x, c, {"augment": torch.zeros(2, 9)}), plain)
    assert (model(x, c, {"augment": torch.eye(9)[:2]}) - plain).abs().amax((1, 2, 3)).gt(1e-3).all()


def test_a_class_adds_its_column_times_sqrt_of_their_number():
    """EDM embeds sqrt(n) one_hot(label), so that the code has unit variance whatever n."""
    torch.manual_seed(0)
    model = NCSNpp(3, 3, 8, 16, (1,), 1, (), num_classes=25)
    out = model.label(torch.tensor([4, -1]))
    torch.testing.assert_close(out[0], 5 * model.label.table.weight[4])
    assert not out[1].any()
