import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from triptych.dataset.picture import Picture

RGB = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
EXACT = Picture(channels=3, resolution=8)
GREY = Picture(channels=1, resolution=8)


def encode(picture, format="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def test_rgb_and_grey():
    assert np.array_equal(EXACT(encode(Image.fromarray(RGB))), RGB.transpose(2, 0, 1))
    grey = Image.fromarray(RGB[..., 0])
    assert np.array_equal(GREY(encode(grey)), RGB[None, ..., 0])
    assert np.array_equal(EXACT(encode(grey)), np.stack([RGB[..., 0]] * 3))
    luma = RGB @ np.array([299, 587, 114]) / 1000  # ITU-R 601
    assert np.abs(GREY(encode(Image.fromarray(RGB)))[0] - luma).max() <= 1


def test_palette():
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), "P")
    colours = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    picture.putpalette(colours.tobytes())
    assert np.array_equal(EXACT(encode(picture)), colours[:64].reshape(8, 8, 3).transpose(2, 0, 1))
    picture.info["transparency"] = 5  # one index of it is see-through, and becomes white
    expected = colours[:64].copy()
    expected[5] = 255
    assert np.array_equal(EXACT(encode(picture)), expected.reshape(8, 8, 3).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_on_white(mode):
    alpha = np.random.default_rng(2).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    colour = RGB if mode == "RGBA" else RGB[..., :1]
    file = encode(Image.fromarray(np.concatenate([colour, alpha], 2), mode))
    expected = (colour * (alpha / 255.0) + 255 * (1 - alpha / 255.0)).transpose(2, 0, 1)
    assert np.abs(EXACT(file) - expected).max() <= 1


def test_cmyk():
    """Without a profile Pillow's rule is R = (255 - C) (255 - K) / 255."""
    cmyk = np.random.default_rng(3).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    file = encode(Image.fromarray(cmyk, "CMYK"), "TIFF")
    expected = (255.0 - cmyk[..., :3]) * (255.0 - cmyk[..., 3:]) / 255
    assert np.abs(EXACT(file) - expected.transpose(2, 0, 1)).max() <= 1


def png16(levels, kind):
    """A PNG of 16 bits a channel, written by hand. kind: 0 grey, 2 RGB."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", *levels.shape[1::-1], 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in [*chunks, (b"IEND", b"")]
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_sixteen_bits_are_rounded():
    levels = np.array([0, 128, 129, 257, 385, 386, 32768, 65535]).repeat(8).reshape(8, 8)
    expected = np.rint(levels / 257)
    assert np.array_equal(GREY(png16(levels, 0))[0], expected)
    assert np.array_equal(EXACT(png16(levels, 0)), np.stack([expected] * 3))
    colour = np.stack([levels] * 3, 2)
    assert np.abs(EXACT(png16(colour, 2)) - np.stack([expected] * 3)).max() <= 1  # Pillow itself takes the high byte


def test_exif_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    file = encode(Image.fromarray(RGB), exif=exif)
    assert np.array_equal(EXACT(file), np.rot90(RGB, -1).transpose(2, 0, 1))


def test_centre_crop():
    wide = np.random.default_rng(4).integers(0, 256, (8, 14, 3), dtype=np.uint8)
    assert np.array_equal(EXACT(encode(Image.fromarray(wide))), wide[:, 3:11].transpose(2, 0, 1))
    inner = Picture(channels=3, resolution=4, crop=4)
    assert np.array_equal(inner(encode(Image.fromarray(wide))), wide[2:6, 5:9].transpose(2, 0, 1))
    celeba = np.zeros((218, 178, 3), np.uint8)
    celeba[39:179, 19:159] = 255  # the central 140 x 140
    assert (
        Picture(channels=3, resolution=64, crop=140, filter="bilinear")(encode(Image.fromarray(celeba))) == 255
    ).all()


def test_resize_is_antialiased():
    """A one-pixel checkerboard is grey at half its size, whatever the filter; sampling would give black or white."""
    board = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)
    for name in ("bilinear", "bicubic", "lanczos", "box", "hamming", "adm"):
        small = Picture(channels=1, resolution=16, filter=name)(encode(Image.fromarray(board)))
        assert np.abs(small.astype(int) - 127.5).max() < 12, name
    by_two = Picture(channels=1, resolution=4, filter="box")(encode(Image.fromarray(RGB[..., 0])))
    mean = RGB[..., 0].reshape(4, 2, 4, 2).mean((1, 3))
    assert np.abs(by_two[0] - mean).max() <= 1  # Pillow rounds twice, once an axis


def test_adm_halves_by_box_then_crops():
    """At an exact power of two the bicubic step is the identity: only the box means are left."""
    wide = np.random.default_rng(5).integers(0, 256, (32, 48), dtype=np.uint8)
    half = np.rint(wide.reshape(16, 2, 24, 2).mean((1, 3)))
    quarter = half.reshape(8, 2, 12, 2).mean((1, 3))
    result = Picture(channels=1, resolution=8, filter="adm")(encode(Image.fromarray(wide)))[0]
    assert np.abs(result - quarter[:, 2:10]).max() <= 2


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow's own, before the error
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_truncated_files_are_errors(format):
    noise = Image.fromarray(np.random.default_rng(6).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    file = encode(noise, format)
    Picture(channels=3, resolution=8)(file)
    for kept in (0, 10, len(file) // 2):
        with pytest.raises(ValueError):
            Picture(channels=3, resolution=8)(file[:kept])


def test_what_cannot_be_read_says_why():
    with pytest.raises(ValueError, match="floating point"):
        EXACT(encode(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF"))
    with pytest.raises(ValueError, match="8 x 8, smaller than the crop of 9"):
        Picture(channels=3, resolution=8, crop=9)(encode(Image.fromarray(RGB)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filter": "nearest"}, "filter=nearest is not one of"),
        ({"channels": 4}, "1 channel or with 3"),
        ({"resolution": 0}, "side of an image in pixels"),
        ({"filter": "adm", "crop": 8}, "type dataset.crop=null"),
    ],
)
def test_bad_input_is_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        Picture(**{"channels": 3, "resolution": 8} | options)
