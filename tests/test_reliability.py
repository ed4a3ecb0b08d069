"""Whole runs, with tiny networks, to which something happens: asked to stop anywhere, bad numbers, a full disk, ..."""

import contextlib
import json
import os
import signal
import subprocess
import time
from unittest import mock

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from scripts import TINY, assert_equal, call

from triptych import disk, run, status
from triptych.callback import Checkpoint
from triptych.callback.evaluate import Evaluate
from triptych.callback.guard import alarm
from triptych.callback.samples import Samples
from triptych.formulation import DDPM, Formulation
from triptych.generate import Job
from triptych.tracking import read_csv

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SHORT = (
    *TINY,
    "model.dropout=0.1",
    "logger=none",
    "trainer.max_steps=24",
    "trainer.log_every_n_steps=4",
    "trainer.val_check_interval=8",
    "sampler.steps=2",
    "callback.checkpoint.every_images=64",
    "callback.samples.every_images=128",
    "callback.evaluate.every_images=128",
    "callback.evaluate.fast_num_samples=16",
    "callback.evaluate.num_samples=16",
    "callback.likelihood.num_images=0",
    "callback.vlb.num_images=0",
)
LONG = ("trainer.max_steps=60", "trainer.val_check_interval=60", "callback.evaluate.every_images=null")
TIMED = ("time", "train/images_per_second")


def train(folder, *arguments):
    return call("train.py", *SHORT, f"hydra.run.dir={folder}", *arguments)


def rows(folder):
    return [{k: v for k, v in row.items() if k not in TIMED} for row in read_csv(folder / "metrics.csv")]


def assert_same(one, two):
    """Weights, average, optimizer and position bit for bit, and every number but the clock's."""
    a, b = run.read_checkpoint(one), run.read_checkpoint(two)
    for key in ("state_dict", "ema", "optimizer_states", "lr_schedulers"):
        assert_equal(a[key], b[key], key)
    assert a["global_step"] == b["global_step"]
    assert rows(one) == rows(two)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "straight"
    done = train(folder)
    assert done.code == 0, done.err
    return folder


def interrupting(owner, name, nth, number=signal.SIGINT):
    """Patches a function so that its nth call is interrupted by a signal, before it does anything."""
    original, calls = getattr(owner, name), []

    def watched(*arguments, **keywords):
        calls.append(None)
        if len(calls) == nth:
            os.kill(os.getpid(), number)
        return original(*arguments, **keywords)

    return mock.patch.object(owner, name, watched)


@pytest.mark.parametrize(
    ("owner", "name", "nth", "number", "code", "said"),
    [
        (DDPM, "loss", 8, signal.SIGUSR1, 75, "Stopped at step 8; saved"),  # where everything is due
        (DDPM, "loss", 1, signal.SIGTERM, 143, "Stopped at step 1; saved"),
        (Formulation, "validation_step", 1, signal.SIGINT, 130, "Stopped at step 8; saved"),
        (Job, "collect", 2, signal.SIGINT, 130, "Stopped at step 16; saved"),
        (Evaluate, "measure", 2, signal.SIGTERM, 143, "Stopped at step 16; saved"),
        (Evaluate, "measure", 3, signal.SIGINT, 130, "final evaluation; the training is complete and saved"),
    ],
    ids=["step", "first", "validation", "sampling", "measuring", "final"],
)
def test_asked_to_stop_anywhere_a_run_saves_says_how_to_go_on_and_goes_on_exactly(
    tmp_path, straight, owner, name, nth, number, code, said
):
    folder = tmp_path / "run"
    with interrupting(owner, name, nth, number):
        done = train(folder, "resume=auto")
    assert done.code == code, done.err
    assert said in done.out and f"train.py resume={os.path.relpath(folder)}" in done.out, done.out
    known = status.read(folder)
    assert (known.state, known.exit_code) == ("interrupted", code) and known.step == (24 if nth == 3 else known.step)
    again = train(folder, "resume=auto")
    assert again.code == 0, again.err
    assert status.read(folder).state == "finished"
    assert_same(straight, folder)


def test_interrupted_before_the_first_step(tmp_path):
    with interrupting(Samples, "check", 1):
        done = train(tmp_path / "run")
    assert done.code == 130 and "nothing was trained" in done.out and not (tmp_path / "run").exists()


def test_a_finished_run_is_not_trained_again(straight):
    before = (straight / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    auto = train(straight, "resume=auto")
    assert auto.code == 0 and "Nothing is left to train" in auto.out and "Trained" not in auto.out
    fewer = call("train.py", f"resume={straight}", "trainer.max_steps=10")
    assert fewer.code == 2 and "is at step 24" in fewer.err and "trainer.max_steps=48" in fewer.err
    assert len(fewer.err.splitlines()) == 1
    assert (straight / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_a_folder_is_trained_in_by_one_process_at_a_time(tmp_path):
    """Refused while the other one lives; not after it was killed, nor when its number has been given to another."""
    with subprocess.Popen(["sleep", "60"]) as other:
        reporter = status.Reporter(tmp_path)
        reporter.status.pid, reporter.status.step = other.pid, 7
        reporter.write()
        done = call("train.py", *SHORT, "resume=auto", f"hydra.run.dir={tmp_path}")
        assert done.code == 2 and f"is being trained by process {other.pid}, which is at step 7" in done.err
        assert len(done.err.splitlines()) == 1 and status.read(tmp_path).pid == other.pid
        reporter.status.started = "2000-01-01T00:00:00+00:00"
        reporter.write()
        status.refuse_running(tmp_path)
        reporter.status.started = status.Reporter(tmp_path).status.started
        reporter.write()
        other.kill()
        while status.read(tmp_path).state == "running":  # it is a zombie, until we ask how it ended
            time.sleep(0.01)
        status.refuse_running(tmp_path)
        assert status.read(tmp_path).state == "lost"


def not_finite(steps, only_once=False, become=lambda loss: loss * torch.nan):
    """Patches DDPM.loss to be NaN at some optimizer steps; only the first time, as a broken machine might do."""
    original, done = DDPM.loss, set()

    def loss(self, *arguments, **keywords):
        value = original(self, *arguments, **keywords)
        step = self.global_step
        if self.training and step in steps and not (only_once and step in done):
            done.add(step)
            return become(value)
        return value

    return mock.patch.object(DDPM, "loss", loss)


@pytest.mark.parametrize(
    "become",
    [lambda loss: loss * torch.nan, lambda loss: loss + torch.inf],
    ids=["nan", "infinite, its gradient is not"],
)
def test_a_bad_step_is_skipped_and_counted(tmp_path, become):
    with not_finite({9}, become=become):
        done = train(tmp_path / "run")
    assert done.code == 0, done.err
    assert rows(tmp_path / "run")[-1]["train/skipped_steps"] == 1
    assert all(v.isfinite().all() for v in run.read_checkpoint(tmp_path / "run")["state_dict"].values())


def test_bad_steps_in_a_row_go_back_to_the_last_checkpoint_and_training_goes_on_as_if_they_had_not_been(
    tmp_path, straight
):
    folder = tmp_path / "run"
    with not_finite({13, 14, 15}, only_once=True):
        done = train(folder, "callback.guard.in_a_row=3")
    assert done.code == 0, done.err
    assert "from step 13 on" in done.out and "Going back to the checkpoint of step 12" in done.out
    assert_same(straight, folder)


def test_bad_steps_that_come_again_stop_the_run_with_the_evidence(tmp_path):
    folder = tmp_path / "run"
    with not_finite({13, 14, 15}):
        done = train(folder, "callback.guard.in_a_row=3")
    assert done.code == 3 and done.out.count("not finite in 3 steps in a row") == 2
    (path,) = (folder / "guard").iterdir()
    steps = {s["step"]: s for s in json.loads(path.read_text())["steps"]}
    assert steps[13]["gradient_norm"] == "nan" and float(steps[12]["gradient_norm"]) > 0
    (batch,) = steps[13]["micro_batches"]
    assert len(batch["images"]) == len(set(batch["images"])) == len(batch["t"]) == 16 and set(batch["loss"]) == {"nan"}
    known = status.read(folder)
    assert known.state == "failed" and known.exit_code == 3 and "not finite" in known.reason
    assert run.read_checkpoint(folder)["global_step"] == 12


@contextlib.contextmanager
def scaled(scale, growth_interval, found):
    """Patches trainings to run under 16-mixed on the CPU, whose gradient scaler begins at a scale; `found` gets, for
    each optimizer step, the scale it was made with, and whether it changed the weights."""

    def precision(self):
        return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", scale, growth_interval=growth_interval))

    original = torch.amp.GradScaler.step

    def step(self, optimizer, *arguments, **keywords):
        before = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
        now, out = self.get_scale(), original(self, optimizer, *arguments, **keywords)
        after = [p for group in optimizer.param_groups for p in group["params"]]
        found.append((now, any(not torch.equal(x, y) for x, y in zip(before, after, strict=True))))
        return out

    with (
        mock.patch.object(_AcceleratorConnector, "_check_and_init_precision", precision),
        mock.patch.object(torch.amp.GradScaler, "step", step),
    ):
        yield


def test_a_scaler_that_looks_for_its_scale_is_endured_and_goes_on_where_it_was(tmp_path):
    """Its overflows change nothing, are no bad steps that lead back, and its state is the checkpoint's (T-D5)."""
    whole, halves = [], []
    with scaled(2.0**20, 3, whole):
        done = train(tmp_path / "straight", "callback.guard.in_a_row=3")
    assert done.code == 0 and "Going back" not in done.out, done.err
    scales, moved = zip(*whole, strict=True)
    skipped = [not m for m in moved]
    assert len(whole) == 24 and all(skipped[:4]) and any(moved) and any(skipped[moved.index(True) :])
    for k in range(23):  # halved where a step was skipped, doubled after three good ones in a row
        grown = k >= 2 and all(moved[k - 2 : k + 1]) and scales[k - 2] == scales[k]
        assert scales[k + 1] == scales[k] * (0.5 if skipped[k] else 2.0 if grown else 1.0), (k, whole)
    written = rows(tmp_path / "straight")
    assert written[-1]["train/skipped_steps"] == sum(skipped)
    stop = moved.index(True) + 2  # where the growth tracker counts
    with scaled(2.0**20, 3, halves):
        assert train(tmp_path / "halves", f"trainer.max_steps={stop}", "callback.guard.in_a_row=3").code == 0
    with scaled(2.0, 3, halves):  # the new process's own beginning
        done = train(tmp_path / "halves", "resume=auto")
    assert done.code == 0, done.err
    assert halves == whole
    a, b = (run.read_checkpoint(tmp_path / name) for name in ("straight", "halves"))
    last = 0.5 if skipped[-1] else 2.0 if all(moved[-3:]) and scales[-3] == scales[-1] else 1.0
    assert a["MixedPrecision"]["scale"] == scales[-1] * last
    for key in ("state_dict", "ema", "optimizer_states", "lr_schedulers", "MixedPrecision"):
        assert_equal(a[key], b[key], key)


def test_a_scaler_that_finds_no_scale_does_not_hide_bad_numbers(tmp_path):
    """It halves its scale at each of them, without end: 32 in a row are no search."""
    found = []
    with scaled(2.0**10, 1000, found), not_finite(set(range(5, 60))):
        done = train(tmp_path / "run", *LONG)
    assert done.code == 3 and done.out.count("not finite in 32 steps in a row, from step 5 on") == 2, done.out
    assert found[4] == (2.0**10, True) and found[36] == (2.0**-21, False)
    assert run.read_checkpoint(tmp_path / "run")["global_step"] == 4


def test_a_full_disk_is_said_once_and_training_goes_on_with_the_checkpoint_it_has(tmp_path):
    folder, replacing = tmp_path / "run", disk.replacing

    def full(path, *arguments, **keywords):
        with replacing(path, *arguments, **keywords) as file:
            yield file
            if str(path).endswith("last.ckpt"):
                saves.append(path)
                if 2 <= len(saves) <= 3:
                    raise OSError(28, "No space left on device")

    saves = []
    with mock.patch.object(disk, "replacing", contextlib.contextmanager(full)):
        done = train(folder)
    assert done.code == 0 and done.out.count("cannot be written (No space left on device); the run goes on") == 1
    assert run.read_checkpoint(folder)["global_step"] == 24
    saves[:] = [None]  # and at the end
    with mock.patch.object(disk, "replacing", contextlib.contextmanager(full)):
        done = train(folder, "resume=auto", "trainer.max_steps=26", "callback.checkpoint.every_images=null")
    assert done.code == 1 and "could not be written; the newest one is of step 24" in done.out
    assert run.read_checkpoint(folder)["global_step"] == 24


def test_a_collapse_is_said_and_minutes_are_kept(tmp_path, straight):
    """Pictures that are flat are said and logged; a checkpoint is written after so many minutes, here at every step."""
    written, save, few = [], Checkpoint.save, ("trainer.max_steps=6", "callback.checkpoint.every_images=null")

    def watched(self, trainer, *name):
        written.append(trainer.global_step)
        return save(self, trainer, *name)

    with mock.patch.object(Checkpoint, "save", watched):
        with mock.patch.object(Job, "collect", lambda self, *_: torch.full((4, 1, 8, 8), 0.3)):
            done = train(
                tmp_path / "a", *few, "callback.checkpoint.every_minutes=1e-9", "callback.evaluate.num_samples=0"
            )
        assert written == [1, 2, 3, 4, 5, 6]
        assert done.code == 0 and done.out.count("At step 6: samples are flat") == 1, done
        assert rows(tmp_path / "a")[-1]["samples/alarm"] == 1 and rows(straight)[-1]["samples/alarm"] == 0
        written.clear()
        assert train(tmp_path / "b", *few).code == 0 and written == [6]


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (torch.randn(4, 1, 8, 8).clamp(-1, 1), ""),
        (torch.full((4, 1, 8, 8), -0.9), "flat"),
        (torch.randn(1, 1, 8, 8).repeat(4, 1, 1, 1), "all the same"),
        (torch.tensor([[0.5, 0.5]]).repeat(4, 1), "all the same"),  # points in the plane
        (torch.full((4, 1, 8, 8), torch.nan), "not finite"),
    ],
)
def test_what_is_no_picture(samples, said):
    found = alarm(samples)
    assert said in found and bool(found) == bool(said)


def test_a_planted_key_is_nowhere_in_a_finished_run(tmp_path, monkeypatch):
    key = "5ec4e7" + "0f1e2d3c4b5a69788796a5b4c3d2e1f0"[:34]
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    done = call("train.py", *SHORT, "logger=wandb", "trainer.max_steps=4", f"hydra.run.dir={folder}")
    assert done.code == 0 and key not in done.out + done.err
    files = [p for p in folder.rglob("*") if p.is_file()]
    kinds = {p.suffix for p in files}
    assert {".ckpt", ".wandb", ".yaml", ".csv", ".json", ".png"} <= kinds
    assert not [p for p in files if key.encode() in p.read_bytes()]


def test_deterministic_mode_is_on_and_gives_the_same_bits_twice(tmp_path, straight):
    seen, original = [], DDPM.loss

    def loss(self, *arguments, **keywords):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return original(self, *arguments, **keywords)

    try:
        with mock.patch.object(DDPM, "loss", loss):
            done = train(tmp_path / "run", "trainer.deterministic=true")
    finally:
        torch.use_deterministic_algorithms(False)
    assert done.code == 0 and all(seen)
    assert_same(straight, tmp_path / "run")


def test_another_accumulation_takes_the_same_images_at_each_step(tmp_path):
    folder = tmp_path / "run"
    assert train(folder, "trainer.max_steps=10").code == 0
    taken = []
    with mock.patch.object(DDPM, "training_step", _watching(DDPM.training_step, taken)):
        done = call("train.py", f"resume={folder}", "trainer.max_steps=12", "trainer.accumulate_grad_batches=4")
    assert done.code == 0, done.err
    assert "accumulate 1 -> 4" in done.out and done.out.count("not bit for bit") == 1
    assert taken == [10] * 4 + [11] * 4  # four micro-batches of each step, from the first on


def _watching(original, taken):
    def training_step(self, batch, batch_idx):
        taken.append(self.global_step)
        return original(self, batch, batch_idx)

    return training_step
