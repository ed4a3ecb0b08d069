import numpy as np
import pytest
import torch
from torch import nn

from triptych import doctor
from triptych.dataset import Digits, Toy
from triptych.metric import FrechetDistance, SlicedWasserstein


class Pixels(nn.Module):
    num_features, name = 6, "pixels"

    def forward(self, images):
        return images.flatten(1)[:, ::11].float() / 16


def test_the_page_of_the_digits():
    data = Digits(name="digits", channels=1, resolution=8, num_classes=10, holdout=0.1)
    page = dict(doctor.examine(data, FrechetDistance(Pixels())))
    train, test = data.images("train"), data.images("test")
    assert page["images"].startswith(f"{len(train):,} for training, {len(test):,}")
    x = train / 127.5 - 1
    assert page["sigma_data"].startswith(f"{x.std():.4f}") and page["channel means"] == f"{x.mean():.4f}"
    flat = torch.from_numpy(x.reshape(len(x), -1))
    assert page["largest distance"].startswith(f"{torch.pdist(flat).max():.4g}")
    assert page["duplicates"] == "0 within training, 0 shared with the test split"
    assert [key for key in page if key.startswith("floor")] == ["floor at N=500", f"floor at N={len(train) // 2}"]
    assert float(page["floor at N=500"].split()[0]) > float(page[f"floor at N={len(train) // 2}"].split()[0]) > 0
    assert "train to test" in page


def test_duplicates_are_counted():
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 4, 4), dtype=np.uint8)
    assert doctor._duplicates(np.concatenate([images, images[:3]]), images[5:9]) == (
        "3 within training, 4 shared with the test split"
    )


def test_the_floor_that_is_extrapolated_falls_as_one_over_n(monkeypatch):
    monkeypatch.setattr(doctor, "SIZES", (50, 300))
    images = np.random.default_rng(0).integers(0, 256, (400, 1, 8, 8), dtype=np.uint8)
    page = dict(doctor.floor(images, images[:1], FrechetDistance(Pixels())))
    half, more = (float(page[f"floor at N={n}"].removeprefix("about ").split()[0]) for n in (200, 300))
    assert more == pytest.approx(half * 2 / 3, abs=1e-4) and "extrapolated" in page["floor at N=300"]


def test_points_have_a_page_too():
    data = Toy(name="toy", channels=2, resolution=None, num_classes=2, density="two_moons", points=3000)
    page = dict(doctor.examine(data, SlicedWasserstein(directions=16)))
    assert "largest distance" in page and "levels" not in page
    assert 0 < float(page["floor at N=500"].split()[0]) < 0.3
