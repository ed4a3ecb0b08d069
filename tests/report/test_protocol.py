import copy
import json

import pytest
import synthetic
from hydra.utils import instantiate

from triptych import conf
from triptych.record import describe_sampler
from triptych.report import protocol


def record(tmp_path, **changes):
    changes.setdefault("sampler", synthetic.dpm_solver(20))
    return json.loads(synthetic.write_record(tmp_path, 0.5, nfe=20, **changes).read_text())


def test_everything_that_shapes_a_number_makes_another_protocol_and_nothing_else_does(tmp_path):
    base = record(tmp_path)
    same = [
        {"values": [0.7]},
        {"created": "2030-01-01"},
        {"world_size": 8},
        {"images_per_second": 1.0},
        {"images_seen": 1},
        {"run": "elsewhere"},
        {"sampler": synthetic.dpm_solver(50)},
        {"weights": "ema(half_life=1 images, ramp=None)"},
    ]
    other = [
        {"num_samples": 2000},
        {"extractor": {"name": "digits", "sha256": "ff" * 32}},
        {"reference": synthetic.REFERENCE | {"split": "test"}},
        {"quantisation": "none"},
        {"resize": "bilinear"},
        {"weights": "raw"},
        {"seeds": {"seed": 1, "first": 0, "last": 999, "blocks": 1}},
        {"labels": "random"},
    ]
    key = protocol.key_of(protocol.protocol(base))
    for change in same:
        assert protocol.key_of(protocol.protocol(record(tmp_path, **change))) == key, change
    for change in other:
        assert protocol.key_of(protocol.protocol(record(tmp_path, **change))) != key, change
    assert protocol.key_of(protocol.protocol(base | {"a field of a later version": 3})) != key


def test_a_field_that_records_have_gained_and_that_says_nothing_makes_no_second_column(tmp_path):
    before = record(tmp_path)
    now = before | {"added_later": None}
    assert protocol.protocol(now) == protocol.protocol(before) != protocol.protocol(before | {"added_later": 2})


def test_protocols_are_told_apart_by_what_differs_and_by_nothing_else(tmp_path):
    some = [protocol.protocol(record(tmp_path, **c)) for c in ({}, {"weights": "raw"}, {"labels": "random"})]
    assert protocol.differences(some) == [
        "weights ema, labels —",
        "weights raw, labels —",
        "weights ema, labels random",
    ]
    told = protocol.describe(some[1])
    for part in ("N = 1000", "extractor digits", "digits/train", "raw weights", "127.5"):
        assert part in told


def test_samplers_are_named_by_what_tells_them_from_their_like(tmp_path):
    third = synthetic.dpm_solver(20) | {"order": 3}
    used = [record(tmp_path, sampler=s) for s in (synthetic.dpm_solver(10), synthetic.dpm_solver(20), third)]
    used.append(record(tmp_path, sampler={"name": "ProbabilityFlow", "steps": None}))
    used.append(record(tmp_path, guidance={"_target_": "triptych.guidance.ClassifierFree", "scale": 2.0}))
    labels = protocol.sampler_labels(used)
    assert [labels[protocol.sampler_key(r)] for r in used] == [
        "DPMSolver 10 order=2",
        "DPMSolver 20 order=2",
        "DPMSolver 20 order=3",
        "ProbabilityFlow",
        "DPMSolver 20 order=2 classifier_free 2",
    ]


def test_the_runs_own_sampler_is_known_by_its_arguments(tmp_path):
    config = copy.deepcopy(synthetic.composed("formulation=edm"))
    own = synthetic.own_sampler(config)
    assert protocol.is_own(record(tmp_path, sampler=own), config)
    assert protocol.is_own(record(tmp_path, sampler=own | {"grid": {"name": "karras", "rho": 7}}), config)
    assert not protocol.is_own(record(tmp_path, sampler=own | {"steps": 9}), config)
    assert not protocol.is_own(record(tmp_path, sampler=own | {"grid": {"name": "uniform"}}), config)
    assert not protocol.is_own(record(tmp_path, sampler=own | {"name": "StochasticHeun"}), config)
    assert not protocol.is_own(record(tmp_path, sampler=own, guidance={"scale": 2}), config)
    assert not protocol.is_own(record(tmp_path, sampler=own), {})


@pytest.mark.parametrize("option", conf.options("sampler"))
def test_every_sampler_as_its_yaml_has_it_is_known_as_the_runs_own(tmp_path, option):
    """What the yaml leaves to the class (null), and what it names (a predictor), stands resolved in a record."""
    config = copy.deepcopy(synthetic.composed(f"sampler={option}"))
    used = describe_sampler(instantiate(config["sampler"]))
    assert protocol.is_own(record(tmp_path, sampler=used), config)
    number = next(k for k, v in used.items() if isinstance(v, (int, float)) and not isinstance(v, bool))
    assert not protocol.is_own(record(tmp_path, sampler=used | {number: used[number] + 1}), config)
    if option == "probability_flow":
        assert not protocol.is_own(record(tmp_path, sampler=used | {"method": "rk4"}), config)
    if option == "predictor_corrector":
        other = used["predictor"] | {"name": "ReverseDiffusion"}
        assert not protocol.is_own(record(tmp_path, sampler=used | {"predictor": other}), config)


def test_less_is_better_or_more_or_nobody_knows():
    assert {protocol.direction(m) for m in ("fid_50k", "fd_digits_1k", "bits_per_dim_32", "kid_1k", "vlb_8")} == {-1}
    assert {protocol.direction(m) for m in ("precision_2k", "inception/inception_score_1k")} == {1}
    assert protocol.direction("something_new_1k") == 0
