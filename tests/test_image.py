import numpy as np
import pytest
import torch
from PIL import Image

from triptych import image

LEVELS = torch.arange(256, dtype=torch.uint8)


def test_every_grey_level_survives_the_way_there_and_back():  # T-F2b
    assert torch.equal(image.to_uint8(image.from_uint8(LEVELS)), LEVELS)
    half = image.from_uint8(LEVELS).to(torch.bfloat16).float()  # what a half-precision network could give at best
    assert (image.to_uint8(half).int() - LEVELS.int()).abs().max() <= 1


def test_rounding_is_unbiased_and_truncation_is_half_a_level_darker():  # T-F2
    exact = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 * 254 + 0.5  # levels between 0.5 and 254.5
    x = (exact / 127.5 - 1).float()
    assert abs((image.to_uint8(x).double() - exact).mean()) < 1e-3
    assert abs((image.to_uint8_truncating(x).double() - exact).mean() + 0.5) < 1e-3


def test_what_lies_outside_is_clamped():
    x = torch.tensor([-7.0, -1.0, 1.0, 7.0])
    assert image.to_uint8(x).tolist() == image.to_uint8_truncating(x).tolist() == [0, 0, 255, 255]
    assert image.from_uint8(LEVELS).aminmax() == (-1, 1)


@pytest.mark.parametrize(("n", "columns", "rows"), [(1, 1, 1), (4, 2, 2), (5, 3, 2), (64, 8, 8)])
def test_a_grid_is_filled_row_by_row_on_white(n, columns, rows):
    images = torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1).expand(n, 3, 4, 5)
    picture = image.grid(images)
    assert picture.shape == (3, rows * 5 + 1, columns * 6 + 1)
    cells = [picture[:, r * 5 + 1 : r * 5 + 5, c * 6 + 1 : c * 6 + 6] for r in range(rows) for c in range(columns)]
    for k, cell in enumerate(cells):
        assert (cell == (k if k < n else 255)).all()
    assert (picture[:, 0] == 255).all() and (picture[:, :, -1] == 255).all()


def test_a_strip_has_a_row_a_sample_and_a_column_a_moment():
    frames = [
        torch.full((2, 1, 3, 3), 10 * t, dtype=torch.uint8) + torch.tensor([0, 1]).byte().view(2, 1, 1, 1)
        for t in range(4)
    ]
    picture = image.strip(frames)
    assert picture.shape == (1, 2 * 4 + 1, 4 * 4 + 1)
    assert [[int(picture[0, 4 * r + 2, 4 * c + 2]) for c in range(4)] for r in range(2)] == [
        [0, 10, 20, 30],
        [1, 11, 21, 31],
    ]


def test_small_pictures_are_enlarged_by_whole_pixels():
    picture = torch.tensor([[[0, 255], [255, 0]]], dtype=torch.uint8)
    large = image.enlarge(picture, 600)
    assert large.shape == (1, 600, 600)
    assert (large[0, :300, :300] == 0).all() and (large[0, :300, 300:] == 255).all()
    assert image.enlarge(torch.zeros(3, 1000, 1000, dtype=torch.uint8)).shape == (3, 1000, 1000)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_saved_picture_reads_back_as_it_was(channels, tmp_path):
    picture = torch.randint(0, 256, (channels, 6, 7), dtype=torch.uint8)
    path = image.save(picture, tmp_path / "new" / "folder" / "p.png")
    read = np.asarray(Image.open(path))
    assert np.array_equal(read, image.to_numpy(picture)) and read.shape == ((6, 7) if channels == 1 else (6, 7, 3))


def test_an_animation_has_every_frame_and_rests_on_the_last(tmp_path):
    frames = [torch.full((1, 8, 8), v, dtype=torch.uint8) for v in (0, 100, 200)]
    with Image.open(image.save_animation(frames, tmp_path / "a.gif")) as read:
        assert read.n_frames == 3
        read.seek(2)
        assert read.info["duration"] == 1500 and int(np.asarray(read.convert("L"))[4, 4]) == 200


def test_points_are_scattered_where_they_are():
    corner = torch.tensor([[0.9, 0.9]]).repeat(200, 1)  # right, and up
    picture = image.scatter(corner, pixels=200).int()
    row, column = (picture[2] - picture[0] > 50).nonzero().float().mean(0)  # where it is blue
    assert row < 70 and column > 130
    assert image.picture(corner).shape == (3, image.FINE, image.FINE)


def test_a_filmstrip_is_wide_enough_to_look_at_for_images_and_for_points():
    images = [torch.zeros(2, 1, 8, 8, dtype=torch.uint8)] * 5
    points = [torch.randn(50, 2)] * 3
    assert image.filmstrip(images).shape[-1] >= 256
    assert image.filmstrip(points).shape == (3, 242, 3 * 241 + 1)
