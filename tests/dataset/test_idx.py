import gzip
import struct

import numpy as np
import pytest

from triptych.dataset import IDX

NAMES = ("train-images", "train-labels", "t10k-images", "t10k-labels")
FILES = {f"{name}-idx{3 if 'images' in name else 1}-ubyte.gz": "0" * 32 for name in NAMES}


def idx(array):
    """The official layout, written naively."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in zip(FILES, (20, 20, 8, 8), strict=True):
        array = rng.integers(0, 256, (count, 28, 28)) if "images" in name else rng.integers(0, 10, count)
        (tmp_path / name).write_bytes(gzip.compress(idx(array.astype(np.uint8))))
    return tmp_path


def data(root, **options):
    options = {"name": "mnist", "channels": 1, "resolution": 28, "num_classes": 10} | options
    return IDX(address="http://127.0.0.1:9/mnist", md5=FILES, root=str(root), **options)


def test_reads_the_official_layout(root):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 28, 28)), rng.integers(0, 10, 20)
    assert np.array_equal(data(root).images("train")[:, 0], images)
    assert np.array_equal(data(root).labels("train"), labels)
    assert data(root).images("test").shape == (8, 1, 28, 28)


def test_files_unpacked_by_hand(root):
    before = data(root).images("train")
    for name in FILES:
        (root / name.removesuffix(".gz")).write_bytes(gzip.decompress((root / name).read_bytes()))
        (root / name).unlink()
    assert np.array_equal(data(root).images("train"), before)


def test_padding(root):
    images = data(root, resolution=32).images("train")
    assert images.shape == (20, 1, 32, 32) and np.array_equal(images[..., 2:-2, 2:-2], data(root).images("train"))
    assert images.sum() == data(root).images("train").sum()
    with pytest.raises(ValueError, match="type dataset.channels=1 dataset.resolution=28"):
        data(root, resolution=16).images("train")


@pytest.mark.parametrize("cut", [1, 9, 1000])
def test_a_truncated_file_is_named(root, cut):
    path = root / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with pytest.raises(ValueError, match=f"{path} is damaged .*delete it"):
        data(root).images("train")
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-cut]))
    with pytest.raises(ValueError, match=f"{path} is damaged: .* Delete it"):
        data(root).images("train")


def test_other_files_are_named(root):
    path = root / "t10k-labels-idx1-ubyte.gz"
    for content in (b"", b"\0\0\x0d\x01\0\0\0\0", b"<html>"):
        path.write_bytes(gzip.compress(content))
        with pytest.raises(ValueError, match=f"{path} is not an IDX file of bytes"):
            data(root).images("test")
    path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        data(root).images("test")


def test_a_missing_file_names_address_and_place(root):
    (root / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        FileNotFoundError, match=f"{root}/train-labels-idx1-ubyte.gz .*http://127.0.0.1:9/mnist/train-l"
    ):
        data(root).prepare_data()
