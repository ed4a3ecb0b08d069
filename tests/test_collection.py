"""T-F7: what other projects write, and what would give a wrong number."""

import json

import numpy as np
import pytest
from PIL import Image

from triptych import collection

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return tmp_path / "a.npz"


def folder(tmp_path, images, suffix=".png", mode=None):
    for k, image in enumerate(images):
        Image.fromarray(image).convert(mode or ("RGB" if image.ndim == 3 else "L")).save(tmp_path / f"{k:03d}{suffix}")
    return tmp_path


def test_every_layout_gives_the_same_images(tmp_path):
    for name, arrays in {
        "adm": {"arr_0": COLOUR, "arr_1": np.arange(5)},
        "channels first": {"images": COLOUR.transpose(0, 3, 1, 2), "labels": np.arange(5)},
        "one name": {"mine": COLOUR, "mu": np.zeros(3), "sigma": np.eye(3)},
    }.items():
        assert np.array_equal(collection.read(npz(tmp_path, **arrays)).images, COLOUR.transpose(0, 3, 1, 2)), name
    grey = collection.read(npz(tmp_path, arr_0=COLOUR[..., 0]))
    assert grey.images.shape == (5, 1, 8, 8)
    pictures = tmp_path / "pictures"
    (pictures / "deep").mkdir(parents=True)
    folder(pictures, COLOUR[:3])
    folder(pictures / "deep", COLOUR[3:])
    read = collection.read(pictures)
    assert np.array_equal(read.images, COLOUR.transpose(0, 3, 1, 2)) and not read.warnings
    assert read.source["format"] == "5 PNG" and len(read.source["sha256"]) == 16


def test_jpeg_is_said(tmp_path):
    (warning,) = collection.read(folder(tmp_path, COLOUR, ".jpg")).warnings
    assert "5 of the 5" in warning and "JPEG" in warning


def test_transparency_and_palettes(tmp_path):
    whole = folder(tmp_path, COLOUR, mode="RGBA")
    assert np.array_equal(collection.read(whole).images, COLOUR.transpose(0, 3, 1, 2))
    Image.fromarray(np.zeros((8, 8, 4), np.uint8), "RGBA").save(tmp_path / "clear.png")
    with pytest.raises(ValueError, match=r"clear.png cannot be used: it is partly transparent"):
        collection.read(tmp_path)


def mixed(tmp_path):
    folder(tmp_path, [COLOUR[0], np.zeros((4, 8, 3), np.uint8)])
    return tmp_path


def deep(tmp_path):
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "deep.png")
    return tmp_path


def text(tmp_path):
    (tmp_path / "a.npz").write_text("no archive")
    return tmp_path / "a.npz"


def beside(tmp_path):
    npz(tmp_path, arr_0=COLOUR)
    return tmp_path


WRONG = {
    "empty folder": (lambda p: p, "holds no pictures"),
    "an npz in it": (beside, "give samples=.*a.npz"),
    "one image": (lambda p: npz(p, arr_0=COLOUR[:1]), "holds 1 image: a distance needs many"),
    "no image": (lambda p: npz(p, arr_0=COLOUR[:0]), "holds no images"),
    "floats": (lambda p: npz(p, arr_0=COLOUR / np.float32(255)), "float32 values in arr_0: images must be uint8"),
    "nan": (lambda p: npz(p, arr_0=np.full((2, 8, 8, 3), np.nan)), "NaN or Inf among them"),
    "inf points": (lambda p: npz(p, arr_0=np.full((9, 2), np.inf)), "NaN or Inf"),
    "two sizes": (mixed, "two sizes, 000.png 8x8 and 001.png 4x8"),
    "16 bits": (deep, "more than 8 bits a channel"),
    "no array": (lambda p: npz(p, a=COLOUR, b=COLOUR), "holds a, b: name the array of images arr_0"),
    "five channels": (lambda p: npz(p, arr_0=np.zeros((2, 8, 8, 5), np.uint8)), "1 or 3 channels"),
    "objects": (lambda p: npz(p, arr_0=np.array([{}, {}])), "Python objects"),
    "damaged": (text, "a.npz"),
    "nothing": (lambda p: p / "absent", "nothing at"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_gives_a_wrong_number_is_refused(tmp_path, what):
    make, said = WRONG[what]
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        collection.read(make(tmp_path))


def test_images_must_be_like_the_data_set(tmp_path):
    colour = collection.read(npz(tmp_path, arr_0=COLOUR))
    assert collection.like(colour, (3, 8, 8), "set") is not None
    with pytest.raises(ValueError, match="are 8x8, but cifar10 is 32x32"):
        collection.like(colour, (3, 32, 32), "cifar10")
    with pytest.raises(ValueError, match="in colour, but digits is grey"):
        collection.like(colour, (1, 8, 8), "digits")
    with pytest.raises(ValueError, match="images of 3x8x8, but the data set toy points"):
        collection.like(colour, (2,), "toy")
    grey = collection.read(npz(tmp_path, arr_0=np.repeat(COLOUR[..., :1], 3, 3)))
    assert collection.like(grey, (1, 8, 8), "digits").images.shape == (5, 1, 8, 8)
    one = collection.like(collection.read(npz(tmp_path, arr_0=COLOUR[..., 0])), (3, 8, 8), "set")
    assert one.images.shape == (5, 3, 8, 8) and "repeated" in one.warnings[0]


def test_the_protocol_comes_from_the_record_beside(tmp_path):
    path = npz(tmp_path, arr_0=COLOUR).rename(tmp_path / "samples.npz")
    assert collection.protocol(path)["weights"] == "not known"
    told = {"seed": 3, "first": 10, "num_samples": 5, "run": "runs/a", "sampler": {"name": "DDIM"}}
    told |= dict.fromkeys(("guidance", "labels", "images_seen", "images_per_second"))
    told |= {"nfe": 7, "weights": "raw", "quantisation": "uint8"}
    (tmp_path / "record.json").write_text(json.dumps(told))
    assert collection.protocol(npz(tmp_path, arr_0=COLOUR))["weights"] == "not known"  # another file beside it
    known = collection.protocol(path)
    assert known["nfe"] == 7 and known["seeds"] == {"seed": 3, "first": 10, "last": 14, "blocks": 1}


def test_the_folder_that_sample_py_writes_is_not_read_as_pictures(tmp_path):
    folder(tmp_path, COLOUR[:2])
    np.savez(tmp_path / "samples.npz", arr_0=COLOUR)
    with pytest.raises(ValueError, match="give samples=.*samples.npz"):
        collection.read(tmp_path)
