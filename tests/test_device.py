"""Everything on a second device, which `tests/device.py` stands in for: nothing is mixed, nothing is made on the wrong
one, results are the CPU's bit for bit, and nothing waits for the device that need not."""

import contextlib
import copy
import functools
import hashlib
import json
import traceback
import types
from collections import Counter
from unittest import mock

import device
import lightning
import numpy as np
import pytest
import torch
from lightning import Callback
from networks import awake
from scripts import TINY, assert_equal, call
from whole import Poison, job

from triptych import generate, run, sampler
from triptych.callback import Evaluate
from triptych.callback.guard import NotFinite
from triptych.dataset.augment import PARAMETERS, augment
from triptych.formulation import DDPM, EDM, NCSN, FlowMatching, ScoreSDE
from triptych.formulation.tally import Tally
from triptych.formulation.times import Levels, LogitNormal, LogNormal, LossSecondMoment, Uniform, UniformLogSNR
from triptych.generate import Job
from triptych.guidance import ClassifierFree
from triptych.metric import (
    MMD,
    VLB,
    BitsPerDim,
    FrechetDistance,
    FrechetInfinity,
    Inception,
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
    SlicedWasserstein,
    fd_extractor,
)
from triptych.model import MLP, DiT, NCSNpp, NCSNv2, UNet
from triptych.model import NCSN as NCSNv1
from triptych.noise import Step, generator
from triptych.schedule import EDM as EDMSchedule
from triptych.schedule import VE, VP, Cosine, Geometric, Learned, LinearBeta, QuadraticBeta, Rectified, SubVP
from triptych.tracking import read_csv

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real device: tests/test_cuda.py"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(autouse=True)
def gpu():
    with device.installed() as there:
        yield there


def same(a, b):
    return torch.equal(a.detach().cpu(), b.detach().cpu())


# The stand-in itself


def test_what_cuda_refuses_is_refused(gpu):
    cpu, there = torch.arange(6.0), torch.arange(6.0, device=gpu)
    index = torch.tensor([1, 2])
    for mixed in (
        lambda: there + cpu,
        lambda: torch.cat([there, cpu]),
        lambda: cpu[index.to(gpu)],
        lambda: there.index_select(0, index),
        lambda: cpu * there[0],  # a number, but one that the CPU cannot see
        lambda: torch.stack([there[0], cpu[0]]),
        lambda: there.add_(cpu),
        lambda: torch.add(cpu, cpu, out=there),
        lambda: torch.nn.functional.linear(there, torch.randn(3, 6)),
        lambda: torch.nn.Linear(6, 3).to(gpu)(cpu),
        lambda: torch.randn(3, device=gpu, generator=torch.Generator()),
        lambda: there.numpy(),
    ):
        with pytest.raises((RuntimeError, TypeError), match="device|numpy"):
            mixed()
    assert (there * cpu[2])[3] == 6 and same(there[index], cpu[index])  # as CUDA allows


def test_its_tensors_behave(gpu):
    there = torch.zeros(2, 3, device=gpu)
    there.view(-1)[2:4] = 1  # views share memory
    assert there.tolist() == [[0, 0, 1], [1, 0, 0]] and there.device == gpu
    weight = torch.nn.Linear(3, 3).to(gpu).weight
    assert isinstance(weight, torch.nn.Parameter) and weight.requires_grad and weight.device == gpu
    assert same(generator("cpu", 1).manual_seed(3).get_state(), torch.Generator(gpu).manual_seed(3).get_state())
    with device.waits() as seen:
        (there + 1).sum() * 2
        there.to("cpu", non_blocking=True)
        there.cpu()
        torch.ones(3).to(gpu, non_blocking=True)
        torch.ones(3).to(gpu)
        float(there.sum())
        there[there[:, 0] > 0]
    assert sum(seen.values()) == 5, seen


# Networks

LABELS = torch.tensor([0, 2, -1, 1])
NETWORKS = {
    "unet": lambda: UNet(1, 1, 8, 8, (1, 2), 1, (4,), num_classes=3, checkpointing=True),
    "adm": lambda: UNet(1, 2, 8, 8, (1, 2), 1, (4,), scale_shift=True, resample="resblock", num_classes=3),
    "ncsnpp": lambda: NCSNpp(1, 1, 8, 8, (1, 2), 1, (4,), embedding="fourier", encoder="residual", taps=(1, 3, 3, 1)),
    "ddpmpp": lambda: NCSNpp(1, 1, 8, 8, (1, 2), 1, (4,), augment_channels=9, num_classes=3),
    "dit": lambda: DiT(1, 1, 8, hidden=16, depth=2, heads=2, num_classes=3),
    "mlp": lambda: MLP(2, 2, 16, 2, num_classes=3),
    "ncsn": lambda: NCSNv1(1, 1, 8, levels=10, channels=4),
    "ncsnv2": lambda: NCSNv2(1, 1, 8, channels=4),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_and_its_gradients(name, gpu):
    torch.manual_seed(0)
    here = awake(NETWORKS[name]())
    there = copy.deepcopy(here).to(gpu)
    found = []
    for network in (here, there):
        place = next(network.parameters()).device
        x = torch.linspace(-1, 1, 4 * 64).view(4, 1, 8, 8) if name != "mlp" else torch.linspace(-1, 1, 8).view(4, 2)
        cond = LABELS.to(place) if getattr(network, "num_classes", 0) else None
        if name == "ddpmpp":
            cond = {"label": cond, "augment": torch.linspace(-1, 1, 36).view(4, 9).to(place)}
        c_noise = torch.tensor([0.0, 1.0, 5.0, 9.0]).to(place)
        x = x.to(place)
        Step(0, (0, 0), device=place).seed_dropout()
        with device.waits() as seen:
            y = network(x, c_noise, cond)
            y.square().mean().backward()
        assert not seen
        found.append({"y": y} | {n: p.grad for n, p in network.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and all(same(found[0][k], found[1][k]) for k in found[0])


# Schedules and times


@pytest.mark.parametrize(
    "schedule",
    [LinearBeta(50), QuadraticBeta(50), Cosine(50), VP(), SubVP(), VE(), Geometric(), EDMSchedule(), Rectified()]
    + [Learned(hidden=3)],
    ids=lambda s: type(s).__name__,
)
def test_a_schedule(schedule, gpu):
    t = torch.linspace(0.1, 0.9, 5)
    moved = copy.deepcopy(schedule).to(gpu)
    for name in ("alpha", "sigma", "log_snr", "drift", "diffusion_sq", "time", "marginal", "slopes"):
        here, there = getattr(schedule, name)(t), getattr(moved, name)(t.to(gpu))
        for a, b in zip(here, there, strict=True) if isinstance(here, tuple) else [(here, there)]:
            assert b.device == gpu and same(a, b), name


TIMES = [
    (Levels(stratified=True), LinearBeta(T=40)),
    (LossSecondMoment(T=5, history=2), Cosine(T=5)),
    (Uniform(), VP()),
    (UniformLogSNR(stratified=True), VP()),
    (LogNormal(), EDMSchedule()),
    (LogitNormal(), Rectified()),
]


@pytest.mark.parametrize(("times", "schedule"), TIMES, ids=lambda v: type(v).__name__)
def test_times_are_drawn_there_without_waiting(times, schedule, gpu):
    moved = copy.deepcopy(times).to(gpu)
    for k in range(4):
        here = times.draw(schedule, 8, Step(0, (k, 0)))
        with device.waits() as seen:
            there = moved.draw(schedule, 8, Step(0, (k, 0), device=gpu))
            moved.update(schedule, there[0], there[0].square())
        times.update(schedule, here[0], here[0].square())
        assert all(b.device == gpu and same(a, b) for a, b in zip(here, there, strict=True))
        assert not seen or k == 0  # tables are copied there in the first step


def test_an_augmented_batch(gpu):
    x, u = torch.linspace(-1, 1, 4 * 64).view(4, 1, 8, 8), torch.rand(4, PARAMETERS, generator=generator("cpu", 0))
    here = augment(x, u, 0.9)
    augment(x.to(gpu), u.to(gpu), 0.9)
    with device.waits() as seen:
        there = augment(x.to(gpu, non_blocking=True), u.to(gpu, non_blocking=True), 0.9)
    assert not seen and all(same(a, b) for a, b in zip(here, there, strict=True))


# Samplers


def denoiser(schedule, outputs=1, **options):
    torch.manual_seed(0)
    network = awake(UNet(1, outputs, 8, 8, (1,), 1, (), num_classes=3))
    make = {LinearBeta: DDPM, Cosine: DDPM, Geometric: NCSN, EDMSchedule: EDM, Rectified: FlowMatching}
    return make.get(type(schedule), ScoreSDE)(network, schedule, **options).eval()


VE_MODEL = functools.cache(lambda: denoiser(VE(0.02, 10.0)))
GEOMETRIC = functools.cache(lambda: denoiser(Geometric(L=6)))
DDPM_MODEL = functools.cache(lambda: denoiser(LinearBeta(T=50), 2, variance="learned", objective="hybrid"))
LEARNED = functools.cache(lambda: denoiser(Learned(hidden=3), weighting="likelihood"))
JOBS = {  # sampler, on which denoiser, more about the job
    "ancestral": (sampler.Ancestral(steps=4), DDPM_MODEL, {}),
    "ancestral_learned": (sampler.Ancestral(steps=4, variance="learned", clip=1.0), DDPM_MODEL, {}),
    "annealed_langevin": (sampler.AnnealedLangevin(), GEOMETRIC, {}),
    "ddim": (sampler.DDIM(steps=4, eta=1.0, denoise="tweedie"), VE_MODEL, {}),
    "ddim_threshold": (sampler.DDIM(steps=4, dynamic_threshold=0.9), VE_MODEL, {}),
    "dpm_solver": (sampler.DPMSolver(steps=4, order=3), DDPM_MODEL, {}),
    "dpm_solver_sde": (sampler.DPMSolver(steps=4, sde=True, grid="karras"), VE_MODEL, {}),
    "euler_maruyama": (sampler.EulerMaruyama(steps=4), DDPM_MODEL, {}),
    "heun": (sampler.Heun(steps=4), VE_MODEL, {}),
    "predictor_corrector": (sampler.PredictorCorrector(steps=3), VE_MODEL, {}),
    "probability_flow": (sampler.ProbabilityFlow(rtol=1e-2, atol=1e-2), VE_MODEL, {}),
    "probability_flow_rk4": (sampler.ProbabilityFlow(steps=2, method="rk4"), DDPM_MODEL, {}),
    "reverse_diffusion": (sampler.ReverseDiffusion(steps=4), DDPM_MODEL, {}),
    "stochastic_heun": (sampler.StochasticHeun(steps=4, S_churn=10.0), VE_MODEL, {}),
    "uni_pc": (sampler.UniPC(steps=5, order=3), DDPM_MODEL, {}),
    "learned": (sampler.EulerMaruyama(steps=3), LEARNED, {}),
    "learned_churn": (sampler.StochasticHeun(steps=3, S_churn=10.0), LEARNED, {}),
    "sdedit": (sampler.DDIM(steps=3, t_start=0.5), DDPM_MODEL, {"init": torch.linspace(-1, 1, 192).view(3, 1, 8, 8)}),
    "guided": (sampler.DDIM(steps=3), DDPM_MODEL, {"labels": "random", "num_classes": 3}),
    "guided_moments": (sampler.Ancestral(steps=3, variance="learned"), DDPM_MODEL, {"labels": 1, "num_classes": 3}),
    "balanced": (sampler.Heun(steps=2), VE_MODEL, {"labels": "balanced", "num_classes": 3}),
}


def test_every_sampler_is_here():
    classes = {c for c in vars(sampler).values() if isinstance(c, type) and issubclass(c, sampler.Sampler)}
    assert classes - {sampler.Sampler} == {type(s) for s, *_ in JOBS.values()}


@pytest.mark.parametrize("name", JOBS)
def test_samples(name, gpu):
    """One wait for the coefficients, one for the labels, one for the samples; a step has none, but an adaptive one."""
    algorithm, model, about = JOBS[name]
    found = []
    for place in (torch.device("cpu"), gpu):
        formulation = copy.deepcopy(model()).to(place)
        guided = ClassifierFree(formulation, 3.0) if name.startswith("guided") else formulation
        job = Job(guided, algorithm, (1, 8, 8), 5, block=3, device=place, **about)
        list(job.trajectory(range(1)))  # tables are copied there
        with device.waits() as seen:
            found.append(job.collect())
    assert same(*found) and found[0].float().std() > 1
    adaptive = seen.pop("copy from the device: ode.py dormand_prince", 0)
    assert adaptive <= job.nfe and (adaptive > 0) == (name == "probability_flow")
    if "learned" not in name:
        assert max(seen.values()) <= 4 and sum(seen.values()) <= 8, seen


# Metrics

METRICS = {
    "fd": FrechetDistance,
    "fd_infinity": functools.partial(FrechetInfinity, points=3),
    "kid": functools.partial(KernelDistance, subset_size=8, subsets=3),
    "precision_recall": PrecisionRecall,
    "inception_score": functools.partial(InceptionScore, splits=2),
}
POINTS = {"sliced_wasserstein": SlicedWasserstein, "mmd": MMD}


def measured(metric, real, fake, place):
    """(values, what was waited for) of images made there."""
    metric = metric.to(place)
    real, fake = real.to(place), fake.to(place)
    metric.update(real[:2], real=True)  # the network follows its first images
    with device.waits() as seen:
        metric.update(real[2:], real=True)
        metric.update(fake, real=False, index=torch.arange(len(fake)))
        value = metric.compute()
    values = value if isinstance(value, dict) else {"": value}
    assert all(v.device.type == place.type for v in values.values())
    return [float(v) for v in values.values()], seen


@pytest.mark.parametrize("name", METRICS | POINTS)
def test_a_metric_waits_a_batch_and_not_a_sample(name, gpu):
    source = generator("cpu", "images")
    shape, waited = ((1, 8, 8), []) if name in METRICS else ((2,), [])
    for count in (20, 40):
        real, fake = torch.rand(count, *shape, generator=source), torch.rand(count, *shape, generator=source) ** 2
        make = lambda: METRICS[name](fd_extractor("digits")) if name in METRICS else POINTS[name]()  # noqa: E731
        if name in METRICS:
            real, fake = (255 * real).to(torch.uint8), (255 * fake).to(torch.uint8)
        here, _ = measured(make(), real, fake, torch.device("cpu"))
        there, seen = measured(make(), real, fake, gpu)
        assert here == pytest.approx(there, rel=1e-9)  # on the CPU another routine adds up products
        waited.append(seen)
    assert waited[0] == waited[1]


@pytest.mark.slow
def test_inception(gpu):
    torch.manual_seed(0)
    network = Inception(pretrained=False)
    images = (255 * torch.rand(2, 3, 32, 32, generator=generator("cpu", 0))).to(torch.uint8)
    here = network(images)
    assert same(here, network.to(gpu)(images.to(gpu)))


POINT_MODEL = functools.cache(lambda: ScoreSDE(awake(MLP(2, 2, 16, 2)), VP()).eval())
SHORT = functools.cache(lambda: denoiser(Cosine(T=8), 2, variance="learned", objective="hybrid"))


@pytest.mark.parametrize(
    ("metric", "model"),
    [
        (BitsPerDim(steps=1), VE_MODEL),
        (BitsPerDim(rtol=0.1, atol=0.1), POINT_MODEL),
        (BitsPerDim(steps=2, divergence="exact"), POINT_MODEL),
        (VLB(), SHORT),
    ],
    ids=["flow", "adaptive", "exact", "vlb"],
)
def test_a_likelihood_waits_a_batch_and_not_an_image(metric, model, gpu):
    data, waited = torch.linspace(0, 255, 4 * 64).to(torch.uint8).view(4, 1, 8, 8), []
    if model is POINT_MODEL:
        data = torch.linspace(-1, 1, 8).view(4, 2)
    for count in (2, 4):
        found = []
        for place in (torch.device("cpu"), gpu):
            formulation, used = copy.deepcopy(model()).to(place), copy.deepcopy(metric).to(place)
            used.score(formulation, data[:1].to(place), None, torch.ones_like)  # tables are copied there
            with device.waits() as seen:
                used.update(formulation, data[:count].to(place))
                found.append(used.compute())
        assert same(*found)
        waited.append(Counter({k: n for k, n in seen.items() if "dormand_prince" not in k}))
    assert waited[0] == waited[1] and sum(waited[0].values()) < 12, waited


# Several processes


def test_the_losses_since_the_last_log_are_gathered_on_the_device(gpu):
    """Also where there are none: at a checkpoint right after a log, such as the one at the end of each run."""
    tally = Tally()
    with device.nccl():
        assert tally.state(gpu).shape[0] == 2 and not tally.state(gpu).any()
        tally.add(torch.ones(3, device=gpu), torch.zeros(3, device=gpu), torch.ones(3, device=gpu))
        assert tally.state(gpu)[:, 2].sum(1).tolist() == [3, 3]
        assert tally.read()[""] == 1
        assert not tally.state(gpu).any()


def test_second_moments_are_gathered_on_the_device(gpu):
    times, schedule = LossSecondMoment(T=5, history=2).to(gpu), Cosine(T=5)
    with device.nccl():
        t, _ = times.draw(schedule, 8, Step(0, (0, 0), device=gpu))
        times.update(schedule, t, t.square())
    assert int(times.counts.sum()) == 16


@pytest.mark.parametrize("name", METRICS | POINTS)
def test_a_metric_is_gathered_on_the_device(name, gpu):
    """From a process without samples, too."""
    source = generator("cpu", "images")
    real, fake = (torch.rand(20, 1, 8, 8, generator=source) ** k for k in (1, 2))
    for count in (20, 0):
        metric = METRICS[name](fd_extractor("digits")) if name in METRICS else POINTS[name]()
        make = (lambda x: (255 * x).to(torch.uint8)) if name in METRICS else (lambda x: x.flatten(1)[:, :2])
        metric = metric.to(gpu)
        metric.update(make(real).to(gpu), real=True)
        metric.freeze_reference()
        if count:
            metric.update(make(fake).to(gpu), real=False, index=torch.arange(count))
        with device.nccl():
            metric.sync()
        states = [getattr(metric, name) for name in metric._defaults]
        tensors = [x for state in states for x in (state if isinstance(state, list) else [state])]
        assert tensors and all(x.device == gpu for x in tensors)


def test_a_likelihood_is_gathered_on_the_device(gpu):
    metric = BitsPerDim(steps=1).to(gpu)
    metric.update(copy.deepcopy(VE_MODEL()).to(gpu), torch.zeros(3, 1, 8, 8, dtype=torch.uint8).to(gpu), index=range(3))
    with device.nccl():
        metric.compute()
    assert metric.count == 3  # each process has measured the same three


# Training, whole

OWN = ("trainer.accelerator=cpu", "trainer.val_check_interval=15")
HERE = [o for o in TINY if o not in OWN] + ["trainer.max_steps=10", "callback.samples.every_images=null"]
HERE += ["callback.samples.sampler.steps=2", "callback.samples.moments=3"]
UNMEASURED = ["callback.evaluate.num_samples=0", "callback.likelihood.num_images=0", "callback.vlb.num_images=0"]
HERE += [
    "trainer.val_check_interval=5",
    "trainer.limit_val_batches=3",
    "callback.power_ema.every_images=80",
    *UNMEASURED,
]
SECOND_MOMENT = "+formulation.times={_target_: triptych.formulation.times.LossSecondMoment, T: 40, history: 1}"
RESIDENT = "+dataset.device_resident=true"
LOOKS = "callback.samples.every_images=80"
CONDITIONAL = ["dataset.conditional=true", "model.num_classes=10", "formulation.label_dropout=0.3"]
TOY = ["dataset=toy", "dataset.points=200"]
RUNS = {
    "ddpm": [
        "schedule.T=40",
        "formulation.objective=vlb",
        SECOND_MOMENT,
        RESIDENT,
        "dataset.flip=true",
        *CONDITIONAL,
        LOOKS,
    ],
    "ncsn": ["formulation=ncsn", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=10"],
    "score_sde": ["formulation=score_sde", "formulation.weighting=likelihood", "callback.guard=null"],
    "learned": ["formulation=score_sde", "schedule=learned", "formulation.weighting=likelihood", *TOY],
    "edm": ["formulation=edm", "dataset.augment=0.5", "dataset.dequantise=true", RESIDENT],
    "flow_matching": ["formulation=flow_matching", *TOY, RESIDENT],
}


class Watch(Callback):
    """What is waited for in three steps without a log, pictures or validation, of the 6th to the 9th."""

    seen: Counter

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 6 and not hasattr(self, "seen"):
            self.waits = device.waits()
            self.seen = self.waits.__enter__()
        elif trainer.global_step == 9:
            self.waits.__exit__(None, None, None)


def fit(folder, *overrides, **place):
    """(what a run has left that no clock shapes, what was waited for)."""
    torch.manual_seed(0)
    watch = Watch()
    tiny = HERE if "dataset=toy" not in overrides else [o for o in HERE if not o.startswith("model.")]
    trainer, formulation, dataset = job(folder, *tiny, *overrides, after=[watch], **place)
    trainer.fit(formulation, datamodule=dataset)
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["topology"].pop("device")
    rows = [
        {k: v for k, v in row.items() if k not in ("time", "train/images_per_second")}
        for row in read_csv(folder / "metrics.csv")
    ]
    files = [p for p in sorted(folder.rglob("*")) if p.suffix in (".png", ".safetensors")]
    digests = {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    return {"checkpoint": checkpoint, "rows": rows, "files": digests}, watch.seen


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_cpus_bit_for_bit_and_its_steps_wait_for_nothing(name, tmp_path):
    there, seen = fit(tmp_path / "gpu", *RUNS[name], **device.place())
    here, _ = fit(tmp_path / "cpu", *RUNS[name])
    assert_equal(here, there, name)
    assert len(here["files"]) >= (6 if LOOKS in RUNS[name] else 4) and here["checkpoint"]["global_step"] == 10
    # Batches from the host: for CUDA, which copies beside the host, `transfer_batch_to_device` says non_blocking
    batches = {"copy to the device: base.py <genexpr>", "copy to the device: base.py on_after_batch_transfer"}
    assert not set(seen) - batches, seen
    assert RESIDENT not in RUNS[name] or "copy to the device: base.py <genexpr>" not in seen


def test_what_is_measured_at_the_end_is_computed_there(gpu, tmp_path):
    """Lightning takes the network to the host before `on_fit_end`."""
    seen, small = set(), ["schedule.T=25", "trainer.max_steps=2", "sampler.steps=2"]
    small += ["callback.evaluate.num_samples=32", "callback.likelihood.num_images=1", "callback.vlb.num_images=1"]
    small += ["+callback.likelihood.metric.steps=1"]
    trainer, formulation, dataset = job(tmp_path, *HERE, *small, **device.place())

    def note(module, inputs, output):
        names = {frame.name for frame in traceback.extract_stack()}
        seen.add((next((n for n in ("look", "measure", "measure_denoiser") if n in names), ""), output.device))

    formulation.model.register_forward_hook(note)
    trainer.fit(formulation, datamodule=dataset)
    assert seen == {(name, gpu) for name in ("", "look", "measure", "measure_denoiser")}
    metric = next(c for c in trainer.callbacks if isinstance(c, Evaluate)).metric
    assert metric.device == gpu and formulation.device.type == "cpu"


@pytest.mark.parametrize("fused", ["true", "false"])
def test_a_bad_step_is_skipped_without_asking_the_device(fused, tmp_path):
    poison, watch = Poison({6, 7}), Watch()
    overrides = [
        f"optimizer.fused={fused}",
        "optimizer.betas=[0.0,0.9]",
        "callback.samples.every_images=null",
        RESIDENT,
    ]
    trainer, formulation, dataset = job(tmp_path, *HERE, *overrides, before=[poison], after=[watch], **device.place())
    trainer.fit(formulation, datamodule=dataset)
    assert poison.moved() == [k not in poison.steps for k in range(9)]
    assert all("test_device.py" in what for what in watch.seen), watch.seen


def test_where_it_goes_wrong_for_good_the_evidence_is_read(tmp_path):
    poison = Poison(range(3, 100))
    overrides = ["callback.guard.every_n_steps=5", "callback.guard.in_a_row=2", RESIDENT]
    trainer, formulation, dataset = job(tmp_path, *HERE, *overrides, before=[poison], **device.place())
    with pytest.raises(NotFinite, match="from step 3 on") as raised:
        trainer.fit(formulation, datamodule=dataset)
    assert raised.value.first == 3


# The scripts


def trainer_there(**options):
    return Trainer(**{k: v for k, v in options.items() if k not in device.place()}, **device.place())


def fabric_there(_):
    precision = types.SimpleNamespace(precision=types.SimpleNamespace(precision="32-true"))
    ranks = {"local_rank": 0, "global_rank": 0, "world_size": 1}
    there = {"device": torch.device(device.NAME, 0), "launch": lambda: None, "autocast": contextlib.nullcontext}
    return types.SimpleNamespace(**ranks, **there, strategy=precision)


Trainer = lightning.Trainer
SHORT_RUN = [*HERE, "schedule.T=25", "sampler.steps=3", "callback.evaluate.num_samples=32", "logger=none"]
SHORT_RUN += ["callback.likelihood.num_images=2", "+callback.likelihood.metric.steps=1", "callback.vlb.num_images=2"]


@pytest.mark.slow
def test_train_resume_sample_and_evaluate(tmp_path):
    """The same weights and samples as on the CPU, numbers to nine digits (covariances are added up by other routines),
    and a run that goes on on the CPU."""
    values = {}
    for place in ("gpu", "cpu"):
        with contextlib.ExitStack() as patches:
            if place == "gpu":
                patches.enter_context(mock.patch.object(lightning, "Trainer", trainer_there))
                patches.enter_context(mock.patch.object(generate, "devices", fabric_there))
            folder = tmp_path / place
            where = ["trainer.accelerator=cpu"]
            of = f"run={folder}/run"
            for script, *arguments in (
                ("train.py", *SHORT_RUN, *where, f"hydra.run.dir={folder}/run"),
                ("train.py", f"resume={folder}/run", "trainer.max_steps=14", *UNMEASURED),
                ("sample.py", of, "num_samples=5", "batch_size=3", "animate=true", f"out={folder}/a", *where),
                ("sample.py", of, "num_samples=2", "weights=raw", f"out={folder}/b", *where),
                ("evaluate.py", of, "sampler=ddim", "sampler.steps=2", "num_samples=20", *where),
                ("evaluate.py", of, "metric=bits_per_dim", "metric.steps=1", "num_samples=3", *where),
            ):
                done = call(script, *arguments)
                assert done.code == 0, done.err
        checkpoint = run.read_checkpoint(folder / "run")
        checkpoint["topology"].pop("device")
        checkpoint.pop("hyper_parameters")
        values[place] = {
            "checkpoint": checkpoint,
            "rows": [
                {k: float(f"{v:.9g}") for k, v in row.items() if k not in ("time", "train/images_per_second")}
                for row in read_csv(folder / "run" / "metrics.csv")
            ],
            "samples": [torch.from_numpy(np.load(folder / name / "samples.npz")["arr_0"]) for name in "ab"],
            "records": sorted(
                (r["metric"], str((r["sampler"] or {}).get("name")), [f"{v:.9g}" for v in r["values"]])
                for r in (json.loads(p.read_text()) for p in (folder / "run" / "evaluations").glob("*.json"))
            ),
        }
    assert_equal(values["cpu"], values["gpu"], "a run")
    assert len(values["gpu"]["records"]) == 5
    done = call("train.py", f"resume={tmp_path}/gpu/run", "trainer.max_steps=15", *UNMEASURED)
    assert done.code == 0, done.err
