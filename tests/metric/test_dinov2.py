import pytest
import torch

from triptych.metric import DINOv2, FrechetDistance

transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    return tmp_path


def test_features_are_the_normalised_class_token(folder):
    network = DINOv2(str(folder), resolution=28)
    images = torch.randint(0, 256, (5, 3, 28, 28), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((images.permute(0, 2, 3, 1) / 255 - mean) / std).permute(0, 3, 1, 2)
    expected = transformers.Dinov2Model.from_pretrained(folder).eval()(pixels).pooler_output
    torch.testing.assert_close(network(images), expected)
    assert network.num_features == 24
    assert network.sha256 == DINOv2(str(folder), resolution=28).sha256


def test_distance(folder):
    metric = FrechetDistance(DINOv2(str(folder), resolution=28))
    for real in (True, False):
        images = torch.randint(0, 256, (40, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        metric.update(images, real=real)
    assert float(metric.compute()) < 1e-6


def test_absent_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="local folder"):
        DINOv2(str(tmp_path / "absent"))
