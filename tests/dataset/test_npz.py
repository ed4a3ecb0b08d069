import shutil

import numpy as np
import pytest
import torch

from triptych import doctor, reference
from triptych.dataset import NPZ, base
from triptych.dataset.store import Rows
from triptych.metric import FrechetDistance, fd_extractor

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 3, 4, 4), dtype=np.uint8)
LABELS = np.arange(12) % 4


def data(root, **options):
    shared = {"name": "npz", "channels": 3, "resolution": 4, "num_classes": 4, "root": str(root), "holdout": 0.1}
    return NPZ(**{"train": "train.npz"} | shared | options)


@pytest.mark.parametrize(
    "layout", [IMAGES, IMAGES.transpose(0, 2, 3, 1), IMAGES.reshape(12, -1)], ids=["NCHW", "NHWC", "flat"]
)
def test_layouts(tmp_path, layout):
    np.savez(tmp_path / "train.npz", images=layout, labels=LABELS)
    images, labels = data(tmp_path).arrays("train")
    assert np.array_equal(images, IMAGES) and labels.tolist() == LABELS.tolist()
    assert isinstance(images, np.memmap)


def test_grey_without_a_channel_axis(tmp_path):
    np.savez(tmp_path / "train.npz", arr_0=IMAGES[:, 0])
    images, labels = data(tmp_path, channels=1, images="arr_0", labels=None, num_classes=0).arrays("train")
    assert np.array_equal(images, IMAGES[:, :1]) and labels is None


def test_downsampled_imagenet(tmp_path):
    """Parts in their numerical order, flat planes, classes from 1."""
    for part in range(1, 13):
        np.savez_compressed(
            tmp_path / f"train_data_batch_{part}.npz",
            data=IMAGES[part - 1 : part].reshape(1, -1),
            labels=LABELS[part - 1 : part] + 1,
        )
    options = {"train": "train_data_batch_*.npz", "images": "data", "first_label": 1}
    images, labels = data(tmp_path, **options).arrays("train")
    assert np.array_equal(images, IMAGES) and labels.tolist() == LABELS.tolist()


def test_a_changed_file_is_read_again(tmp_path):
    np.savez(tmp_path / "train.npz", images=IMAGES, labels=LABELS)
    assert len(data(tmp_path).arrays("train")[0]) == 12
    np.savez(tmp_path / "train.npz", images=IMAGES[:5], labels=LABELS[:5])
    assert len(data(tmp_path).arrays("train")[0]) == 5


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "no array 'labels' but images: type dataset.images=<name> dataset.labels=<name or null>"),
        ({"images": IMAGES / 255, "labels": LABELS}, "must be uint8"),
        ({"images": IMAGES[..., :3], "labels": LABELS}, "shape .3, 4, 3., which is not 3 channels of 4 x 4"),
        ({"images": np.uint8(3), "labels": LABELS}, "a single number as 'images'"),
        ({"images": IMAGES, "labels": LABELS[:3]}, "12 images but 3 labels"),
        ({"images": np.array([{}], dtype=object), "labels": LABELS}, "no archive of plain arrays"),  # a pickle inside
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arrays, message):
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        data(tmp_path).arrays("train")


def test_damage_and_absence_are_named(tmp_path):
    path = tmp_path / "train.npz"
    with pytest.raises(FileNotFoundError, match="give dataset.root=<folder> and dataset.train"):
        data(tmp_path).arrays("train")
    np.savez(path, images=IMAGES, labels=LABELS)
    whole = path.read_bytes()
    for kept in (0, 100, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=f"{path} is damaged"):
            data(tmp_path).arrays("train")


def test_what_has_been_removed_is_known_and_what_is_open_can_still_be_read(tmp_path):
    root, cache = tmp_path / "root", tmp_path / "cache"
    root.mkdir()
    np.savez(root / "train.npz", images=IMAGES, labels=LABELS)
    source = data(root, cache=str(cache))
    assert source.gone() is None  # before anything is read
    source.prepare_data()
    assert source.gone() is None
    shutil.rmtree(root)
    assert source.gone() == root
    root.mkdir()
    assert source.gone() is None
    shutil.rmtree(cache)
    assert source.gone().name == "images.bin" and np.array_equal(source._load("train")[0], IMAGES)


def test_a_part_of_a_large_set_is_read_as_it_is_asked_for(tmp_path, monkeypatch):
    """Statistics, the doctor's page and validation see the same images as where they are copied into memory."""
    images = np.random.default_rng(1).integers(0, 256, (300, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=np.arange(300) % 4)
    options = {"channels": 1, "resolution": 8, "holdout": 0.3, "global_batch_size": 7}

    def seen(cache):
        dataset, metric = (
            data(tmp_path, cache=str(tmp_path / cache), **options),
            FrechetDistance(fd_extractor("digits")),
        )
        page = list(doctor.examine(dataset, metric))
        reference.use([metric], dataset, "train")
        metric.update(torch.from_numpy(images[:100]), real=False)
        batches = torch.cat([batch[0] for batch in dataset.val_dataloader()])
        return dataset.images("train"), page, float(metric.compute()), batches

    copied, *small = seen("small")
    monkeypatch.setattr(base, "IN_MEMORY", 0)
    read, *large = seen("large")
    assert isinstance(read, Rows) and isinstance(copied, np.ndarray)
    assert np.array_equal(read[:], copied) and (read.shape, len(read)) == (copied.shape, len(copied))
    assert small[:2] == large[:2] and torch.equal(small[2], large[2])
