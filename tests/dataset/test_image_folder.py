import json
import logging

import numpy as np
import pytest
from PIL import Image

from triptych.dataset import ImageFolder, decode, image_folder


def data(root, **options):
    shared = {"name": "folder", "channels": 3, "resolution": 8, "root": str(root), "train": ".", "test": None}
    return ImageFolder(**shared | {"holdout": 0.1} | options)


def save(path, value, mode="RGB", size=(10, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).convert(mode).save(path)


@pytest.fixture
def classes(tmp_path):
    for k, name in enumerate(["cat", "dog", "eel"]):
        for j in range(4):
            save(tmp_path / "train" / name / f"{j}.png", 10 * k + j)
    for name, value in (("dog", 50), ("eel", 60)):  # no cat: its number is not given away
        save(tmp_path / "test" / name / "deep" / "0.png", value)
    return tmp_path


def red(images):
    return images[:, 0, 0, 0].tolist()


def test_sub_folders_are_classes(classes):
    folder = data(classes, train="train", test="test", num_classes=3, conditional=True, holdout=0.0)
    assert red(folder.images("train")) == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    assert folder.labels("train").tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert red(folder.images("test")) == [50, 60] and folder.labels("test").tolist() == [1, 2]
    assert data(classes, train="train").labels("train") is None


def test_the_second_start_decodes_nothing(classes, monkeypatch):
    first = data(classes).arrays("train")
    monkeypatch.setattr(decode, "Writer", None)
    monkeypatch.setattr(image_folder, "decode", lambda *_: pytest.fail("decoded again"))
    again, _ = data(classes).arrays("train")
    assert isinstance(again, np.memmap) and np.array_equal(first[0], again)


def test_whatever_shapes_the_images_makes_another_cache(classes):
    variants = [
        {},
        {"resolution": 4},
        {"filter": "box"},
        {"crop": 6},
        {"channels": 1},
        {"num_classes": 3, "train": "train"},
    ]
    shapes = [data(classes, **variant).arrays("train")[0].shape for variant in variants]
    assert shapes[1] == (14, 3, 4, 4) and shapes[4] == (14, 1, 8, 8)
    assert len(list((classes / "cache").glob("*/about.json"))) == len(variants)
    save(classes / "train" / "cat" / "new.png", 99)
    assert 99 in red(data(classes).arrays("train")[0])  # so does another file
    hashes = {data(classes, **variant).transform_hash for variant in variants[:5]}
    assert len(hashes) == 5


def test_modes(tmp_path):
    for mode, suffix in (("RGB", "png"), ("P", "gif"), ("RGBA", "png"), ("LA", "png"), ("L", "webp")):
        save(tmp_path / f"{mode}.{suffix}", 255, mode)
    Image.new("1", (8, 8), 1).save(tmp_path / "1.png")
    save(tmp_path / "CMYK.jpg", 255, "CMYK")
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(tmp_path / "sixteen.PNG")
    save(tmp_path / ".hidden.png", 0)
    (tmp_path / "notes.txt").write_text("not a picture")
    images, _ = data(tmp_path).arrays("train")
    assert len(images) == 8 and images.std((2, 3)).max() == 0
    by_name = dict(
        zip(sorted(["RGB", "P", "RGBA", "LA", "L", "1", "CMYK", "sixteen"]), images[:, :, 0, 0], strict=True)
    )
    for mode in ("RGB", "P", "RGBA"):
        assert by_name[mode].tolist() == [255, 0, 0]
    assert by_name["sixteen"].tolist() == [255] * 3
    assert by_name["CMYK"] == pytest.approx([255, 0, 0], abs=3)
    assert by_name["L"] == pytest.approx([76] * 3, abs=3)  # the luma of red


@pytest.fixture
def corrupt(tmp_path):
    for k in range(10):
        save(tmp_path / f"{k}.png", k)
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:-30])
    (tmp_path / "7.png").write_bytes(b"")
    return tmp_path


def test_corrupt_pictures_are_named_and_counted(corrupt):
    with pytest.raises(ValueError, match=r"2 of 10 pictures .*3\.png \(.*7\.png \(.* type dataset.corrupt=skip"):
        data(corrupt).arrays("train")
    assert not list((corrupt / "cache").glob("*/about.json"))


def test_corrupt_pictures_are_left_out_if_asked_and_that_is_recorded(corrupt, caplog):
    with caplog.at_level(logging.WARNING):
        images, _ = data(corrupt, corrupt="skip").arrays("train")
    assert red(images) == [0, 1, 2, 4, 5, 6, 8, 9]
    assert "2 of 10 pictures" in caplog.text and "7.png" in caplog.text
    about = json.loads(next((corrupt / "cache").glob("*/about.json")).read_text())
    assert [note.split()[0] for note in about["notes"]] == ["3.png", "7.png"]
    with pytest.raises(ValueError, match="refuse or skip"):
        data(corrupt, corrupt="ignore").arrays("train")


def test_links(classes, tmp_path_factory):
    """Followed, but never round in a circle; a link to nothing is a picture that cannot be read."""
    train, elsewhere = classes / "train", tmp_path_factory.mktemp("elsewhere")
    save(elsewhere / "0.png", 90)
    (train / "fox").symlink_to(elsewhere)
    (train / "dog" / "up").symlink_to(train)
    (train / "cat" / "beside").symlink_to(train / "dog")
    images, labels = data(classes, train="train", num_classes=4).arrays("train")
    assert red(images) == [*range(4), *range(10, 14), *range(10, 14), *range(20, 24), 90]
    assert labels.tolist() == [0] * 8 + [1] * 4 + [2] * 4 + [3]
    (train / "eel" / "gone.png").symlink_to(classes / "nothing.png")
    with pytest.raises(ValueError, match=r"1 of 18 pictures .*eel/gone\.png \(.*No such file"):
        data(classes, train="train", num_classes=4).arrays("train")


def test_many_chunks_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "CHUNK", 3)
    for k in range(20):
        save(tmp_path / f"{k:02}.png", k)
    assert red(data(tmp_path).arrays("train")[0]) == list(range(20))


def celeba(root, **options):
    shared = {"name": "celeba", "channels": 3, "resolution": 8, "root": str(root), "folder": "img_align_celeba"}
    return ImageFolder(
        partition="list_eval_partition.txt", train=0, test=2, crop=6, filter="bilinear", **shared | options
    )


def test_celeba_layout(tmp_path):
    lines = []
    for k in range(1, 13):
        save(tmp_path / "img_align_celeba" / f"{k:06}.jpg", 20 * k)
        lines.append(f"{k:06}.jpg {0 if k <= 8 else 1 if k <= 10 else 2}\n")
    (tmp_path / "list_eval_partition.txt").write_text("".join(lines))
    folder = celeba(tmp_path)
    assert red(folder.images("train")) == pytest.approx([20 * k for k in range(1, 9)], abs=3)
    assert red(folder.images("test")) == pytest.approx([220, 240], abs=3)
    (tmp_path / "img_align_celeba" / "000012.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 of the 2 pictures .* the first 000012.jpg"):
        celeba(tmp_path).images("test")
    (tmp_path / "list_eval_partition.txt").unlink()
    with pytest.raises(FileNotFoundError, match="dataset.partition names it"):
        celeba(tmp_path).images("test")


def test_lsun_layout(tmp_path):
    """The official exporter's nested folders of webp, which are no classes."""
    for k, place in enumerate(["a/b/c", "a/b/d", "e/f/g"]):
        save(tmp_path / "train" / place / f"{k}.webp", 30 * k)
    assert len(data(tmp_path, train="train", filter="bicubic").arrays("train")[0]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "nowhere"}, r"no folder .*nowhere for the train pictures: .*\. for root itself"),
        ({"test": "nowhere"}, "dataset.test=null dataset.holdout=0.05 if there is none"),
        ({"train": "empty"}, "holds no pictures"),
        (
            {"train": "mixed", "num_classes": 3, "conditional": True},
            "1 pictures in .* are in no class folder, such as 0.png",
        ),
        ({"train": "train", "num_classes": 2, "conditional": True}, "type dataset.num_classes=3"),
        ({"train": "test", "test": "train", "num_classes": 2}, "has the class cat, which .* lacks"),
        ({"train": "mixed/cat", "num_classes": 3, "conditional": True}, "in no class folder"),
    ],
)
def test_bad_input_is_one_sentence(classes, options, message):
    (classes / "empty").mkdir()
    save(classes / "mixed" / "0.png", 0)
    save(classes / "mixed" / "cat" / "0.png", 0)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data(classes, **options).prepare_data()


def test_training_batches_come_from_the_map(classes, monkeypatch):
    """A set too large for memory gives the same batches as one that fits."""
    batches = []
    for limit in (1 << 30, 0):
        monkeypatch.setattr("triptych.dataset.base.IN_MEMORY", limit)
        folder = data(classes, train="train", flip=True, num_classes=3, conditional=True, global_batch_size=5)
        batches.append([batch for _, batch in zip(range(9), folder.train_dataloader(), strict=False)])
        assert type(folder.train_dataloader().store).__name__ == ("MappedStore" if limit == 0 else "Store")
    for (x, y), (u, v) in zip(*batches, strict=True):
        assert np.array_equal(x, u) and np.array_equal(y, v)
