"""The main job end to end, with tiny networks: what a run leaves, and that it goes on exactly."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback

import numpy as np
import pytest
import torch
from scripts import ROOT, TINY, call, shell
from whole import job

from triptych import posthoc, run
from triptych.tracking import read_csv

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # what Lightning and W&B say in passing; ours are errors elsewhere
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A DDPM run of 30 steps."""
    folder = tmp_path_factory.mktemp("run") / "ddpm"
    done = call("train.py", *TINY, "trainer.max_steps=30", "sampler.steps=5", f"hydra.run.dir={folder}")
    assert done.code == 0, done.err
    return folder


def test_a_run_leaves_everything(folder):
    assert {"config.yaml", "overrides.yaml", "metrics.csv"} <= {p.name for p in folder.iterdir()}
    rows = read_csv(folder / "metrics.csv")
    names = {name for row in rows for name in row}
    assert {
        "step",
        "images_seen",
        "train/loss",
        "val/loss",
        "val/eps_mse",
        "train/learning_rate",
        "train/gradient_norm",
        "train/images_per_second",
        "fd_digits_32",
        "bits_per_dim_4",
    } <= names
    assert any(name.startswith("train/loss/log_snr_") for name in names)
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps)) and all(row["images_seen"] == 16 * row["step"] for row in rows)
    assert list((folder / "samples").glob("*.png")) and list((folder / "samples" / "strip").glob("*.png"))
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 30 and checkpoint["ema"]["shadow"]
    assert checkpoint["hyper_parameters"]["formulation"]["_target_"] == "triptych.formulation.DDPM"


def test_the_record_is_complete(folder):
    (path,) = (folder / "evaluations").glob("fd_digits_32-*.json")
    record = json.loads(path.read_text())
    assert record["nfe"] == 5 and record["num_samples"] == 32 and record["images_seen"] == 480
    assert record["computing"] == {"precision": "32-true", "compile": False, "device": "cpu", "batch_size": 16}
    assert len(record["extractor"]["sha256"]) == 64
    assert record["reference"]["dataset"] == "digits" and record["sampler"]["name"] == "Ancestral"


def test_wandb_can_be_read_back(folder):
    (offline,) = (folder / "wandb").glob("offline-run-*")
    leet = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(offline)]
    shown = subprocess.run(leet, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "images_seen" in shown and "train/loss" in shown and "fd_digits_32" in shown
    assert "samples" in shown and "denoising" in shown


def test_load_gives_the_average_or_the_raw_weights(folder):
    average, raw = run.load(folder), run.load(folder, weights="raw")
    checkpoint = run.read_checkpoint(folder)
    name, value = next(iter(checkpoint["ema"]["shadow"].items()))
    assert torch.equal(average.state_dict()[name], value)
    assert torch.equal(raw.state_dict()[name], checkpoint["state_dict"][name])
    assert not average.training


def test_another_average_is_rebuilt_from_snapshots(folder, tmp_path):
    rebuilt, stored = run.load(folder, weights="ema=0.10"), run.read_checkpoint(folder)["power_ema"]
    kept = (stored["at"] / stored["images_seen"]) ** (1 + posthoc.exponent(0.1))  # of steps not yet averaged
    for name, raw in run.load(folder, weights="raw").model.named_parameters():
        tracked = kept * stored["averages"]["0.1"][f"model.{name}"] + (1 - kept) * raw
        torch.testing.assert_close(rebuilt.model.get_parameter(name), tracked, atol=1e-6, rtol=1e-3)  # float16
    done = call("sample.py", f"run={folder}", "num_samples=4", "ema=0.15", f"out={tmp_path / 'out'}", "trainer=cpu")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "out" / "record.json").read_text())["weights"] == "ema(sigma_rel=0.15, at 480 images)"
    mine, kept = tmp_path / "mine", tmp_path / "kept"
    shutil.copytree(folder, mine)
    grid = ("-m", "ema=0.05,0.15,0.9", "num_samples=4", f"save_samples={kept}", "log=false")
    done = call("evaluate.py", f"run={mine}", "trainer=cpu", *grid)
    assert done.code == 0 and "Left out: ema 0.9: " in done.out and "2 settings on one checkpoint" in done.out, done.err
    samples = [np.load(p)["arr_0"] for p in (kept / "ema_0.05.npz", kept / "ema_0.15.npz")]
    with np.load(tmp_path / "out" / "samples.npz") as file:
        assert (samples[1] == file["arr_0"]).all() and (samples[0] != samples[1]).any()
    records = [json.loads(p.read_text()) for p in (mine / "evaluations").glob("fd_digits_4-*.json")]
    assert {r["weights"] for r in records} == {f"ema(sigma_rel={length}, at 480 images)" for length in (0.05, 0.15)}


def test_no_snapshots_no_other_average(folder, tmp_path):
    shutil.copytree(folder / "checkpoints", tmp_path / "run" / "checkpoints")
    done = call("sample.py", f"run={tmp_path / 'run'}", "ema=0.10", "sampler=ddim", f"out={tmp_path / 'out'}")
    assert done.code == 2 and "There are no snapshots" in done.err and not (tmp_path / "out").exists()


def test_sampling_depends_on_the_seed_and_hardly_on_the_batch(folder, tmp_path):
    arrays = {}
    for name, extra in {"a": [], "b": ["batch_size=5"], "c": ["seed=1"]}.items():
        done = call("sample.py", f"run={folder}", "num_samples=12", f"out={tmp_path / name}", "trainer=cpu", *extra)
        assert done.code == 0, done.err
        with np.load(tmp_path / name / "samples.npz") as file:
            arrays[name] = file["arr_0"].astype(int)
    assert arrays["a"].shape == (12, 8, 8, 1)
    assert np.abs(arrays["a"] - arrays["b"]).max() <= 1
    assert np.abs(arrays["a"] - arrays["c"]).max() > 10
    record = json.loads((tmp_path / "a" / "record.json").read_text())
    assert record["nfe"] == 5 and record["images_per_second"] > 0


def test_a_samplers_key_alone_overrides_the_runs_own_and_a_checkpoint_is_a_run(folder, tmp_path):
    last, out = folder / "checkpoints" / "last.ckpt", tmp_path / "out"
    done = call("sample.py", f"run={last}", "num_samples=2", "sampler.steps=7", "animate=true", f"out={out}")
    assert done.code == 0, done.err
    record = json.loads((out / "record.json").read_text())
    assert record["nfe"] == 7 and record["sampler"]["name"] == "Ancestral"
    assert {"samples.npz", "grid.png", "trajectory.gif", "record.json"} <= {p.name for p in out.iterdir()}
    again = call("sample.py", f"run={last}", "num_samples=2", f"out={out}")
    assert again.code == 2 and "already holds" in again.err


def test_evaluate_measures_as_training_did(folder):
    done = call("evaluate.py", f"run={folder}", "num_samples=32", "batch_size=16", "trainer=cpu")
    assert done.code == 0, done.err
    values = [json.loads(p.read_text())["value"] for p in (folder / "evaluations").glob("fd_digits_32-*.json")]
    assert max(values) - min(values) <= 1e-6 * max(values)


def test_half_precision_is_another_protocol(folder, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    before = set((mine / "evaluations").iterdir())
    arguments = ("num_samples=32", "batch_size=16", "trainer=cpu", "log=false", "trainer.precision=bf16-mixed")
    assert call("evaluate.py", f"run={mine}", *arguments).code == 0
    (path,) = set((mine / "evaluations").iterdir()) - before
    assert json.loads(path.read_text())["computing"]["precision"] == "bf16-mixed"


def test_each_cell_of_a_grid_has_its_own_weights_in_half_precision(folder, tmp_path):
    """Autocast keeps its halved copies of the weights, which know nothing of new ones put in their place."""
    values = {}
    for weights in (("-m", "weights=ema,raw"), ("-m", "weights=raw,ema"), ("weights=raw",)):
        mine = tmp_path / weights[-1]
        shutil.copytree(folder, mine)
        shutil.rmtree(mine / "evaluations")
        arguments = ("num_samples=32", "batch_size=16", "trainer=cpu", "log=false", "trainer.precision=bf16-mixed")
        assert call("evaluate.py", f"run={mine}", "sampler=ddim", "sampler.steps=3", *arguments, *weights).code == 0
        for path in (mine / "evaluations").glob("*.json"):
            record = json.loads(path.read_text())
            values.setdefault(record["weights"][:3], []).append(record["value"])
    assert len(values["raw"]) == 3 and len(values["ema"]) == 2
    assert len(set(values["raw"])) == len(set(values["ema"])) == 1 and values["raw"][0] != values["ema"][0]


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_a_number_is_computed_as_its_record_says(precision, tmp_path):
    """Samples in the precision of training, likelihoods in float32."""
    small = ("callback.samples.every_images=null", "schedule.T=30", "trainer.max_steps=2")
    trainer, formulation, dataset = job(tmp_path, *TINY, *small, f"trainer.precision={precision}")
    seen = set()

    def note(module, inputs, output):
        asking = next((name for name in ("flow_likelihood", "variational_bound", "trajectory") if name in stack()), "")
        seen.add((asking, output.dtype))

    formulation.model.input.register_forward_hook(note)
    trainer.fit(formulation, datamodule=dataset)
    half = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    assert {("trajectory", half), ("flow_likelihood", torch.float32), ("variational_bound", torch.float32)} <= seen
    assert {dtype for asking, dtype in seen if asking in ("", "trajectory")} == {half}
    records = [json.loads(path.read_text()) for path in (tmp_path / "evaluations").glob("*.json")]
    assert {(r["metric"], r["computing"]["precision"]) for r in records} == {
        ("measured_32", precision), ("bits_per_dim_4", "32-true"), ("vlb_2", "32-true")
    }  # fmt: skip


def stack():
    return {frame.name for frame in traceback.extract_stack()}


def test_another_block_size_is_the_same_distance(folder, tmp_path):
    """Rounding may differ by a grey level where it does at all."""
    values = []
    for size in (16, 5):
        run_of_its_own = tmp_path / str(size)
        shutil.copytree(folder, run_of_its_own)
        shutil.rmtree(run_of_its_own / "evaluations")
        arguments = ("num_samples=32", f"batch_size={size}", "trainer=cpu", "log=false")
        assert call("evaluate.py", f"run={run_of_its_own}", *arguments).code == 0
        (path,) = (run_of_its_own / "evaluations").glob("fd_digits_32-*.json")
        values.append(json.loads(path.read_text())["value"])
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_a_grid_of_samplers_on_one_checkpoint(folder, tmp_path):
    """Its numbers go to the run's own W&B run, as another segment of it."""
    mine = tmp_path / "grid"
    shutil.copytree(folder, mine)
    for path in (mine / "evaluations").iterdir():
        path.unlink()
    for segment in (mine / "wandb").glob("offline-run-*"):  # the training's, and those of other tests
        shutil.rmtree(segment)
    grid = ("-m", "sampler=ddim,heun,annealed_langevin", "sampler.steps=2,3", "num_samples=8", "repeats=2")
    done = call("evaluate.py", f"run={mine}", "trainer=cpu", f"save_samples={tmp_path / 'kept'}", *grid)
    assert done.code == 0, done.err
    again = call("evaluate.py", f"samples={tmp_path / 'kept' / 'heun_steps_3.npz'}", "dataset=digits", "trainer=cpu")
    (path,) = (tmp_path / "kept" / "evaluations").glob("fd_digits_16-*.json")
    known = json.loads(path.read_text())
    assert again.code == 0 and (known["sampler"]["name"], known["nfe"], known["seeds"]["last"]) == ("Heun", 5, 15)
    records = [json.loads(p.read_text()) for p in (mine / "evaluations").glob("*.json")]
    assert {(r["sampler"]["name"], r["sampler"]["steps"], r["nfe"]) for r in records} == {
        *(("DDIM", 2, 2), ("DDIM", 3, 3)),
        *(("Heun", 2, 3), ("Heun", 3, 5)),  # 2 N - 1 calls
    }
    assert all(len(r["values"]) == 2 and r["seeds"]["blocks"] == 2 for r in records)
    assert "Left out: annealed_langevin, steps 2; annealed_langevin, steps 3: " in done.out
    assert "4 samplers on one checkpoint, from the same noise, 2 x 8 samples of 2 to 5 network calls" in done.out
    table = [line.split() for line in done.out.splitlines() if line.startswith(("ddim ", "heun "))]
    assert [row[:3] for row in table] == [
        ["ddim", "2", "2"],
        ["ddim", "3", "3"],
        ["heun", "2", "3"],
        ["heun", "3", "5"],
    ]
    (picture,) = (mine / "evaluations").glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    logged = [row for row in wandb_history(mine) if any(key.startswith("evaluation/") for key in row)]
    assert len(logged) == 1 and logged[0]["images_seen"] == 480
    value = next(r["value"] for r in records if r["nfe"] == 5)
    assert logged[0]["evaluation/fd_digits_8/Heun steps 3"] == pytest.approx(value)
    with np.load(tmp_path / "kept" / "ddim_steps_2.npz") as file:
        assert file["arr_0"].shape == (16, 8, 8, 1)  # both seed blocks
    again = call("evaluate.py", f"run={mine}", "trainer=cpu", *grid)
    assert again.code == 0 and "has these numbers already" in again.out
    paths = sorted((mine / "evaluations").glob("*.json"), key=lambda p: json.loads(p.read_text())["nfe"])
    unlike = paths[0], paths[-1]  # DDIM of 2 calls, Heun of 5
    told = call("evaluate.py", f"explain={unlike[0]},{unlike[1]}")
    assert told.code == 0 and "sampler." in told.out and "nfe" in told.out


def test_wandb_failing_loses_no_record(folder, tmp_path, monkeypatch):
    import wandb

    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(OSError("the disk is full")))
    done = call("evaluate.py", f"run={mine}", "num_samples=8", "trainer=cpu")
    assert done.code == 0 and "W&B       failed (the disk is full); the records are written" in done.out
    assert list((mine / "evaluations").glob("fd_digits_8-*.json"))


def test_anybodys_images_are_scored_without_a_run(folder, tmp_path):
    out = tmp_path / "out"
    assert call("sample.py", f"run={folder}", "num_samples=32", f"out={out}", "trainer=cpu").code == 0
    done = call(
        "evaluate.py", f"samples={out / 'samples.npz'}", "dataset=digits", f"save_reference={tmp_path / 'ref.npz'}"
    )
    assert done.code == 0, done.err
    (path,) = (out / "evaluations").glob("fd_digits_32-*.json")
    record = json.loads(path.read_text())
    (path,) = (folder / "evaluations").glob("fd_digits_32-*.json")
    known = json.loads(path.read_text())  # the same samples, measured when training ended
    assert record["value"] == pytest.approx(known["value"], rel=1e-6) and record["sampler"] == known["sampler"]
    from_file = call(
        "evaluate.py", f"samples={out / 'samples.npz'}", "metric=fd_digits", f"reference={tmp_path / 'ref.npz'}"
    )
    assert from_file.code == 0 and f"{record['value']:.4g}" in from_file.out
    for arguments, said in {
        ("dataset=fashion_mnist", f"dataset.root={tmp_path}"): "dataset.root",
        (): "dataset=cifar10, or reference=",
        ("dataset=digits", "metric=bits_per_dim"): "needs a model",
        ("dataset=digits", f"run={folder}"): "not both",
    }.items():
        refused = call("evaluate.py", f"samples={out / 'samples.npz'}", *arguments)
        assert refused.code == 2 and said in refused.err, refused


def straight(tmp_path, name, steps, *arguments, logger="none"):
    folder = tmp_path / name
    steps, logger = f"trainer.max_steps={steps}", f"logger={logger}"
    done = call("train.py", *TINY, steps, logger, f"hydra.run.dir={folder}", *arguments)
    assert done.code == 0, done.err
    return folder


@pytest.mark.parametrize("formulation", ["ddpm", "ncsn", "score_sde", "edm", "flow_matching"])
def test_thirty_and_thirty_steps_are_sixty(tmp_path, formulation):
    measured_at_the_end = [
        f"callback.{c}=0" for c in ("evaluate.num_samples", "likelihood.num_images", "vlb.num_images")
    ]
    arguments = (f"formulation={formulation}", "model.dropout=0.1", *measured_at_the_end)
    sixty = straight(tmp_path, "sixty", 60, *arguments)
    thirty = straight(tmp_path, "thirty", 30, *arguments, logger="wandb" if formulation == "ddpm" else "none")
    done = call("train.py", f"resume={thirty}", "trainer.max_steps=60")
    assert done.code == 0, done.err
    one, two = run.read_checkpoint(sixty), run.read_checkpoint(thirty)
    assert one["global_step"] == two["global_step"] == 60
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())
    assert all(torch.equal(value, two["ema"]["shadow"][name]) for name, value in one["ema"]["shadow"].items())
    averages = [checkpoint["power_ema"]["averages"] for checkpoint in (one, two)]
    assert all(torch.equal(v, averages[1][k][name]) for k, a in averages[0].items() for name, v in a.items())
    timed = ("time", "train/images_per_second")
    rows = [
        [{k: v for k, v in row.items() if k not in timed} for row in read_csv(folder / "metrics.csv")]
        for folder in (sixty, thirty)
    ]
    (half,) = (row for row in rows[1] if row["step"] == 30)
    assert half.pop("samples/alarm") == 0  # where a run ends it draws pictures, which the other one did not there
    assert rows[0] == rows[1] and rows[0][-1]["samples/alarm"] == 0
    if formulation == "ddpm":  # and one run to W&B, in two segments, on the axis of images
        segments = list((thirty / "wandb").glob("offline-run-*"))
        assert len(segments) == 2 and len({path.name.rpartition("-")[2] for path in segments}) == 1
        seen = [row["images_seen"] for row in wandb_history(thirty) if "train/loss" in row]
        assert seen == [row["images_seen"] for row in rows[0] if "train/loss" in row] == sorted(set(seen))


def test_looking_more_often_does_not_change_training(tmp_path):
    often = ("trainer.val_check_interval=5", "callback.samples.every_images=64", "callback.evaluate.every_images=128")
    seldom = straight(tmp_path, "seldom", 20, "callback.evaluate.num_samples=0")
    looked = straight(tmp_path, "looked", 20, "callback.evaluate.num_samples=0", *often)
    one, two = run.read_checkpoint(seldom), run.read_checkpoint(looked)
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())


def test_points_in_the_plane(tmp_path):
    folder = tmp_path / "toy"
    done = call(
        "train.py",
        "dataset=toy",
        "trainer.max_steps=20",
        "logger=none",
        "callback.evaluate.num_samples=50",
        "callback.evaluate.weights=both",
        "sampler.steps=5",
        f"hydra.run.dir={folder}",
    )
    assert done.code == 0, done.err
    numbers = [json.loads(p.read_text()) for p in (folder / "evaluations").glob("sliced_wasserstein_50-*.json")]
    measured = {r["weights"]: r for r in numbers}
    average, raw = next(w for w in measured if w != "raw"), "raw"
    assert measured.keys() == {average, raw} and average.startswith("ema(half_life=")
    (row,) = [row for row in read_csv(folder / "metrics.csv") if "sliced_wasserstein_50/raw" in row]
    assert row["sliced_wasserstein_50"] == measured[average]["value"] != measured[raw]["value"]
    assert row["sliced_wasserstein_50/raw"] == measured[raw]["value"]
    done = call("evaluate.py", f"run={folder}", "-m", "weights=ema,raw", "num_samples=50", "trainer=cpu")
    assert done.code == 0, done.err
    again = [json.loads(p.read_text()) for p in (folder / "evaluations").glob("sliced_wasserstein_50-*.json")]
    assert all(r["value"] == pytest.approx(measured[r["weights"]]["value"], rel=1e-6) for r in again)
    assert len({r["created"] for r in again} - {r["created"] for r in measured.values()}) >= 1
    out = tmp_path / "out"
    assert call("sample.py", f"run={folder}", "num_samples=30", f"out={out}").code == 0
    with np.load(out / "samples.npz") as file:
        assert file["arr_0"].shape == (30, 2) and file["arr_0"].dtype == np.float32


def test_an_interrupt_saves_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "interrupted"
    arguments = [*TINY, "trainer.max_steps=100000", "logger=none", f"hydra.run.dir={folder}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (folder / "metrics.csv").exists():
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"resume={os.path.relpath(folder)}" in out or str(folder) in out
    assert run.read_checkpoint(folder)["global_step"] > 0


def wandb_history(folder):
    """The rows that W&B holds of a run, of every segment."""
    rows = []
    for segment in sorted((folder / "wandb").glob("offline-run-*")):
        leet = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(segment)]
        shown = subprocess.run(leet, capture_output=True, text=True, timeout=120, check=True).stdout
        found = (json.loads(line) for line in shown.splitlines())
        rows += [entry["history"]["item"] for entry in found if "history" in entry]
    return rows


TROUBLE = """
import runpy, sys, time
from wandb.sdk.wandb_run import Run

def log(run, data, *rest, take=Run.log, **more):
    time.sleep(0.2)
    if "denoising" in data:
        raise ConnectionError("the server says no")
    take(run, data, *rest, **more)

Run.log = log
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_two_processes_measure_what_one_does(tmp_path):
    """The distance in training and at its end, sharded over ranks, is logged to W&B once, as is the grid: T-F10.

    W&B is slow on rank 0, and fails for one picture: nobody hangs, and nothing else is lost.
    """
    folder = tmp_path / "ddp"
    ddp = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_steps=20", "sampler.steps=5")
    during = ("callback.evaluate.every_images=160", "callback.evaluate.fast_num_samples=24")
    kept = "callback.checkpoint.milestone_images=160"
    (tmp_path / "trouble.py").write_text(TROUBLE)
    arguments = (*ddp, *TINY, *during, kept, f"hydra.run.dir={folder}")
    done = shell(tmp_path / "trouble.py", ROOT / "train.py", *arguments, timeout=400)
    assert done.code == 0, done.err
    assert done.out.count("W&B has a problem (the server says no); the run goes on") == 1
    with (folder / "metrics.csv").open() as file:
        steps = [row["step"] for row in csv.DictReader(file)]
    assert len(steps) == len(set(steps))
    rows = wandb_history(folder)
    at_half = [row for row in rows if "fd_digits_24" in row]
    at_end = [row for row in rows if "fd_digits_32" in row]
    grids = [row for row in rows if "samples.path" in row]
    assert [row["images_seen"] for row in at_half] == [160] and [row["images_seen"] for row in at_end] == [320]
    assert len(grids) == 1 and not [row for row in rows if "denoising.path" in row]
    (path,) = (folder / "evaluations").glob("fd_*.json")
    two = json.loads(path.read_text())
    assert two["world_size"] == 2 and two["value"] == pytest.approx(at_end[0]["fd_digits_32"], rel=1e-9)
    one = tmp_path / "one"
    shutil.copytree(folder, one)
    shutil.rmtree(one / "evaluations")
    last, half = one / "checkpoints" / "last.ckpt", one / "checkpoints" / "step=10.ckpt"
    fast = ("sampler=dpm_solver", "sampler.steps=4", "sampler.clip=1.0", "num_samples=24")
    for checkpoint, name, extra, expected in (
        (last, "fd_digits_32", ("num_samples=32",), two["value"]),
        (half, "fd_digits_24", fast, at_half[0]["fd_digits_24"]),
    ):
        again = call("evaluate.py", f"run={checkpoint}", *extra, "batch_size=16", "trainer=cpu", "log=false")
        assert again.code == 0, again.err
        (path,) = (one / "evaluations").glob(f"{name}-*.json")
        record = json.loads(path.read_text())
        assert record["world_size"] == 1 and record["value"] == pytest.approx(expected, rel=1e-6)
