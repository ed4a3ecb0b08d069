from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from triptych.dataset import Dataset

YAMLS = sorted((Path(__file__).parents[2] / "conf" / "dataset").glob("*.yaml"))


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_yaml_makes_a_dataset_without_reading_a_file(path, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_DATA", str(tmp_path / "nowhere"))
    config = OmegaConf.create({"global_batch_size": 24, "seed": 5, "dataset": OmegaConf.load(path)})
    config.dataset.pop("defaults", None)  # the network and the metric that suit it
    for key in ("root", "source"):
        if OmegaConf.is_missing(config.dataset, key):
            config.dataset[key] = str(tmp_path)
    data = instantiate(config.dataset)
    assert isinstance(data, Dataset) and data.global_batch_size == 24 and data.seed == 5
    channels, resolution = config.dataset.channels, config.dataset.resolution
    assert data.shape == ((channels,) if resolution is None else (channels, resolution, resolution))
    assert data.num_classes > 0 or not data.conditional
    assert not (tmp_path / "nowhere").exists()
    config.dataset.name = "other"
    assert data.transform_hash != instantiate(config.dataset).transform_hash


def jpeg(path, value, size=(178, 218)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def celeba(root):
    for k in range(1, 5):
        jpeg(root / "img_align_celeba" / f"{k:06}.jpg", 50 * k)
    (root / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 0\n000003.jpg 1\n000004.jpg 2\n")


def celebahq(root):
    for k in range(1, 201):
        jpeg(root / f"{k:05}.jpg", k, (8, 8))


def lsun(root):
    for split, value in (("train", 50), ("train", 100), ("val", 200)):
        jpeg(root / split / "a" / "f" / f"{value:040x}.webp", value, (300, 256))


def imagenet64(root):
    for k, wnid in enumerate(["n01440764", "n01443537", "n15075141"]):
        jpeg(root / "train" / wnid / f"{wnid}_1.JPEG", 50 + 50 * k, (500, 375))
    jpeg(root / "val" / "n15075141" / "ILSVRC2012_val_00000001.JPEG", 150, (500, 375))


@pytest.mark.parametrize(
    ("layout", "side", "train", "test"),
    [
        (celeba, 64, [50, 100], [200]),
        (celebahq, 16, None, None),
        (lsun, 256, [50, 100], [200]),
        (imagenet64, 64, [50, 100, 150], [150]),
    ],
)
def test_the_papers_crops_read_the_official_layout(layout, side, train, test, tmp_path, monkeypatch):
    """The yamls on small fakes: what is unpacked from the official files is found, cropped and labelled."""
    name = layout.__name__
    monkeypatch.setenv("TRIPTYCH_DATA", str(tmp_path))
    layout(tmp_path / {"lsun": "lsun_bedroom", "imagenet64": "imagenet"}.get(name, name))
    path = Path(__file__).parents[2] / "conf" / "dataset" / f"{name}.yaml"
    config = OmegaConf.create({"global_batch_size": 2, "seed": 0, "dataset": OmegaConf.load(path)})
    config.dataset.pop("defaults", None)
    if train is None:
        config.dataset.resolution = side  # 200 pictures
    data = instantiate(config.dataset)
    assert data.resolution == side
    data.prepare_data()
    assert data.images("train").shape[1:] == (3, side, side) and data.images("train").dtype == np.uint8
    if train is None:  # all in one folder: a hundredth is held out
        assert 190 <= len(data.images("train")) < 200 == len(data.images("train")) + len(data.images("val"))
        return
    assert data.images("train")[:, 0, 0, 0].tolist() == pytest.approx(train, abs=2)
    assert data.images("test")[:, 0, 0, 0].tolist() == pytest.approx(test, abs=2)
    if name == "imagenet64":
        assert data.labels("train").tolist() == [0, 1, 2] and data.labels("test").tolist() == [2]
