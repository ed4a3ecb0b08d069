"""T-F5, T-F6: what samples are compared with, and that it is built once."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from triptych import reference
from triptych.metric import FrechetDistance, FrechetInfinity, InceptionScore, KernelDistance, Statistics

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 1, 3, 3), dtype=np.uint8)


class Pixels(nn.Module):
    num_features, name, sha256, resize = 9, "pixels", "ab" * 32, None

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return images.flatten(1).float()

    def logits(self, features):
        return features

    def parameters(self, recurse=True):
        yield torch.zeros(1)


class Raw:
    """A data set whose loader must not be touched."""

    name, transform_hash, shape = "raw", "12", (1, 3, 3)

    def __init__(self, cache, images=IMAGES):
        self.cache, self._images = cache, images

    def images(self, split):
        return self._images

    def train_dataloader(self):
        pytest.fail("the reference is built from the raw images")


def truth(images=IMAGES):
    return Statistics.from_features(torch.from_numpy(images.copy()).flatten(1).float())


def test_a_split_is_built_once_and_kept(tmp_path):
    metric, network = (lambda n: (FrechetDistance(n), n))(Pixels())
    about = reference.use([metric], Raw(tmp_path), "train")
    assert about == {"dataset": "raw", "split": "train", "transform": "12", "num_images": 60} and network.seen == 60
    torch.testing.assert_close(metric.reference.cov, truth().cov)
    again, second = FrechetDistance(Pixels()), FrechetInfinity(Pixels())
    reference.use([again], Raw(tmp_path), "train")
    reference.use([second], Raw(tmp_path), "train")
    assert again.extractor.network.seen == second.extractor.network.seen == 0
    other = FrechetDistance(Pixels())  # another set of the same name, transform and size
    reference.use([other], Raw(tmp_path, 255 - IMAGES), "train")
    assert other.extractor.network.seen == 60
    (damaged,) = [p for p in (tmp_path / "statistics").glob("*.npz") if np.allclose(np.load(p)["mu"], truth().mean)]
    damaged.write_bytes(b"half a file")
    third = FrechetDistance(Pixels())
    reference.use([third], Raw(tmp_path), "train")
    assert third.extractor.network.seen == 60
    torch.testing.assert_close(third.reference.mean, truth().mean)


def test_what_an_extractor_without_a_name_of_its_weights_finds_is_not_kept(tmp_path):
    for _ in range(2):
        network = Pixels()
        network.sha256 = None
        reference.use([FrechetDistance(network)], Raw(tmp_path), "train")
        assert network.seen == 60
    assert not list(tmp_path.iterdir())


def test_two_that_start_together_build_it_once(tmp_path):
    metrics = [FrechetDistance(Pixels()) for _ in range(4)]
    threads = [threading.Thread(target=reference.use, args=([m], Raw(tmp_path), "train")) for m in metrics]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(m.extractor.network.seen for m in metrics) == [0, 0, 0, 60]
    for metric in metrics:
        torch.testing.assert_close(metric.reference.cov, truth().cov)


def test_a_place_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    (tmp_path / "file").write_text("in the way")
    metric = FrechetDistance(Pixels())
    reference.use([metric], Raw(tmp_path / "file"), "train")
    assert list((tmp_path / "own" / "triptych" / "statistics").glob("pixels-*.npz"))


def test_what_needs_no_real_images_reads_none(tmp_path):
    score = InceptionScore(Pixels(), splits=2)
    reference.use([score], Raw(tmp_path), "train")
    assert score.extractor.network.seen == 0


@pytest.mark.parametrize("extra", [{}, {"mu_s": np.zeros(3), "sigma_s": np.eye(3)}])
def test_statistics_of_the_adm_evaluator_of_edm_and_of_pytorch_fid(tmp_path, extra):
    known = truth()
    np.savez(tmp_path / "stats.npz", mu=known.mean.numpy(), sigma=known.cov.numpy(), **extra)
    metric = FrechetDistance(Pixels())
    about = reference.use([metric], None, str(tmp_path / "stats.npz"))
    assert about["split"] == "file" and about["num_images"] is None and about["dataset"] == "stats.npz"
    metric.update(torch.from_numpy(IMAGES.copy()), real=False)
    assert float(metric.compute()) < 1e-6
    with pytest.raises(ValueError, match="statistics of 9 features.*compares image with image"):
        reference.use([KernelDistance(Pixels())], None, str(tmp_path / "stats.npz"))


def test_images_of_a_file_and_statistics_of_another_width(tmp_path):
    arrays = IMAGES.transpose(0, 2, 3, 1)
    np.savez(tmp_path / "both.npz", arr_0=arrays, mu=np.zeros(2048), sigma=np.eye(2048))
    metric, kernel = FrechetDistance(Pixels()), KernelDistance(Pixels(), subset_size=None)
    about = reference.use([metric, kernel], None, str(tmp_path / "both.npz"))
    assert about["num_images"] == 60
    torch.testing.assert_close(metric.reference.cov, truth().cov)
    np.savez(tmp_path / "wide.npz", mu=np.zeros(4), sigma=np.eye(4))
    with pytest.raises(ValueError, match="statistics of 4 features, but FrechetDistance reads 9"):
        reference.use([FrechetDistance(Pixels())], None, str(tmp_path / "wide.npz"))


def test_what_is_known_of_other_features_is_not_used(tmp_path):
    """T-F1, T-F8: the same weights at another size are another extractor, as are other weights of the same name."""
    wide, other = Pixels(), Pixels()
    wide.resize, other.sha256 = "to 5x5", "cd" * 32
    first = FrechetDistance(Pixels())
    reference.use([first], Raw(tmp_path), "train")
    first.reference.save(tmp_path / "ours.npz")
    for network in (wide, other):
        metric = FrechetDistance(network)
        with pytest.raises(ValueError, match="built with pixels-abababab, but this metric reads pixels-"):
            reference.use([metric], None, str(tmp_path / "ours.npz"))
        reference.use([metric], Raw(tmp_path), "train")
        assert network.seen == 60


def test_images_of_a_file_must_be_like_the_data_set(tmp_path):
    """Said before any sampling."""
    np.savez(tmp_path / "large.npz", arr_0=np.zeros((5, 4, 4, 1), dtype=np.uint8))
    with pytest.raises(ValueError, match="large.npz are 4x4, but raw is 3x3"):
        reference.use([FrechetDistance(Pixels())], Raw(tmp_path), str(tmp_path / "large.npz"))
    np.savez(tmp_path / "colour.npz", arr_0=np.repeat(IMAGES.transpose(0, 2, 3, 1), 3, 3))  # grey all the same
    metric = FrechetDistance(Pixels())
    reference.use([metric], Raw(tmp_path), str(tmp_path / "colour.npz"))
    torch.testing.assert_close(metric.reference.cov, truth().cov)
    np.savez(tmp_path / "nan.npz", mu=np.full(9, np.nan), sigma=np.eye(9))
    with pytest.raises(ValueError, match="nan.npz holds NaN or Inf in mu or sigma"):
        reference.use([FrechetDistance(Pixels())], Raw(tmp_path), str(tmp_path / "nan.npz"))


def test_what_we_write_the_others_read(tmp_path):
    metric = FrechetDistance(Pixels())
    reference.use([metric], Raw(tmp_path), "train")
    metric.reference.save(tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as file:  # as EDM's fid.py and pytorch-fid do
        np.testing.assert_allclose(file["mu"], IMAGES.reshape(60, -1).mean(0))
        np.testing.assert_allclose(file["sigma"], np.cov(IMAGES.reshape(60, -1), rowvar=False), rtol=1e-9)


def test_neither_a_split_nor_a_file():
    with pytest.raises(ValueError, match="no split 'foo'"):
        reference.check("foo")
