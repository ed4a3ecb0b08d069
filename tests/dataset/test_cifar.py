import hashlib
import tarfile

import numpy as np
import pytest

from triptych import download
from triptych.dataset import CIFAR

TRAIN = [f"data_batch_{k}.bin" for k in range(1, 6)]


def write(folder, label_bytes=1, train=TRAIN, test=("test_batch.bin",), count=6):
    """Fakes in the official binary layout; pixel values count up over the whole set."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    written = []
    for name in (*train, *test):
        images, labels = rng.integers(0, 256, (count, 3, 32, 32)), rng.integers(0, 10, (count, label_bytes))
        records = b"".join(bytes(y.tolist()) + bytes(x.ravel().tolist()) for x, y in zip(images, labels, strict=True))
        (folder / name).write_bytes(records)
        written.append((images, labels[:, -1]))
    return written


def data(root, **options):
    options = {"train": TRAIN, "test": ["test_batch.bin"], "folder": "cifar-10-batches-bin"} | options
    address = "http://127.0.0.1:9/cifar-10-binary.tar.gz"
    shared = {"name": "cifar10", "channels": 3, "resolution": 32, "num_classes": 10, "root": str(root)}
    return CIFAR(**{"address": address, "md5": "0" * 32} | shared | options)


@pytest.mark.parametrize("inside", [True, False])
def test_reads_the_official_layout(tmp_path, inside):
    written = write(tmp_path / "cifar-10-batches-bin" if inside else tmp_path)
    cifar = data(tmp_path)
    assert np.array_equal(cifar.images("train"), np.concatenate([images for images, _ in written[:5]]))
    assert np.array_equal(cifar.labels("train"), np.concatenate([labels for _, labels in written[:5]]))
    assert np.array_equal(cifar.images("test"), written[5][0])


def test_cifar100_uses_the_fine_label(tmp_path):
    written = write(tmp_path, 2, ["train.bin"], ["test.bin"])
    cifar = data(tmp_path, train=["train.bin"], test=["test.bin"], label_bytes=2)
    assert np.array_equal(cifar.labels("train"), written[0][1])
    assert np.array_equal(cifar.images("test"), written[1][0])


def test_from_the_archive(tmp_path, monkeypatch):
    """Downloaded, checked, unpacked: here the archive is there already."""
    written = write(tmp_path / "made" / "cifar-10-batches-bin")
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made" / "cifar-10-batches-bin", "cifar-10-batches-bin")
    md5 = hashlib.md5((root / "cifar-10-binary.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(download, "download", lambda *_: pytest.fail("downloaded again"))
    cifar = data(root, md5=md5)
    cifar.prepare_data()
    assert np.array_equal(cifar.images("test"), written[5][0])


def test_damage_is_named(tmp_path):
    write(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        data(tmp_path).images("train")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="lacks data_batch_3.bin"):
        data(tmp_path).images("train")


def test_nothing_there_names_address_and_place(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/cifar-10-binary.tar.gz .*http://127.0.0.1:9/cifar"):
        data(tmp_path).prepare_data()
