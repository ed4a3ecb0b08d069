import json

import pytest

from triptych import explain

RECORD = {
    "metric": "fid_50k",
    "value": 3.2,
    "values": [3.2],
    "num_samples": 50_000,
    "extractor": {"name": "inception", "sha256": "67"},
    "reference": {"dataset": "cifar10", "split": "train", "num_images": 50_000},
    "resize": "bilinear",
    "weights": "ema",
    "sampler": {"name": "DDIM", "steps": 50},
    "created": "1",
    "images_per_second": 9.0,
}


def changed(**new):
    return {**RECORD, **new}


def test_only_what_was_measured_differently_is_told():
    assert explain.differences(RECORD, changed(value=9.0, values=[9.0], created="2", images_per_second=1.0)) == []
    other = changed(
        reference={**RECORD["reference"], "split": "test"}, sampler={"name": "DDIM", "steps": 20, "eta": 1.0}
    )
    rows = {name: (a, b) for name, a, b, _ in explain.differences(RECORD, other)}
    assert rows == {
        "reference.split": ("train", "test"),
        "sampler.steps": ("50", "20"),
        "sampler.eta": ("-", "1.0"),
    }


@pytest.mark.parametrize(
    ("field", "trap"),
    [
        ("num_samples", "T-F4"),
        ("reference.split", "T-F5"),
        ("extractor.sha256", "T-F8"),
        ("resize", "T-F1"),
        ("quantisation", "T-F2"),
        ("labels", "T-F13"),
        ("source.format", "T-F7"),
    ],
)
def test_what_is_known_of_a_difference_is_said(field, trap):
    assert trap in explain.effect(field)


def test_every_field_of_a_record_has_a_word():
    import dataclasses

    from triptych.record import Record

    for field in dataclasses.fields(Record):
        assert field.name in explain.VALUES or explain.effect(field.name), field.name


def test_the_page_and_what_is_no_record(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(RECORD))
    (tmp_path / "b.json").write_text(json.dumps(changed(weights="raw", value=4.0)))
    page = explain.page(explain.read(tmp_path / "a.json"), explain.read(tmp_path / "b.json"))
    assert "A  fid_50k 3.2" in page and "B  fid_50k 4" in page and "weights" in page and "raw" in page
    assert "exactly the same way" in explain.page(RECORD, RECORD)
    with pytest.raises(ValueError, match="holds 2 records: name one of them"):
        explain.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="no record at"):
        explain.read(tmp_path / "c.json")
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(ValueError, match="no metric and value"):
        explain.read(tmp_path / "c.json")
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        explain.read(tmp_path / "c.json")
