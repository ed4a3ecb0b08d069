import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from triptych.metric import FrechetDistance, SmallClassifier, fd_extractor
from triptych.metric.classifier import SHIPPED

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "src" / "triptych" / "metric" / "weights"


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return torch.from_numpy(np.rint(load_digits().images * (255 / 16)).astype(np.uint8))[:, None]


@pytest.mark.parametrize("dataset", SHIPPED)
def test_shipped_weights_are_small_and_name_their_file(dataset):
    """T-F8"""
    path = WEIGHTS / f"{dataset}.safetensors"
    network = fd_extractor(dataset)
    assert network.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.stat().st_size < (500_000 if dataset == "digits" else 1_000_000)
    assert network.name == dataset and not network.training
    size = (2, network.in_channels, network.resolution, network.resolution)
    features = network(torch.zeros(size, dtype=torch.uint8))
    assert features.shape == (2, network.num_features) and features.dtype == torch.float32
    assert network.logits(features).shape == (2, 10)


def test_features_tell_digits_apart(digits):
    network = fd_extractor("digits")
    labels = torch.from_numpy(load_digits().target)
    assert float((network.logits(network(digits)).argmax(1) == labels).double().mean()) > 0.99
    assert network.accuracy is not None and 0.97 < network.accuracy <= 1


def test_distance_orders_what_is_worse(digits):
    """Real halves < noise added < more noise added < a missing class < a blur < nothing but noise."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(digits), generator=generator)
    half, other = digits[order[::2]], digits[order[1::2]]
    labels = torch.from_numpy(load_digits().target)[order[1::2]]

    def noisy(std: float) -> Tensor:
        noise = torch.randn(other.shape, generator=generator)
        return (other + 255 * std * noise).round().clamp(0, 255).byte()

    metric = FrechetDistance(fd_extractor("digits"), reset_real=False)
    metric.update(half, real=True)
    values = []
    for fake in (
        other,
        noisy(0.1),
        noisy(0.2),
        F.avg_pool2d(other.float(), 3, 1, 1).byte(),
        torch.randint(0, 256, (1000, 1, 8, 8), dtype=torch.uint8, generator=generator),
    ):
        metric.update(fake, real=False)
        values.append(float(metric.compute()))
        metric.reset()
    assert values[0] < 0.5 and values[-1] > 20
    assert values == sorted(values)
    metric.update(other[labels != 3], real=False)
    assert float(metric.compute()) > 4 * values[0]


def test_two_halves_of_the_real_digits_measure_what_numpy_and_scipy_measure(digits):
    """The number is printed by bench/halves_equality.py, in which neither torch nor Triptych takes part."""
    metric = FrechetDistance(fd_extractor("digits"))
    metric.update(digits[::2], real=True)
    metric.update(digits[1::2], real=False)
    assert float(metric.compute()) == pytest.approx(0.033382, abs=2e-6)


def test_same_weights_give_the_same_distance_for_any_batch(digits):
    whole = fd_extractor("digits")(digits[:100])
    parts = torch.cat([fd_extractor("digits")(part) for part in digits[:100].split(9)])
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)


def test_other_sizes_and_colours():
    cifar, mnist = SmallClassifier("colour", 3, 32).eval(), fd_extractor("mnist")
    grey = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cifar(grey), cifar(grey.expand(-1, 3, -1, -1)))
    assert mnist(grey).shape == (3, mnist.num_features)
    flat = torch.full((1, 1, 40, 56), 99, dtype=torch.uint8)
    torch.testing.assert_close(mnist(flat), mnist(flat[:, :, :28, :28]))
    with pytest.raises(ValueError, match="1 channels, but these have 3"):
        mnist(grey.expand(-1, 3, -1, -1))


def test_unknown_names_and_absent_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no shipped classifier for 'celeba'.*digits, mnist"):
        fd_extractor("celeba")
    with pytest.raises(FileNotFoundError, match="train_classifier.py"):
        SmallClassifier.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("dataset", SHIPPED)
def test_yaml(dataset):
    metric = instantiate(OmegaConf.load(ROOT / "conf" / "metric" / f"fd_{dataset}.yaml"))
    assert isinstance(metric, FrechetDistance) and metric.extractor.name == dataset
    assert not metric.reset_real


@pytest.mark.slow
def test_script_writes_what_the_loader_reads(tmp_path, monkeypatch, digits):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import train_classifier  # pyright: ignore[reportMissingImports]

    train_classifier.main("digits", out=str(tmp_path / "mine.safetensors"), epochs=6)
    network = fd_extractor("mine", weights=str(tmp_path / "mine.safetensors"))
    assert network.accuracy is not None and network.accuracy > 0.9
    features = network(digits).double()
    assert float(features.var(0).sum()) == pytest.approx(24, rel=0.1)  # the scale of the distance


def test_script_reads_the_official_formats(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import gzip

    import train_classifier  # pyright: ignore[reportMissingImports]

    pixels = np.arange(2 * 3 * 4, dtype=np.uint8)
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (2, 3, 4))
    (tmp_path / "images.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
    assert train_classifier.read_idx(tmp_path / "images.gz").tolist() == pixels.reshape(2, 3, 4).tolist()
    image = np.random.default_rng(0).integers(0, 256, 3072).astype(np.uint8)
    (tmp_path / "batch.bin").write_bytes(bytes([7]) + image.tobytes() + bytes([2]) + image[::-1].tobytes())
    images, labels = train_classifier.read_cifar(tmp_path / "batch.bin")
    assert labels.tolist() == [7, 2]
    assert images[0, 2, 0, 1] == image[2049] and images.shape == (2, 3, 32, 32)
