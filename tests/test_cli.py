"""Bad input gets one sentence, an exit code, and leaves nothing behind; help answers without importing torch."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from scripts import ROOT, TINY, call, shell

from triptych import cli, conf, image, recall, refusal, run

pytestmark = pytest.mark.filterwarnings("ignore")  # what Lightning says in passing; ours are errors elsewhere


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """An empty folder to run in, and no W&B."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path


def refused(done, *parts):
    """Exactly one sentence on stderr, nothing on stdout, and every part in the sentence."""
    assert done.code == refusal.BAD_INPUT and not done.out, done
    assert len(done.err.splitlines()) == 1 and done.err.count(".py: ") >= 1, done.err
    for part in parts:
        assert part in done.err, done.err


MISTYPED = {  # arguments of train.py -> what the sentence must say
    "formulation=dpm": ["no formulation=dpm", "ddpm, edm, flow_matching, ncsn, score_sde"],
    "sampler=dimm": ["no sampler=dimm", "ddim"],
    "experiment=nothing": ["no experiment=nothing"],
    "formulatio=ddpm": ["'formulatio'", "did you mean formulation"],
    "shedule/x=vp": ["shedule/x"],
    "model.chanels=8": ["'model.chanels'", "did you mean model.channels"],
    "traner.max_steps=3": ["'traner.max_steps'", "did you mean trainer.max_steps"],
    "lr=0.1": ["'lr'", "optimizer.lr"],
    "--formulation ddpm": ["no option --formulation", "formulation=…", "--help"],
    "formulation ddpm": ["'formulation' is not a setting", "key=value"],
    "model.multipliers=[1": ["cannot be read", "model.multipliers"],
    "=": ["not a setting"],
    "=3": ["not a setting"],
    "callback=null": ["no callback=null", "leave it out", "ema, evaluate"],
    "sampler=20": ["no sampler=20", "ddim"],
    "-m seed=1,2 --cfg job": ["-m and --cfg", "choose one"],
}
UNFIT = {
    "formulation=ncsn schedule=vp": ["NCSN", "schedule=vp", "geometric"],
    "formulation=ddpm schedule=vp": ["DDPM", "schedule=vp", "linear_beta, quadratic_beta, cosine"],
    "formulation=score_sde sampler=annealed_langevin": ["AnnealedLangevin", "geometric, ve", "predictor_corrector"],
    "sampler=ancestral sampler.variance=learned": ["variance"],
    "model=mlp": ["dataset=digits holds images", "model=unet_small"],
    "dataset.conditional=true": ["labels", "knows of none", "model.num_classes=10"],
    "dataset.conditional=true model.num_classes=3": ["10 labels", "knows of 3", "model.num_classes=10"],
    "dataset.conditional=true model=ncsnv2 formulation=ncsn": ["this one takes none", "another model"],
    "dataset.augment=0.12": ["this one is not told", "model.augment_channels=9"],
    "model.multipliers=2": ["model.multipliers must be a list", "type [2]"],
    "model.dropout=1": ["model.dropout", "below 1, got 1"],
    "dataset=toy model=unet_small": ["dataset=toy holds points", "model=mlp"],
    "global_batch_size=0": ["global_batch_size", "at least 1", "got 0"],
    "global_batch_size=-5": ["global_batch_size", "got -5"],
    "global_batch_size=128 trainer.accumulate_grad_batches=3": ["126 or 129"],
    "trainer.max_steps=0": ["trainer.max_steps", "got 0"],
    "trainer.max_steps=-5": ["trainer.max_steps", "-1 for no limit", "got -5"],
    "trainer.max_steps=many": ["trainer.max_steps", "got many"],
    "trainer.val_check_interval=0": ["trainer.val_check_interval"],
    **({} if torch.cuda.is_available() else {"trainer=gpu": ["finds no GPU here", "trainer=cpu"]}),
    "trainer.accelerator=banana": ["banana", "cpu"],
    "trainer.precision=banana": ["banana", "bf16-mixed"],
    "trainer.precision=bf16-true": ["bf16-mixed, 16-mixed, got bf16-true"],
    "trainer=cpu trainer.precision=16-mixed": ["needs a GPU", "bf16-mixed"],
    "trainer.devices=0": ["trainer.devices", "at least 1", "got 0"],
    "callback.likelihood.num_images=-3": ["num_images", "got -3"],
    "callback.ema.ramp=-1": ["ramp"],
    "sampler.steps=0": ["steps", "at least 1", "got 0"],
    "sampler.steps=ten": ["sampler.steps must be a number", "'ten'"],
    "callback.samples.count=0": ["callback.samples.count", "at least 1"],
    "callback.samples.every_images=0": ["at least 1, or null"],
    "callback.evaluate.num_samples=-3": ["num_samples", "got -3"],
    "callback.ema.decay=0.999": ["half_life", "decay"],
    "model.channels=0": ["model.channels", "at least 1, got 0"],
    "model.channels=wide": ["model.channels must be a number", "'wide'"],
    "optimizer.fused=maybe": ["true or false", "'maybe'"],
    "optimizer.lr=-1": ["learning rate"],
    "seed=-1": ["seed", "at least 0"],
    "seed=one": ["seed", "whole number"],
    "dataset.holdout=2": ["dataset.holdout=2"],
    "dataset=image_folder": ["dataset.root"],
    "resume=nowhere": ["no run to resume", "nowhere"],
}


@pytest.mark.parametrize("arguments", [*MISTYPED, *UNFIT])
def test_what_train_refuses(arguments, nowhere):
    done = call("train.py", *arguments.split(), cwd=nowhere)
    refused(done, *{**MISTYPED, **UNFIT}[arguments])
    assert not list(nowhere.iterdir())  # nothing was started
    assert nowhere.exists()


def test_a_rehearsal_samples_and_measures_nothing(nowhere):
    done = call("train.py", *TINY, "trainer.fast_dev_run=true", "logger=none", "hydra.run.dir=a", cwd=nowhere)
    assert done.code == 0 and "Trained 16 images" in done.out, done
    assert not (nowhere / "a" / "samples").exists() and not (nowhere / "a" / "evaluations").exists()


def test_a_profiler_reports_to_a_file_that_is_named(nowhere):
    arguments = "trainer.fast_dev_run=true", "trainer.profiler=simple", "logger=none", "hydra.run.dir=a"
    done = call("train.py", *TINY, *arguments, cwd=nowhere)
    assert done.code == 0 and "a/fit-profile.txt" in done.out, done
    assert "run_training_batch" in (nowhere / "a" / "fit-profile.txt").read_text()


def test_a_folder_that_holds_a_run_is_not_trained_in_again(nowhere):
    folder = nowhere / "mine"
    folder.mkdir()
    (folder / "config.yaml").write_text("a: 1\n")
    refused(call("train.py", f"hydra.run.dir={folder}", cwd=nowhere), "already holds a run", "resume=")
    assert (folder / "config.yaml").read_text() == "a: 1\n" and len(list(folder.iterdir())) == 1


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run folder as train.py leaves it, with an untrained network: (folder, checkpoint)."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    conf.register_resolvers()
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    with initialize_config_dir(str(conf.FOLDER), version_base="1.3"):
        config = compose("train", [*TINY, "sampler.steps=3", "callback.evaluate.name=fd_digits"])
        OmegaConf.update(config, "logger", None, force_add=True)
        config.name = "test"
        plain = run.plain(config)
    plain["choices"] = {"sampler": "ancestral", "metric": "fd_digits", "dataset": "digits"}
    formulation = instantiate(config.formulation)
    run.write_config(folder, plain, [])
    (folder / "checkpoints").mkdir()
    checkpoint = {"state_dict": formulation.state_dict(), "hyper_parameters": plain, "global_step": 0}
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
    return folder, checkpoint


def copy(saved, tmp_path, change=None):
    """The same run elsewhere, with its stored config changed, in the file and in the checkpoint."""
    folder, checkpoint = tmp_path / "copy", dict(saved[1])
    plain = OmegaConf.to_container(OmegaConf.create(checkpoint["hyper_parameters"]))
    if change is not None:
        change(plain)
    run.write_config(folder, {}, [])
    OmegaConf.save(OmegaConf.create(plain), folder / "config.yaml")
    (folder / "checkpoints").mkdir()
    torch.save(checkpoint | {"hyper_parameters": plain}, folder / "checkpoints" / "last.ckpt")
    return folder


def test_the_untouched_run_can_be_sampled(saved, nowhere):
    done = call("sample.py", f"run={saved[0]}", "num_samples=2", "out=out", "trainer=cpu", cwd=nowhere)
    assert done.code == 0, done.err
    assert (nowhere / "out" / "samples.npz").exists()


SAMPLED = {
    "num_samples=0": ["num_samples", "at least 1"],
    "num_samples=-2": ["num_samples", "got -2"],
    "batch_size=0": ["batch_size", "at least 1"],
    "sampler.steps=0": ["steps", "at least 1"],
    "sampler=annealed_langevin": ["AnnealedLangevin", "alpha = 1"],
    "sampler=dimm": ["no sampler=dimm"],
    "sampler.stepps=3": ["'sampler.stepps'"],
    "labels=3": ["trained without", "labels"],
    "weights=best": ["ema or raw", "best"],
    **({} if torch.cuda.is_available() else {"trainer=gpu": ["finds no GPU here", "trainer=cpu"]}),
    "trainer.accelerator=banana": ["banana"],
    "seed=abc": ["seed must be a whole number", "abc"],
    "first=-5": ["first", "at least 0", "got -5"],
    "guidance=classifier_free": ["guides towards a label", "trained without", "dataset.conditional=true"],
    "sampler.grid=[0,1]": ["A list of times must fall strictly", "[0, 1]"],
    "sampler.t_start=0.5": ["begins with given images", "init="],
    "init=nowhere.png": ["nothing at nowhere.png", "a folder of pictures"],
}


@pytest.mark.parametrize("arguments", SAMPLED)
def test_what_sample_refuses(arguments, saved, nowhere):
    done = call("sample.py", f"run={saved[0]}", "out=out", *arguments.split(), cwd=nowhere)
    refused(done, *SAMPLED[arguments])
    assert not list(nowhere.iterdir())


def test_begun_with_images(saved, nowhere):
    """SDEdit from a picture of another size, from a folder of two, from sample.py's own archive; not from others."""
    for name, side in {"one.png": 20, "two.png": 8}.items():
        image.save(torch.full((3, side, side), 200, dtype=torch.uint8), nowhere / "in" / name)

    def draw(init, out, *more):
        arguments = (f"run={saved[0]}", f"init={init}", f"out={out}", "num_samples=3", "trainer=cpu", "sampler=ddim")
        return call("sample.py", *arguments, "sampler.steps=2", *more, cwd=nowhere)

    for init, n in {"in/one.png": 1, "in": 2, "1/samples.npz": 3}.items():
        done = draw(init, f"{n}", "sampler.t_start=0.01")
        assert done.code == 0, done
        record = json.loads((nowhere / str(n) / "record.json").read_text())
        assert record["init"] == {"path": init, "num_images": n} and record["sampler"]["t_start"] == 0.01
        drawn = np.load(nowhere / str(n) / "samples.npz")["arr_0"]
        assert drawn.shape == (3, 8, 8, 1) and drawn.mean() > 150  # still bright
    np.savez(nowhere / "large.npz", np.zeros((2, 9, 9, 1), dtype=np.uint8))
    refused(draw("large.npz", "out", "sampler.t_start=0.5"), "uint8 2 x 9 x 9 x 1", "uint8 N x 1 x 8 x 8")
    (nowhere / "broken.png").write_bytes(b"no picture")
    refused(draw("broken.png", "out", "sampler.t_start=0.5"), "no picture that can be read")
    refused(draw("in", "out"), "nothing is left of the given images", "sampler.t_start=0.5")
    assert not (nowhere / "out").exists()


EVALUATED = {
    "seed=abc": ["seed must be a whole number", "abc"],
    "repeats=abc": ["repeats must be a whole number of at least 1", "abc"],
    "repeats=0": ["repeats", "got 0"],
    "num_samples=1": ["metric=fd_digits", "at least 2, got 1"],
    "reference=foo": ["no split 'foo'", "train, val, test"],
    "dataset=toy": ["samples of 1 x 8 x 8", "dataset=toy holds 2 coordinates"],
    "guidance=classifier_free": ["guides towards a label", "trained without"],
    "metric=fdd": ["no metric=fdd", "fd_digits"],
    "metric=sliced_wasserstein": ["measures points", "digits holds images"],
    "metric=vlb repeats=3": ["draws no samples", "leave repeats out"],
    "metric=bits_per_dim metric.divergence=most": ["hutchinson, exact", "'most'"],
}


@pytest.mark.parametrize("arguments", EVALUATED)
def test_what_evaluate_refuses(arguments, saved, nowhere):
    refused(call("evaluate.py", f"run={saved[0]}", *arguments.split(), cwd=nowhere), *EVALUATED[arguments])
    assert not list(nowhere.iterdir()) and not (saved[0] / "evaluations").exists()


def test_hydras_options_may_stand_anywhere():
    assert cli._settings_first(["a=1", "-m", "b=2,3", "-c", "job", "~d", "--info", "e=1"]) == [
        *("a=1", "b=2,3", "~d", "e=1"),
        *("-m", "-c", "job", "--info"),
    ]


def test_a_run_with_hydras_options(saved, nowhere):
    """What the run brings is put before -m and --cfg, wherever they were typed."""
    folder = copy(saved, nowhere)
    shown = call("train.py", f"resume={folder}", "--cfg", "job", "-p", "sampler", cwd=nowhere)
    assert shown.code == 0 and "Ancestral" in shown.out, shown
    shown = call("evaluate.py", f"run={folder}", "--cfg", "job", "num_samples=3", cwd=nowhere)
    assert shown.code == 0 and "num_samples: 3" in shown.out and "steps: 3" in shown.out, shown
    grid = ["-m", "sampler=ddim,dpm_solver", "sampler.steps=2,3", "trainer=cpu", "num_samples=4"]
    done = call("evaluate.py", f"run={folder}", *grid, cwd=nowhere)
    assert done.code == 0 and len(list((folder / "evaluations").glob("*.json"))) == 4, done


@pytest.mark.parametrize("script", ["sample.py", "evaluate.py"])
def test_there_must_be_a_run(script, nowhere):
    refused(call(script, cwd=nowhere), "run=")
    refused(call(script, "run=nowhere", "sampler=ddim", "metric=fd_digits", "dataset=digits", cwd=nowhere), "nowhere")
    assert not list(nowhere.iterdir())


def test_results_are_never_overwritten(saved, nowhere):
    (nowhere / "out").mkdir()
    (nowhere / "out" / "precious.txt").write_text("mine")
    refused(call("sample.py", f"run={saved[0]}", "out=out", "num_samples=1", cwd=nowhere), "already holds", "out=")
    assert [p.name for p in (nowhere / "out").iterdir()] == ["precious.txt"]


@pytest.mark.parametrize("script", ["sample.py", "evaluate.py"])
def test_a_run_without_a_checkpoint(script, saved, nowhere):
    folder = copy(saved, nowhere)
    (folder / "checkpoints" / "last.ckpt").unlink()
    refused(call(script, f"run={folder}", "num_samples=1", cwd=nowhere), "has no checkpoint")
    assert not (nowhere / "samples").exists()


def test_nothing_is_begun_anew_where_a_run_was_to_go_on(saved, nowhere):
    folder = copy(saved, nowhere)
    (folder / "checkpoints" / "last.ckpt").unlink()
    (folder / "metrics.csv").write_text("step,images_seen\n3,48\n")
    refused(call("train.py", f"resume={folder}", cwd=nowhere), "no checkpoint to go on from", "resume=auto")
    assert (folder / "metrics.csv").read_text().endswith("3,48\n")


@pytest.mark.parametrize("content", [b"hello", b"PK\x03\x04"])
def test_a_file_that_is_no_checkpoint(content, nowhere):
    (nowhere / "a.ckpt").write_bytes(content)
    refused(call("sample.py", "run=a.ckpt", "num_samples=1", cwd=nowhere), "not a checkpoint")


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_a_truncated_checkpoint(kept, saved, nowhere):
    folder = copy(saved, nowhere)
    path = folder / "checkpoints" / "last.ckpt"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    refused(call("sample.py", f"run={folder}", "num_samples=1", cwd=nowhere), "only a part of one")
    refused(call("sample.py", f"run={path}", "num_samples=1", cwd=nowhere), "only a part of one")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_does_not_run(zipped, saved, nowhere):
    folder = copy(saved, nowhere)
    mark = nowhere / "it_ran"
    path = folder / "checkpoints" / "last.ckpt"
    torch.save({**saved[1], "x": Evil(mark)}, path, _use_new_zipfile_serialization=zipped)
    refused(call("sample.py", f"run={folder}", "num_samples=1", cwd=nowhere), "not loaded")
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the test is worth something: it would have run
    assert mark.exists()


@pytest.mark.parametrize("node", ["formulation", "dataset", "sampler", "metric"])
@pytest.mark.parametrize("how", ["target", "nested", "interpolation"])
def test_a_stored_config_cannot_call_anything_else(node, how, saved, nowhere):
    mark = nowhere / "it_ran"
    call_it = {"_target_": "os.system", "command": f"touch {mark}"}

    def change(plain):
        if how == "target":
            plain[node] = call_it
        elif how == "nested":
            plain[node]["seed"] = call_it
        else:
            plain[node]["seed"] = f"${{oc.create:{{_target_:os.system,command:'touch {mark}'}}}}"

    folder = copy(saved, nowhere, change)
    script = "sample.py" if node in ("formulation", "sampler") else "evaluate.py"
    done = call(script, f"run={folder}", "num_samples=1", cwd=nowhere)
    assert done.code == refusal.BAD_INPUT and len(done.err.splitlines()) == 1, done
    assert not mark.exists()
    with pytest.raises(ValueError, match="not allowed|stands for something else"):
        run.build(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))[node])
    assert not mark.exists()


def test_an_overrides_file_cannot_call_anything_either(saved, nowhere):
    folder = copy(saved, nowhere)
    for line in ("model._target_=os.system", "+hydra.job.env_set.A=b", "++callback.x={_target_: os.system}"):
        OmegaConf.save(OmegaConf.create([line]), folder / "overrides.yaml")
        refused(call("train.py", f"resume={folder}", cwd=nowhere), "overrides.yaml", "may not ask for")


@pytest.mark.parametrize(
    "target", ["os.system", "triptych.run.os.system", "triptych.sampler.base.Tensor", "builtins.eval"]
)
def test_only_our_own_classes_are_on_the_list(target):
    with pytest.raises(ValueError, match="not allowed"):
        run.check_targets({"a": [{"_target_": target}]})


def test_every_target_of_our_yamls_is_on_the_list():
    for group in ("schedule", "model", "formulation", "sampler", "guidance", "dataset", "metric", "optimizer"):
        for path in (conf.FOLDER / group).glob("*.yaml"):
            targets = re.findall(r"'_target_': '([^']+)'", str(OmegaConf.to_container(OmegaConf.load(path))))
            run.check_targets([{"_target_": target} for target in targets])


def test_a_broken_config_file_gets_a_sentence(saved, nowhere):
    folder = copy(saved, nowhere)
    (folder / "config.yaml").write_text("a: [1\n b: {")
    done = call("sample.py", f"run={folder}", "num_samples=1", cwd=nowhere)
    assert done.code == refusal.BAD_INPUT and len(done.err.splitlines()) == 1, done


def test_values_survive_the_way_through_hydras_grammar():
    """What a run stored comes back the same, whatever is in it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    values = [
        None,
        True,
        False,
        3,
        -2,
        1e-5,
        0.1,
        "a b",
        "it's",
        'say "x"',
        "back\\slash",
        "at the end\\",
        "before a quote\\'",
        "a=b,c",
        [1, [2.5, "x,y"]],
        {"k": [1]},
    ]
    for value in values:
        (read,) = OverridesParser.create().parse_overrides([f"key={recall.quoted(value)}"])
        assert read.value() == value, value


def test_a_job_has_a_name_of_its_own():
    assert conf._random_name(0) != conf._random_name(1) and conf._random_name(0) == conf._random_name(0)


def test_only_empty_folders_below_are_removed(nowhere, monkeypatch):
    monkeypatch.chdir(nowhere)
    full, empty = nowhere / "full" / "run", nowhere / "runs" / "name" / "run"
    for folder in (full, empty):
        folder.mkdir(parents=True)
    (full.parent / "kept").touch()
    for folder in (full, empty, nowhere, Path("/")):
        cli._remove_if_empty(folder)
    assert sorted(p.name for p in nowhere.rglob("*")) == ["full", "kept"]


HEAVY = ("torch", "lightning", "numpy", "wandb", "sklearn", "torchmetrics")


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("train.py", ["--help"]),
        ("sample.py", ["--help"]),
        ("evaluate.py", ["--help"]),
        ("train.py", ["formulation=dpm"]),
        ("train.py", ["model.chanels=8"]),
        ("sample.py", ["run=nowhere", "sampler=dimm"]),
        ("sample.py", ["num_samples=4"]),
        ("evaluate.py", ["repeats=2"]),
        ("sweep.py", ["n_trial=4"]),
    ],
)
def test_help_and_mistakes_are_answered_without_torch(script, arguments, nowhere):
    """Importing torch and Lightning takes seconds; no time is asserted, only that they are not imported."""
    code = (
        "import atexit, runpy, sys\n"
        f"atexit.register(lambda: print('HEAVY', [m for m in {HEAVY} if m in sys.modules]))\n"
        f"sys.argv = {[str(ROOT / script), *arguments]!r}\n"
        f"runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=nowhere, env=os.environ | {"COLUMNS": "80"}
    )
    assert "HEAVY []" in done.stdout
    assert not list(nowhere.iterdir())
    if "--help" in arguments:
        assert done.returncode == 0 and not done.stderr
        shown = done.stdout.splitlines()
        assert len(shown) < 70 and max(map(len, shown)) <= 80 and any(line.startswith("sampler: ") for line in shown)
        assert "_target_" not in done.stdout  # not a page of raw YAML
        listed = {line.partition(":")[0] for line in shown if line.partition(": ")[0] in conf.groups()}
        assert script != "train.py" or listed == {*conf.groups()} - {"sweep"}  # which is sweep.py's
    else:
        assert done.returncode == refusal.BAD_INPUT and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_user_at_a_real_prompt(nowhere):
    refused(shell("train.py", "formulation=ncsn", "schedule=vp", cwd=nowhere), "geometric")
    refused(shell("train.py", "sampler.steps=0", cwd=nowhere), "at least 1")
    assert not list(nowhere.iterdir())


def test_the_sentence_is_the_constructors_and_not_its_causes():
    outer = InstantiationException("Error in call to target 'triptych.metric.Inception'")
    outer.__cause__ = FileNotFoundError("The weights are not there: put them there.")
    outer.__cause__.__cause__ = OSError("Name or service not known")
    assert refusal.sentence(outer) == "The weights are not there: put them there."
