"""From a job to numbers: what fails is said, and what it costs is known before."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from oracles import Mixture
from PIL import Image
from torch import nn

from triptych import cost, tradeoff
from triptych.evaluation import Evaluator
from triptych.generate import Job
from triptych.metric import MMD, BitsPerDim, FrechetDistance
from triptych.record import Record
from triptych.sampler import DDIM, Ancestral, DPMSolver, Heun, PredictorCorrector
from triptych.schedule import VP


class Pixels(nn.Module):
    num_features = 4

    def forward(self, images):
        return images.flatten(1).float()


class Data:
    name, transform_hash, shape, cache = "some", "12", (1, 2, 2), "nowhere"

    def images(self, split):
        return torch.randint(0, 256, (40, 1, 2, 2), generator=torch.Generator().manual_seed(0)).byte().numpy()


def oracle():
    return Mixture(VP(), torch.zeros(1, 1, 2, 2), std=0.5)


class Broken:
    """Gives NaN from a sample on."""

    def __init__(self):
        self.schedule, self.inner = VP(), oracle()

    def __call__(self, x_t, t, cond=None):
        return self.inner(x_t, t) * torch.nan


def test_nan_is_said_and_the_next_measurement_starts_afresh():
    evaluator = Evaluator(FrechetDistance(Pixels(), reset_real=False), "fd", Data())
    jobs = [Job(d, DDIM(steps=2), (1, 2, 2), 8, block=4) for d in (oracle(), Broken(), oracle())]
    first = evaluator.measure(jobs[0])
    with pytest.raises(ValueError, match="samples 0 to 3 hold NaN or Inf"):
        evaluator.measure(jobs[1])
    assert evaluator.measure(jobs[2]) == first


def test_fewer_samples_than_features_is_noted_with_the_remedy():
    """T-F4"""
    evaluator = Evaluator(FrechetDistance(Pixels(), reset_real=False), "fd", Data())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluator.measure(Job(oracle(), DDIM(steps=1), (1, 2, 2), 4))
    (note,) = evaluator.notes
    assert "4 samples for 4 features" in note and "FrechetInfinity" in note and "KernelDistance" in note
    evaluator.measure(Job(oracle(), DDIM(steps=1), (1, 2, 2), 12))
    assert evaluator.notes == []


@pytest.mark.parametrize(
    "sampler",
    [DDIM(steps=7), Heun(steps=6), DPMSolver(steps=5, order=3), Ancestral(steps=4), PredictorCorrector(steps=3)],
    ids=lambda s: type(s).__name__,
)
def test_network_calls_are_known_before_any_is_made(sampler):
    job = Job(oracle(), sampler, (1, 2, 2), 3)
    known = cost.calls(job)
    list(job.run())
    assert known == job.nfe > 0


def test_an_estimate_adds_up_jobs_and_shares_them_out():
    jobs = [Job(oracle(), DDIM(steps=n), (1, 2, 2), 20, block=10) for n in (2, 4)]
    one = cost.estimate(jobs)
    assert one.calls == [2, 4] and one.work == [40, 80] and one.seconds > 0
    assert one.seconds == pytest.approx(12 * one.seconds_a_call)  # 2 blocks of 2 calls, 2 of 4
    assert [cost.spoken(s) for s in (0.2, 5, 200, 1234, 7800)] == [
        *("less than a second", "about 5 s", "about 3 min 20 s", "about 21 min", "about 2 h 10 min"),
    ]


def test_balanced_labels_are_as_many_of_each():
    """T-F13"""
    job = Job(oracle(), DDIM(steps=1), (1, 2, 2), 30, labels="balanced", num_classes=10)
    labels = torch.cat([job.cond(block) for block in job.blocks()])
    assert labels.bincount().tolist() == [3] * 10
    with pytest.raises(ValueError, match="balanced or random"):
        Job(oracle(), DDIM(steps=1), (1, 2, 2), 30, labels="even", num_classes=10)


def test_a_reference_of_jpegs_is_noted_with_every_value(tmp_path):
    """T-F7"""
    for k, image in enumerate(Data().images("train")):
        Image.fromarray(image[0]).save(tmp_path / f"{k}.jpg")
    evaluator = Evaluator(FrechetDistance(Pixels()), "fd", Data(), str(tmp_path))
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            evaluator.measure(Job(oracle(), DDIM(steps=1), (1, 2, 2), 12))
        assert ["JPEG" in note for note in evaluator.notes] == [True]


def test_a_single_image_has_no_standard_error():
    evaluator = Evaluator(BitsPerDim(steps=1), "bits_per_dim", Data())
    values = evaluator.measure_denoiser(oracle(), "cpu", count=1)
    said = {"weights": "raw", "guidance": None, "images_seen": 0, "world_size": 1, "computing": None, "run": "a"}
    assert evaluator.record("bits_per_dim", list(values.values()), None, 1, **said).standard_error is None
    evaluator.measure_denoiser(oracle(), "cpu", count=2)
    assert evaluator.record("bits_per_dim", list(values.values()), None, 2, **said).standard_error > 0


def test_a_likelihood_is_given_the_images_own_labels():
    class Labelled(Data):
        conditional = True

        def labels(self, split):
            return np.arange(40) % 3

    class Told(Mixture):
        def __call__(self, x_t, t, cond=None):
            told.append(cond)
            return super().__call__(x_t, t)

    told: list = []
    denoiser = Told(VP(), torch.zeros(1, 1, 2, 2), std=0.5)
    said = {"weights": "raw", "guidance": None, "images_seen": 0, "world_size": 1, "computing": None, "run": "a"}
    for data, labels in ((Labelled(), "the images' own"), (Data(), None)):
        told.clear()
        evaluator = Evaluator(BitsPerDim(steps=1), "bits_per_dim", data)
        values = evaluator.measure_denoiser(denoiser, "cpu", count=5)
        assert all(c is None if labels is None else c.tolist() == [0, 1, 2, 0, 1] for c in told) and told
        assert evaluator.record("bits_per_dim", list(values.values()), None, 5, **said).labels == labels


@pytest.mark.parametrize(
    ("metric", "shape", "said"),
    [(MMD(), (1, 2, 2), "measures points, but some holds images"), (FrechetDistance(Pixels()), (2,), "holds points")],
)
def test_points_and_images_are_not_mistaken_for_each_other(metric, shape, said):
    data = Data()
    data.shape = shape
    with pytest.raises(ValueError, match=said):
        Evaluator(metric, "x", data)


def record(steps, nfe, values):
    return Record(
        metric="fd_1k",
        values=values,
        num_samples=1000,
        extractor=None,
        reference={"dataset": "some", "split": "train"},
        quantisation="uint8",
        resize="none",
        weights="ema",
        sampler={"name": "DDIM", "steps": steps},
        guidance=None,
        nfe=nfe,
        images_per_second=5.0,
        seeds={},
        labels=None,
        images_seen=1,
        world_size=1,
        computing=None,
        run="a",
    )


def test_a_table_and_a_picture(tmp_path):
    points = [
        tradeoff.Point({"sampler": name, "sampler.steps": str(n)}, [record(n, n, [8.0 / n, 9.0 / n])])
        for name in ("ddim", "heun")
        for n in (10, 20)
    ]
    lines = tradeoff.table(points).splitlines()
    assert lines[0].split() == ["sampler", "steps", "NFE", "fd_1k", "images/s"]
    assert lines[1].split() == ["ddim", "10", "10", "0.85", "±", "0.071", "5.0"] and len(lines) == 5
    assert points[0].family() == "ddim"
    picture = tradeoff.draw(points, 0, tmp_path / "a.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_repeats_say_their_spread_and_minimum():
    r = dataclasses.replace(record(10, 10, [0.9]), values=[0.9, 0.8, 1.0])
    assert "fd_1k 0.9 ± 0.1 over 3 seed blocks (minimum 0.8)" in r.describe()
