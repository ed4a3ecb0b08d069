import numpy as np
import pytest
from scipy import stats

from triptych.dataset import Toy


def draw(density, points=40000, split="train"):
    data = Toy(density=density, points=points, name="toy", channels=2, resolution=None)
    return data.images(split), data.labels(split)


def test_eight_gaussians():
    x, label = draw("eight_gaussians")
    angle = label * np.pi / 4
    z = (x - 0.8 * np.stack([np.cos(angle), np.sin(angle)], 1)) / 0.05
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-4
    assert stats.chisquare(np.bincount(label, minlength=8)).pvalue > 1e-4


def test_checkerboard():
    """Uniform on the eight squares of one colour: each holds an eighth, evenly inside, and the others nothing."""
    x, label = draw("checkerboard")
    counts = np.histogram2d(*x.T, bins=16, range=[[-1, 1]] * 2)[0]
    board = counts.reshape(4, 4, 4, 4).transpose(0, 2, 1, 3).reshape(4, 4, 16)
    dark = np.add.outer(np.arange(4), np.arange(4)) % 2 == 0
    assert (board[~dark] == 0).all() and stats.chisquare(board[dark].ravel()).pvalue > 1e-4
    squares = np.floor((x + 1) * 2).astype(int) @ [1, 4]
    assert all(len(set(squares[label == k])) == 1 for k in range(8)) and len(set(squares)) == 8


def test_two_moons():
    """Half circles of radius 1/2 bent towards each other, with Gaussian noise of std 0.04."""
    x, label = draw("two_moons")
    for moon, (centre, side) in enumerate([((-0.25, -0.125), 1), ((0.25, 0.125), -1)]):
        part = x[label == moon] - centre
        middle = part[np.abs(part[:, 0]) < 0.35]  # away from the tips the distance to the circle is all noise
        radius = np.hypot(*middle.T)
        assert abs(radius.std() - 0.04) < 0.001 and abs(radius.mean() - 0.5) < 0.003
        assert (middle[:, 1] * side > 0).all()
    assert abs(label.mean() - 0.5) < 5 * 0.5 / len(x) ** 0.5


@pytest.mark.parametrize("density", ["two_moons", "eight_gaussians", "checkerboard"])
def test_splits_are_independent_and_fit_the_plane(density):
    train, test = draw(density, 5000)[0], draw(density, 5000, "test")[0]
    assert train.dtype == np.float32 and np.abs(train).max() < 1.1 and 0.2 < train.std() < 0.7
    assert not set(map(tuple, train)) & set(map(tuple, test))
    assert stats.ks_2samp(train[:, 0], test[:, 0]).pvalue > 1e-4


def test_bad_input_is_one_sentence():
    with pytest.raises(ValueError, match="not one of two_moons, eight_gaussians, checkerboard"):
        draw("swiss_roll")
    with pytest.raises(ValueError, match="flip, augment and dequantise are for images"):
        Toy(name="toy", channels=2, resolution=None, flip=True)
