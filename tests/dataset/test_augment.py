import numpy as np
import pytest
import torch

from triptych.dataset.augment import PARAMETERS, SYM6, augment, downsample, resample, upsample


def smooth(size=32):
    """A picture without fine detail, and different under every symmetry of the square. [1, 1, H, H]."""
    g = (torch.arange(size) + 0.5) / size * 2 - 1
    return (torch.sin(2 * g)[:, None] * torch.cos(3 * g + 0.3) + 0.3 * g)[None, None]


def numbers(count, **chosen):
    """Uniforms under which nothing happens (every gate closed, no flip) but what is chosen, by column."""
    u = torch.full((count, PARAMETERS), 0.999)
    for column, value in chosen.items():
        u[:, int(column[1:])] = value
    return u


def test_the_filter_is_the_symlet_of_order_six():
    """What defines it: orthonormal to its even shifts, and six vanishing moments of the highpass."""
    h = np.array(SYM6)
    shifts = [h[2 * k :] @ h[: len(h) - 2 * k] for k in range(6)]
    np.testing.assert_allclose(shifts, [1, 0, 0, 0, 0, 0], atol=1e-11)
    k = np.arange(12.0)
    np.testing.assert_allclose([((-1) ** k * h) @ k**p for p in range(6)], 0, atol=1e-8)


def test_up_then_down_is_the_identity():
    x = torch.rand(2, 3, 17, 17)
    torch.testing.assert_close(downsample(upsample(x)), x)


def test_untouched_images_keep_their_bits_and_flips_are_exact():
    x = torch.rand(4, 3, 32, 32)
    y, labels = augment(x, numbers(4), 0.12)
    assert torch.equal(y, x) and (labels == 0).all()
    y, labels = augment(x, numbers(4, u5=0.2), 0.12)
    assert torch.equal(y, x.flip(3)) and torch.equal(labels, torch.eye(9)[0].expand(4, 9))
    y, labels = augment(x, numbers(4, u0=0.0, u6=0.2), 0.12)
    assert torch.equal(y, x.flip(2)) and torch.equal(labels, torch.eye(9)[1].expand(4, 9))


@pytest.mark.parametrize("quarter", [-1, 1])
def test_rotation_by_a_quarter(quarter):
    x = smooth()
    y, labels = augment(x, numbers(1, u2=0.0, u8=0.5 + quarter / 4), 0.12)
    assert torch.allclose(labels, torch.tensor([[0, 0, 0, -1, quarter, 0, 0, 0, 0.0]]), atol=1e-6)
    # the paper's ROTATE2D(-a_3), with the image's y axis pointing down: counterclockwise for a_3 > 0, as rot90
    assert (y - torch.rot90(x, quarter, (2, 3))).abs().max() < 0.02


def test_translation_by_whole_pixels():
    """a_6 = 1, one standard deviation, moves by an eighth of the image: 4 of 32 pixels."""
    x = smooth()
    one = float(torch.special.ndtr(torch.tensor(1.0)))
    y, labels = augment(x, numbers(1, u4=0.0, u11=one, u12=0.5), 0.12)
    assert torch.allclose(labels[0, 7:], torch.tensor([1.0, 0.0]), atol=1e-5)
    assert (y[..., 4:] - x[..., :-4]).abs().max() < 0.005
    y, _ = augment(x, numbers(1, u4=0.0, u11=0.5, u12=one), 0.12)
    assert (y[:, :, 4:] - x[:, :, :-4]).abs().max() < 0.005


def test_scaling_and_stretching():
    """A Gaussian blob of std s becomes one of std 2^0.2 s; stretched along an axis, 2^0.2 s by 2^-0.2 s."""
    g = torch.arange(64) + 0.5 - 32
    blob = torch.exp(-(g[:, None] ** 2 + g**2) / (2 * 5.0**2))[None, None]
    one = float(torch.special.ndtr(torch.tensor(1.0)))

    def stds(y):
        return [(((y[0, 0].sum(k) * g**2).sum() / y.sum()).sqrt() / 5).log2().item() for k in (0, 1)]

    y, labels = augment(blob, numbers(1, u1=0.0, u7=one), 0.12)
    assert stds(y) == pytest.approx([0.2, 0.2], abs=0.005) and labels[0, 2] == pytest.approx(1, abs=1e-5)
    y, labels = augment(blob, numbers(1, u3=0.0, u9=0.5, u10=one), 0.12)
    assert stds(y) == pytest.approx([0.2, -0.2], abs=0.005) and labels[0, 5] == pytest.approx(1, abs=1e-5)
    y, labels = augment(blob, numbers(1, u3=0.0, u9=0.75, u10=one), 0.12)  # the other axis
    assert stds(y) == pytest.approx([-0.2, 0.2], abs=0.005) and labels[0, 6] == pytest.approx(1, abs=1e-5)


def test_brightness_is_kept_and_edges_are_mirrored():
    x = torch.full((1, 3, 32, 32), 0.7)
    torch.testing.assert_close(resample(x, torch.tensor([[[0.8, 0.3, 0.6], [-0.3, 0.8, 0.4]]])), x)


def test_how_often():
    u = torch.rand(5000, PARAMETERS, generator=torch.Generator().manual_seed(0))
    _, labels = augment(torch.zeros(5000, 1, 4, 4), u, 0.12)
    often = (labels != 0).float().mean(0)
    expected = torch.tensor([0.5, 0.06] + [0.12] * 7)
    assert ((often - expected).abs() < 5 * (expected * (1 - expected) / 5000).sqrt()).all()
    moved = (labels[:, [0, 1, 2, 3, 5, 7]] != 0).float()
    off = torch.corrcoef(moved.T) - torch.eye(6)
    assert off.abs().max() < 5 / 5000**0.5  # each for itself
    assert labels[labels[:, 2] != 0, 2].std() == pytest.approx(1, abs=0.15)
