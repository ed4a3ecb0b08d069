from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

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
