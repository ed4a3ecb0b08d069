import base64
import io
import random

import pytest
import synthetic
from PIL import Image

from triptych import report
from triptych.report import pictures


def decoded(uri):
    kind, _, content = uri.partition(";base64,")
    assert kind in ("data:image/png", "data:image/webp")
    return Image.open(io.BytesIO(base64.b64decode(content)))


@pytest.mark.parametrize(("factor", "mode"), [(8, "L"), (7, "RGB"), (1, "L")])
def test_enlarged_pixels_travel_once_and_none_is_lost(tmp_path, factor, mode):
    pixels = random.Random(0).randbytes(17 * 9 * (3 if mode == "RGB" else 1))
    small = Image.frombytes(mode, (17, 9), pixels)
    small.resize((17 * factor, 9 * factor), Image.Resampling.NEAREST).save(tmp_path / "x.png")
    uri, width, height = pictures.data_uri(tmp_path / "x.png")
    assert (width, height) == (17, 9)
    assert decoded(uri).convert(mode).tobytes() == pixels


def test_a_large_photograph_is_shrunk(tmp_path):
    Image.frombytes("RGB", (1200, 600), random.Random(0).randbytes(1200 * 600 * 3)).save(tmp_path / "x.png")
    uri, width, height = pictures.data_uri(tmp_path / "x.png")
    assert (width, height) == decoded(uri).size == (640, 320) and uri.startswith("data:image/webp")


def test_no_more_rows_than_asked_have_pictures_and_the_page_says_which(tmp_path):
    choices = ("formulation=ddpm", "formulation=edm", "formulation=flow_matching")
    for number, choice in enumerate(choices):
        synthetic.run(tmp_path / str(number), [choice], quality=1.0 + number)
    folders = report.find(str(tmp_path))
    table = report.build([report.read(*pair) for pair in zip(folders, report.names(folders), strict=True)])
    found, told = pictures.embed(table, 2)
    assert list(found) == [row.runs[0] for row in table.groups[:2]]  # the best two
    assert "2 of 3 rows" in told and "pictures=3" in told
    assert [m["seen"] for m in found[table.groups[0].runs[0]]["grid"]] == [1600, 3200, 6400]
    assert pictures.embed(table, 0)[0] == {}


def test_half_a_picture_is_left_out(tmp_path):
    synthetic.run(tmp_path / "run", ["formulation=ddpm"])
    path = tmp_path / "run" / "samples" / "images_seen=000003200.png"
    path.write_bytes(path.read_bytes()[:60])
    found, _ = pictures.embed(report.build([report.read(tmp_path / "run", "run")]), 5)
    assert [m["seen"] for m in found[0]["grid"]] == [1600, 6400]
