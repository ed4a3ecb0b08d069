import dataclasses
import functools
import json
import threading

import pytest

from triptych import record
from triptych.record import Record
from triptych.sampler.grid import karras, log_snr

PROTOCOL = {
    "metric": "fd_digits_1k",
    "values": [1.0, 2.0, 4.0],
    "num_samples": 1000,
    "extractor": {"name": "digits", "sha256": "ab"},
    "reference": {"dataset": "digits", "split": "train", "transform": "cd", "num_images": 1611},
    "quantisation": "uint8",
    "resize": "none",
    "weights": "raw",
    "sampler": {"name": "DDIM", "steps": 50},
    "guidance": None,
    "nfe": 50,
    "images_per_second": 3.0,
    "seeds": {"seed": 0, "first": 0, "last": 999, "blocks": 3},
    "labels": None,
    "images_seen": 100,
    "world_size": 1,
    "computing": {"precision": "32-true", "compile": False, "device": "cpu", "batch_size": 250},
    "run": "runs/a",
}


def test_value_spread_and_minimum_are_those_of_the_seed_blocks():
    r = Record(**PROTOCOL)
    assert r.value == pytest.approx(7 / 3) and r.spread == pytest.approx((7 / 3) ** 0.5)  # n - 1
    assert r.as_dict()["minimum"] == 1.0
    assert Record(**PROTOCOL | {"values": [3.0]}).spread is None


@pytest.mark.parametrize(
    "missing", ["reference", "sampler", "nfe", "seeds", "images_seen", "world_size", "extractor", "computing"]
)
def test_no_part_of_the_protocol_can_be_forgotten(missing):
    with pytest.raises(TypeError, match=missing):
        Record(**{k: v for k, v in PROTOCOL.items() if k != missing})


@pytest.mark.parametrize(
    ("name", "wrong"), [("metric", ""), ("weights", ""), ("values", []), ("values", [float("nan")])]
)
def test_a_number_without_its_protocol_is_refused(name, wrong):
    with pytest.raises(ValueError, match="evaluation record needs"):
        Record(**PROTOCOL | {name: wrong})


def test_the_key_tells_protocols_apart_and_nothing_else():
    key = Record(**PROTOCOL).key
    assert key.startswith("fd_digits_1k-")
    same = {"values": [9.0], "images_per_second": 1.0, "world_size": 4, "created": "later"}
    assert Record(**PROTOCOL | same).key == key
    changes = {
        "sampler": {"name": "DDIM", "steps": 51},
        "weights": "ema",
        "seeds": {"seed": 1, "first": 0, "last": 999, "blocks": 3},
        "images_seen": 200,
        "extractor": {"name": "digits", "sha256": "ac"},
        "labels": "random",
        "nfe": 51,
        "metric": "fid_1k",
        "num_samples": 1001,
        "reference": {**PROTOCOL["reference"], "split": "test"},
        "quantisation": "truncated",
        "resize": "bilinear",
        "guidance": {"scale": 2.0},
        "run": "runs/b",
        "arguments": {"splits": 5},
        "source": {"file": "theirs.npz"},
        "code": {"commit": "ef"},
        "computing": {**PROTOCOL["computing"], "precision": "bf16-mixed"},
    }
    assert {f.name for f in dataclasses.fields(Record)} == {*changes, *same, "standard_error"}
    keys = {Record(**PROTOCOL | {name: value}).key for name, value in changes.items()}
    assert len(keys) == len(changes) and key not in keys


def test_a_written_record_holds_every_field_and_reads_back(tmp_path):
    r = Record(**PROTOCOL)
    path = r.write(tmp_path / "evaluations")
    read = json.loads(path.read_text())
    assert read == json.loads(json.dumps(r.as_dict()))
    assert {f.name for f in dataclasses.fields(Record)} < set(read) and read["code"]["torch"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file is left


def test_a_reader_never_sees_half_a_record(tmp_path):
    """One thread writes, another reads all the time: whatever is found is whole."""
    r, done, seen = Record(**PROTOCOL), threading.Event(), []

    def look():
        while not done.is_set():
            seen.extend(json.loads(p.read_text())["metric"] for p in tmp_path.glob("*.json"))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for _ in range(50):
            r.write(tmp_path)
    finally:
        done.set()
        reader.join()
    assert seen and set(seen) == {"fd_digits_1k"}


def test_reading_leaves_out_what_is_no_record(tmp_path):
    Record(**PROTOCOL | {"created": "2"}).write(tmp_path)
    Record(**PROTOCOL | {"created": "1", "weights": "ema"}).write(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    assert [r["weights"] for r in record.read(tmp_path)] == ["ema", "raw"]


def test_numbers_that_json_cannot_hold_are_refused(tmp_path):
    with pytest.raises(ValueError):
        record.write_json(tmp_path / "a.json", {"value": float("nan")})
    assert not list(tmp_path.iterdir())


def test_counts_are_short_and_exact():
    assert [record.short_count(n) for n in (64, 500, 1000, 1797, 50_000)] == ["64", "500", "1k", "1797", "50k"]


def test_a_sampler_is_described_by_all_its_arguments():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        order: int = 2

    @dataclasses.dataclass(frozen=True)
    class Outer:
        steps: int = 5
        grid: object = log_snr
        partial: object = functools.partial(karras, rho=7)
        inner: Inner = Inner()
        times: tuple = (1.0, 0.5)

    described = record.describe_sampler(Outer())
    assert described == {
        "name": "Outer",
        "steps": 5,
        "grid": "log_snr",
        "partial": {"name": "karras", "rho": 7},
        "inner": {"name": "Inner", "order": 2},
        "times": (1.0, 0.5),
    }
    json.dumps(described)


def test_the_code_version_names_commit_and_torch():
    version = record.code_version()
    assert version["triptych"] and version["torch"]
    assert version["commit"] is None or len(version["commit"]) == 40


def test_a_record_says_in_one_line_what_it_measured():
    line = Record(**PROTOCOL).describe()
    for part in ("fd_digits_1k 2.333 ±", "DDIM, 50 network calls", "digits/train", "weights raw"):
        assert part in line
