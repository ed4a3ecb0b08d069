"""With a stand-in for the `datasets` library, which is optional; a slow test uses the real one if installed."""

import importlib.util
import io
import sys
import types

import numpy as np
import pytest
from PIL import Image as Pillow

from triptych.dataset import HuggingFace


def png(value):
    buffer = io.BytesIO()
    Pillow.new("RGB", (8, 8), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


class Rows(list):
    column_names, _fingerprint = ["img", "fine_label"], "abc"

    def cast_column(self, name, feature):
        assert name == "img" and feature == {"decode": False}
        return self


@pytest.fixture
def library(monkeypatch, tmp_path):
    def load_dataset(source, config, split):
        if source != "known":
            raise FileNotFoundError("Couldn't reach the hub")
        (tmp_path / "1.png").write_bytes(png(1))
        cells = [{"bytes": png(0), "path": None}, {"bytes": None, "path": str(tmp_path / "1.png")}]
        return Rows({"img": cell, "fine_label": k + 5} for k, cell in enumerate(cells))

    stand_in = types.SimpleNamespace(load_dataset=load_dataset, Image=lambda **options: options)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)


def data(root, source="known", **options):
    shared = {"name": "hf", "channels": 3, "resolution": 8, "num_classes": 10, "root": str(root)}
    return HuggingFace(**{"source": source, "image": "img", "label": "fine_label"} | shared | options)


def test_rows_as_bytes_or_paths(tmp_path, library):
    images, labels = data(tmp_path).arrays("train")
    assert images[:, 0, 0, 0].tolist() == [0, 1] and labels.tolist() == [5, 6]
    assert data(tmp_path, label=None).arrays("train")[1] is None


def test_bad_input_is_one_sentence(tmp_path, library, monkeypatch):
    with pytest.raises(FileNotFoundError, match="unknown .*cannot be had .*Couldn't reach the hub.*dataset.source="):
        data(tmp_path, source="unknown").arrays("train")
    with pytest.raises(ValueError, match="no column 'image' but img, fine_label"):
        data(tmp_path, image="image").arrays("train")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install triptych\[huggingface\]"):
        data(tmp_path).arrays("train")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="the datasets library is not installed")
def test_the_real_library_on_a_folder_of_parquet(tmp_path, monkeypatch):
    import datasets
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    table = {"img": [{"bytes": png(k), "path": None} for k in range(5)], "fine_label": list(range(5))}
    (tmp_path / "set").mkdir()
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "set" / "train.parquet")
    images, labels = data(tmp_path, source=str(tmp_path / "set"), test=None, holdout=0.2).arrays("train")
    assert images[:, 0, 0, 0].tolist() == list(range(5)) and np.array_equal(labels, range(5))
