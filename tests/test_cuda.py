"""On a real GPU: what only it can show. Skipped as a whole where there is none.

`TRIPTYCH_REHEARSAL=cpu` or `gpu` (the stand-in of tests/device.py) runs what can be run of the tests themselves on a
machine without a GPU, to see that they are sound; it says nothing about CUDA.
"""

import contextlib
import copy
import dataclasses
import os

import device
import numpy as np
import pytest
import torch
from networks import awake
from scripts import TINY, assert_equal, call, shell
from whole import Poison, job

from triptych import compilation, run, sampler
from triptych.callback import EMA
from triptych.callback.checkpoint import AtomicIO
from triptych.dataset.order import Order
from triptych.dataset.store import MappedStore, Store
from triptych.formulation import DDPM, NCSN, ScoreSDE
from triptych.metric import (
    FrechetDistance,
    Inception,
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
    SlicedWasserstein,
    fd_extractor,
    log_likelihood,
)
from triptych.model import UNet
from triptych.noise import SampleNoise, Step, generator
from triptych.schedule import VE, Cosine, Geometric, LinearBeta
from triptych.tracking import read_csv

REHEARSAL = os.environ.get("TRIPTYCH_REHEARSAL")
if not torch.cuda.is_available() and not REHEARSAL:
    pytest.skip("there is no GPU here", allow_module_level=True)
if REHEARSAL == device.NAME:
    device.register()
DEVICE = torch.device({None: "cuda:0", "cpu": "cpu", "gpu": "gpu:0"}[REHEARSAL])
pytestmark = [pytest.mark.cuda, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
real_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="cannot be rehearsed without a GPU")


def allow_tf32(allowed):
    """Whether convolutions and products of float32 may be rounded to 11 bits, as the first are by default on a GPU."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


@pytest.fixture(autouse=True)
def exact():
    before = torch.backends.cudnn.allow_tf32
    allow_tf32(False)
    try:
        with device.installed() if DEVICE.type == device.NAME else contextlib.nullcontext():
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before, False


@pytest.fixture
def same_draws(monkeypatch):
    """Every random number of training is drawn on the CPU and brought to the device: generators of the two differ."""
    for name in ("local", "shared"):
        draw = getattr(Step, name)
        on_the_host = lambda step, *key, draw=draw: draw(dataclasses.replace(step, device="cpu"), *key)  # noqa: E731
        monkeypatch.setattr(Step, name, on_the_host)
    for make in (torch.rand, torch.randn):

        def on_the_cpu(*shape, make=make, generator=None, device=None, **options):
            if generator is None or generator.device.type != "cpu":
                return make(*shape, generator=generator, device=device, **options)
            return make(*shape, generator=generator, **options).to(device or "cpu")

        monkeypatch.setattr(torch, make.__name__, on_the_cpu)


def place(where=DEVICE):
    """The Trainer's arguments."""
    if where.type == device.NAME:
        return device.place()
    return {"accelerator": "gpu" if where.type == "cuda" else "cpu", "devices": 1}


@contextlib.contextmanager
def no_waiting():
    """Inside, an operation that makes the host wait for the device is an error."""
    if DEVICE.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    with device.waits() as seen:
        try:
            yield
        finally:
            if DEVICE.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    assert all("on_after_batch_transfer" in what for what in seen), seen  # on CUDA that copy does not wait


QUIET = [o for o in TINY if "accelerator" not in o and "val_check" not in o]
QUIET += ["trainer.val_check_interval=1000", "callback.samples.every_images=null", "model.dropout=0.0"]
QUIET += [f"callback.{c}=0" for c in ("evaluate.num_samples", "likelihood.num_images", "vlb.num_images")]
QUIET += ["callback.monitor.every_n_steps=1", "callback.power_ema.every_images=100000"]
RESIDENT = "+dataset.device_resident=true"
RUNS = {
    "ddpm": [RESIDENT, "dataset.conditional=true", "model.num_classes=10", "formulation.label_dropout=0.3"],
    "ddpm_hybrid": ["formulation.variance=learned", "formulation.objective=hybrid", "sampler.variance=learned"],
    "ncsn": ["formulation=ncsn", "trainer.accumulate_grad_batches=2"],
    "score_sde": ["formulation=score_sde", "formulation.weighting=likelihood"],
    "learned": ["formulation=score_sde", "schedule=learned", "formulation.weighting=likelihood"],
    "edm": ["formulation=edm", "dataset.augment=0.5", RESIDENT],
    "flow_matching": ["formulation=flow_matching", "optimizer=adamw", "optimizer.fused=false"],
}


def fit(folder, *overrides, where=DEVICE, steps=8, before=(), compile=False, resume=None):
    """(trainer, formulation) after so many steps."""
    torch.manual_seed(0)
    trainer, formulation, dataset = job(
        folder, *QUIET, f"trainer.max_steps={steps}", *overrides, before=before, **place(where)
    )
    compilation.compiled(formulation.model, compile, where)
    trainer.fit(formulation, datamodule=dataset, ckpt_path=resume, weights_only=True)
    return trainer, formulation


def curve(folder, name="train/loss"):
    return [row[name] for row in read_csv(folder / "metrics.csv") if name in row]


# Training


@pytest.mark.parametrize("name", RUNS)
def test_training_is_the_cpus(name, same_draws, tmp_path):
    """Loss and gradient norm of each step. Adam makes a step of a gradient's sign, so that rounding grows slowly."""
    fit(tmp_path / "cpu", *RUNS[name], where=torch.device("cpu"))
    fit(tmp_path / "gpu", *RUNS[name])
    for value in ("train/loss", "train/gradient_norm"):
        here, there = curve(tmp_path / "cpu", value), curve(tmp_path / "gpu", value)
        assert len(here) == 8
        assert there[0] == pytest.approx(here[0], rel=1e-4)
        assert there == pytest.approx(here, rel=1e-2)


@real_gpu
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("name", ["ddpm", "ncsn", "edm", "flow_matching"])
def test_half_precision_trains_alike(name, precision, same_draws, tmp_path):
    """The first steps of 16-mixed may be skipped while its scale is found."""
    overrides = [*RUNS[name], "formulation.warmup_steps=5"]
    fit(tmp_path / "full", *overrides, steps=40)
    trainer, formulation = fit(tmp_path / "half", *overrides, f"trainer.precision={precision}", steps=40)
    full, half = curve(tmp_path / "full"), curve(tmp_path / "half")
    assert half[0] == pytest.approx(full[0], rel=0.02)
    assert np.mean(half[-10:]) == pytest.approx(np.mean(full[-10:]), rel=0.15)
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in formulation.parameters())


@real_gpu
@pytest.mark.parametrize("compile", [True, "reduce-overhead"])
def test_compiled_training_is_the_same(compile, same_draws, tmp_path):
    """Also after a resume, where the moments of Adam take the layout of the weights."""
    fit(tmp_path / "plain")
    fit(tmp_path / "compiled", compile=compile)
    assert curve(tmp_path / "compiled") == pytest.approx(curve(tmp_path / "plain"), rel=1e-2)
    fit(tmp_path / "parts", compile=compile, steps=4)
    fit(tmp_path / "parts", compile=compile, resume=tmp_path / "parts" / "checkpoints" / "last.ckpt")
    assert curve(tmp_path / "parts") == pytest.approx(curve(tmp_path / "plain"), rel=1e-2)


@real_gpu
@pytest.mark.parametrize("compile", [True, "reduce-overhead"])
def test_a_compiled_network_samples_the_same(compile):
    """A multistep sampler keeps what the network said of x_0 while it is called again."""
    formulation = denoiser(Cosine(T=50), prediction="x_0").to(DEVICE)
    x = start(DEVICE)
    plain = sampler.DPMSolver(steps=6, order=3)(formulation, x)
    compilation.compiled(formulation.model, compile, DEVICE)
    for _ in range(3):  # graphs are recorded in the second call
        again = sampler.DPMSolver(steps=6, order=3)(formulation, x)
    torch.testing.assert_close(again, plain, atol=1e-3, rtol=1e-3)


class PoisonUnawaited(Poison):
    """Beside that, from one step to another nothing may wait for the device."""

    def __init__(self, steps, quiet):
        super().__init__(steps)
        self.quiet, self.open = quiet, None

    def on_train_batch_start(self, trainer, pl_module, *_):
        super().on_train_batch_start(trainer, pl_module)
        if trainer.global_step == self.quiet[0]:
            self.open = no_waiting()
            self.open.__enter__()
        if trainer.global_step == self.quiet[1]:
            self.close()

    def close(self):
        if self.open is not None:
            self.open, closing = None, self.open
            closing.__exit__(None, None, None)


@pytest.mark.parametrize("name", ["ddpm", "ncsn", "score_sde", "edm", "flow_matching"])
def test_a_step_waits_for_nothing_and_a_bad_one_is_skipped(name, tmp_path):
    overrides = ["optimizer.betas=[0.0,0.9]", "callback.monitor.every_n_steps=50", RESIDENT]
    overrides += [o for o in RUNS[name] if not o.startswith(("+dataset", "trainer", "optimizer"))]
    poison = PoisonUnawaited({6, 7}, (4, 9))  # a row is logged after the 10th
    try:
        trainer, _ = fit(tmp_path, *overrides, steps=12, before=[poison])
    finally:
        poison.close()
    assert poison.moved() == [k not in poison.steps for k in range(11)]
    average = next(c for c in trainer.callbacks if isinstance(c, EMA))
    assert all(bool(v.isfinite().all()) and v.device == DEVICE for v in average._shadow.values())


@real_gpu
def test_peak_memory_is_reported(tmp_path):
    fit(tmp_path, steps=2)
    peak = curve(tmp_path, "train/memory_gib")
    assert peak and 0 < peak[-1] < torch.cuda.get_device_properties(DEVICE).total_memory / 2**30
    print(f"peak {peak[-1]:.3f} GiB")


def test_what_is_measured_at_the_end_is_computed_there(tmp_path):
    """Lightning takes the network to the host before `on_fit_end`."""
    seen = set()
    trainer, formulation, dataset = job(
        tmp_path, *QUIET, "trainer.max_steps=2", "sampler.steps=2", "callback.evaluate.num_samples=32", **place()
    )
    formulation.model.register_forward_hook(lambda module, inputs, output: seen.add(output.device))
    trainer.fit(formulation, datamodule=dataset)
    assert seen == {DEVICE}
    assert curve(tmp_path, "measured_32")


# Checkpoints


def test_a_run_goes_on_bit_for_bit(tmp_path):
    """With deterministic kernels: atomic additions are not, cuDNN's and the tally's among them."""
    overrides = [*RUNS["ddpm"], "model.dropout=0.1", "trainer.deterministic=true"]
    overrides = [o for o in overrides if DEVICE.type == "cuda" or "deterministic" not in o]
    fit(tmp_path / "whole", *overrides)
    fit(tmp_path / "parts", *overrides, steps=4)
    fit(tmp_path / "parts", *overrides, resume=tmp_path / "parts" / "checkpoints" / "last.ckpt")
    whole, parts = (run.read_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    for key in ("state_dict", "ema", "power_ema", "optimizer_states", "guard"):
        assert_equal(whole[key], parts[key], key)
    torch.use_deterministic_algorithms(False)


def test_a_run_of_the_device_goes_on_on_the_cpu(tmp_path):
    fit(tmp_path, steps=4)
    last = tmp_path / "checkpoints" / "last.ckpt"
    stored = run.read_checkpoint(last)
    assert all(v.device.type == "cpu" for v in stored["state_dict"].values())
    fit(tmp_path, steps=6, where=torch.device("cpu"), resume=last)
    assert run.read_checkpoint(last)["global_step"] == 6
    fit(tmp_path, steps=8, resume=last)  # and back
    losses = curve(tmp_path)
    assert len(losses) == 8 and np.isfinite(losses).all()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_checkpoint_holds_what_was_there_when_it_was_asked_for(asynchronous, tmp_path):
    """The copies are behind all that was asked of the device before, and before all that comes after."""
    if not asynchronous and DEVICE.type == device.NAME:
        pytest.skip("the stand-in's tensors cannot be pickled without their copy")
    io, x = AtomicIO(asynchronous), torch.zeros(1 << 20, device=DEVICE)
    laid_out = torch.arange(2 * 3 * 4 * 5.0, device=DEVICE).view(2, 3, 4, 5).to(memory_format=torch.channels_last)
    for k in range(5):
        for _ in range(50):
            x.add_(1)
        io.save_checkpoint({"x": x, "y": laid_out, "global_step": k}, tmp_path / "last.ckpt")
        x.add_(1000)
        x.sub_(1000)
        io.join()
        stored = torch.load(tmp_path / "last.ckpt", weights_only=True, map_location="cpu")
        assert stored["x"].unique().tolist() == [50 * (k + 1)]
        assert torch.equal(stored["y"], laid_out.cpu())


# Data


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("doubled", [False, True])
def test_batches_are_the_same_from_wherever_they_come(flip, doubled, monkeypatch, tmp_path):
    """From the device, from memory, and from the disk; page-locked memory is not used again before it has been read."""
    if not doubled:
        monkeypatch.setattr("triptych.dataset.store.BOTH_ORIENTATIONS", 0)
    images = np.random.default_rng(0).integers(0, 256, (200, 3, 32, 32), dtype=np.uint8)
    mapped = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, images.shape)
    mapped[:] = images
    pinned = DEVICE.type == "cuda"
    stores = [Store(images, flip), Store(images, flip, DEVICE), Store(images, flip, "cpu", pinned)]
    stores.append(MappedStore(mapped, flip, pinned))
    order, there = (Order(0, np.arange(200), 200, flip, where) for where in ("cpu", DEVICE))
    found = []
    for store in stores:
        rows = there if store.device.type != "cpu" else order
        batches = [store.take(rows(k, k + 64)).to(DEVICE, non_blocking=pinned) for k in range(0, 2000, 64)]
        found.append(torch.cat(batches).cpu())
    assert all(torch.equal(found[0], other) for other in found[1:])


# Noise


def test_streams_depend_on_what_they_are_for_alone():
    like = torch.empty(5, 1, 8, 8, device=DEVICE)
    whole, part = SampleNoise(0, range(5), DEVICE), SampleNoise(0, range(2, 4), DEVICE)
    for _ in range(300):  # more than one chunk
        assert torch.equal(whole(like)[2:4], part(like[2:4]))
    step = Step(0, (3, 1), rank=1, world=2, device=DEVICE)
    a, b = (torch.randn(9, generator=step.local("noise"), device=DEVICE) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, torch.randn(9, generator=step.local("times"), device=DEVICE))
    masks = []
    for index in ((3, 1), (3, 1), (3, 2)):
        Step(0, index, device=DEVICE).seed_dropout()
        masks.append(torch.nn.functional.dropout(torch.ones(1000, device=DEVICE), 0.5))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


# Sampling


def denoiser(schedule, outputs=1, **options):
    torch.manual_seed(0)
    network = awake(UNet(1, outputs, 8, 16, (1, 2), 1, (4,), num_classes=3), 0.02)
    make = {LinearBeta: DDPM, Cosine: DDPM, Geometric: NCSN}.get(type(schedule), ScoreSDE)
    return make(network, schedule, **options).eval()


def start(where, scale=1.0):
    return (scale * torch.randn(4, 1, 8, 8, generator=generator("cpu", "start"))).to(where)


SAMPLERS = {
    "ancestral": (sampler.Ancestral(steps=10), LinearBeta()),
    "ancestral_large": (sampler.Ancestral(steps=10, variance="fixed_large", clip=1.0), LinearBeta()),
    "annealed_langevin": (sampler.AnnealedLangevin(steps_per_level=2), Geometric(L=5)),
    "ddim": (sampler.DDIM(steps=10, eta=0.5), LinearBeta()),
    "dpm_solver": (sampler.DPMSolver(steps=10, order=3), LinearBeta()),
    "dpm_solver_sde": (sampler.DPMSolver(steps=10, sde=True), VE(0.02, 10.0)),
    "euler_maruyama": (sampler.EulerMaruyama(steps=10), LinearBeta()),
    "heun": (sampler.Heun(steps=10), VE(0.02, 10.0)),
    "predictor_corrector": (sampler.PredictorCorrector(steps=5), VE(0.02, 10.0)),
    "probability_flow": (sampler.ProbabilityFlow(rtol=1e-3, atol=1e-3), VE(0.02, 10.0)),
    "probability_flow_heun": (sampler.ProbabilityFlow(steps=10, method="heun"), LinearBeta()),
    "reverse_diffusion": (sampler.ReverseDiffusion(steps=10), LinearBeta()),
    "stochastic_heun": (sampler.StochasticHeun(steps=10, S_churn=10.0), VE(0.02, 10.0)),
    "uni_pc": (sampler.UniPC(steps=10, order=3), LinearBeta()),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_are_the_cpus_given_the_same_noise(name):
    algorithm, schedule = SAMPLERS[name]
    found, label = [], torch.tensor([0, 1, -1, 2])
    for where in (torch.device("cpu"), DEVICE):
        formulation = denoiser(schedule).to(where)
        source = SampleNoise(0, range(4))
        stream = lambda like, source=source, where=where: source(like.cpu()).to(where)  # noqa: E731
        x = start(where, schedule.prior_std)
        found.append(algorithm(formulation, x, label.to(where), stream).cpu())
    assert bool(found[0].isfinite().all())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3 * float(found[0].std()))


# Measuring

METRICS = {
    "fd": FrechetDistance,
    "kid": lambda e: KernelDistance(e, subset_size=50, subsets=5),
    "precision_recall": PrecisionRecall,
    "inception_score": lambda e: InceptionScore(e, splits=2),
    "sliced_wasserstein": lambda e: SlicedWasserstein(),
}


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_the_cpus(name):
    source = generator("cpu", "images")
    real, fake = torch.rand(200, 1, 8, 8, generator=source), torch.rand(200, 1, 8, 8, generator=source) ** 1.5
    real, fake = ((255 * x).to(torch.uint8) for x in (real, fake))
    if name == "sliced_wasserstein":
        real, fake = (x.flatten(1)[:, :2].double() / 255 for x in (real, fake))
    values = []
    for where in (torch.device("cpu"), DEVICE):
        metric = METRICS[name](fd_extractor("digits")).to(where)
        for x, y in zip(real.to(where).split(70), fake.to(where).split(70), strict=True):
            metric.update(x, real=True)
            metric.update(y, real=False)
        value = metric.compute()
        values.append([float(v) for v in (value.values() if isinstance(value, dict) else [value])])
    assert values[1] == pytest.approx(values[0], rel=1e-3, abs=0.02 if name == "precision_recall" else 1e-6)


def test_inception_is_the_cpus():
    """In full float32, also where TF32 is allowed: 11 bits of a convolution would move an FID."""
    torch.manual_seed(0)
    metric = FrechetDistance(Inception(pretrained=False))
    images = (255 * torch.rand(4, 3, 32, 32, generator=generator("cpu", 0))).to(torch.uint8)
    here = metric.extractor(images)
    allow_tf32(True)
    there = metric.to(DEVICE).extractor(images.to(DEVICE))
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-5 * float(here.abs().max()))


def test_a_likelihood_is_the_cpus():
    x_0, values = torch.rand(3, 1, 8, 8, generator=generator("cpu", 0)) * 2 - 1, []
    for where in (torch.device("cpu"), DEVICE):
        probe = lambda like, where=where: torch.ones_like(like)  # noqa: E731
        formulation = denoiser(LinearBeta()).to(where)
        values.append(log_likelihood(formulation, x_0.to(where), noise=probe, steps=4).tolist())
    assert values[1] == pytest.approx(values[0], rel=1e-3)


# The scripts


@real_gpu
def test_the_scripts(tmp_path):
    there = "trainer.accelerator=gpu"
    tiny = [o for o in TINY if "accelerator" not in o]
    for script, *arguments in (
        ("train.py", *tiny, there, "logger=none", "trainer.max_steps=20", f"hydra.run.dir={tmp_path}/run"),
        ("train.py", f"resume={tmp_path}/run", "trainer.max_steps=30"),
        ("sample.py", f"run={tmp_path}/run", there, "num_samples=9", "batch_size=4", f"out={tmp_path}/samples"),
        ("sample.py", f"run={tmp_path}/run", there, "num_samples=9", "batch_size=4", f"out={tmp_path}/again"),
        ("evaluate.py", f"run={tmp_path}/run", there, "num_samples=40", "sampler=ddim", "sampler.steps=3"),
        ("train.py", *tiny, there, "logger=none", "find_batch=true", f"hydra.run.dir={tmp_path}/none"),
    ):
        done = call(script, *arguments)
        assert done.code == 0, done.err
    assert "images a device fit" in done.out
    a, b = (np.load(tmp_path / name / "samples.npz")["arr_0"] for name in ("samples", "again"))
    assert a.shape == (9, 8, 8, 1) and np.abs(a.astype(int) - b).max() <= 1  # kernels may be chosen anew


@pytest.mark.skipif(DEVICE.type == "cuda" and torch.cuda.device_count() < 2, reason="there is one GPU")
def test_two_devices(tmp_path):
    """By NCCL: a log, a checkpoint right after it, evaluation, and what a resumed run needs."""
    accelerator = "gpu" if DEVICE.type == "cuda" else "cpu"
    there = [f"trainer.accelerator={accelerator}", "trainer.devices=2", "trainer.strategy=ddp"]
    tiny = [o for o in TINY if "accelerator" not in o]
    for arguments in (
        [*tiny, *there, "logger=none", "trainer.max_steps=10", f"hydra.run.dir={tmp_path}/run"],
        [f"resume={tmp_path}/run", "trainer.max_steps=14"],
    ):
        done = shell("train.py", *arguments)
        assert done.code == 0, done.err
    checkpoint = run.read_checkpoint(tmp_path / "run")
    assert checkpoint["global_step"] == 14 and checkpoint["topology"]["processes"] == 2
    assert copy.copy(checkpoint["monitor"]["losses"]).shape[0] == 2
