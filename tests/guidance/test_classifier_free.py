"""Classifier-free guidance against its formula, on a denoiser that knows its labels."""

import pytest
import torch

from triptych.guidance import ClassifierFree
from triptych.sampler import DDIM
from triptych.schedule import VP


class Labelled:
    """Gaussian data around a mean that the label chooses; label -1 is the mean over both."""

    schedule = VP()
    means = torch.tensor([-1.0, 2.0, 0.5], dtype=torch.float64)  # the last one answers to -1

    def __call__(self, x_t, t, cond=None):
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        label = cond["label"] if isinstance(cond, dict) else cond
        mean = self.means[label][:, None]
        return mean + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (x_t - alpha * mean)


def state():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    return x, torch.linspace(0.1, 0.9, 6, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_is_the_papers_formula(scale):
    denoiser, (x, t, label) = Labelled(), state()
    null = denoiser(x, t, torch.full_like(label, -1))
    expected = null + scale * (denoiser(x, t, label) - null)
    torch.testing.assert_close(ClassifierFree(denoiser, scale)(x, t, label), expected)
    torch.testing.assert_close(ClassifierFree(denoiser, scale)(x, t, {"label": label}), expected)


def test_acts_inside_the_interval_only():
    """Both ends belong to it: (0, 1), the default, is everywhere."""
    denoiser, (x, t, label) = Labelled(), state()
    t[:2] = torch.tensor([0.2, 0.6], dtype=torch.float64)
    guided = ClassifierFree(denoiser, 3.0, interval=(0.2, 0.6))(x, t, label)
    plain, full = denoiser(x, t, label), ClassifierFree(denoiser, 3.0)(x, t, label)
    inside = (t >= 0.2) & (t <= 0.6)
    assert 0 < inside.sum() < len(t)
    torch.testing.assert_close(guided[inside], full[inside])
    torch.testing.assert_close(guided[~inside], plain[~inside])


def test_samples_follow_their_label():
    label = torch.tensor([0, 1]).repeat(200)
    x = torch.randn(400, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    samples = DDIM(steps=50)(ClassifierFree(Labelled(), 1.0), x, label)
    assert abs(samples[label == 0].mean() + 1) < 0.15 and abs(samples[label == 1].mean() - 2) < 0.15


def test_passes_a_learned_variance_through():
    class Learned(Labelled):
        def moments(self, x_t, t, cond=None):
            return self(x_t, t, cond), torch.where(cond[:, None] < 0, 0.0, 1.0).double()

    x, t, label = state()
    x_0, v = ClassifierFree(Learned(), 2.0).moments(x, t, label)
    torch.testing.assert_close(x_0, ClassifierFree(Labelled(), 2.0)(x, t, label))
    assert v.shape == (6, 1) and bool((v == 1).all())
    assert not hasattr(ClassifierFree(Labelled()), "moments")


@pytest.mark.parametrize("interval", [(0.5, 0.5), (-0.1, 1.0), (0.8, 0.2)])
def test_refuses_what_is_no_interval(interval):
    with pytest.raises(ValueError, match="interval"):
        ClassifierFree(Labelled(), interval=interval)


def test_refuses_to_guide_without_labels():
    x, t, _ = state()
    with pytest.raises(ValueError, match="labels"):
        ClassifierFree(Labelled())(x, t)
