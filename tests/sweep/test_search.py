"""A search: spaces, experiments, W&B's definition, a study that survives its workers, and one real search."""

import csv
import os
import subprocess
import sys

import postgresql
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from scripts import ROOT, TINY, call

from triptych import conf, refusal, status
from triptych.sweep import arguments, objective
from triptych.sweep.experiment import experiment
from triptych.sweep.objective import Logged
from triptych.sweep.space import distributions, overrides

optuna = pytest.importorskip("optuna")
from triptych.sweep.study import SILENT, Study  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture
def hydra():
    GlobalHydra.instance().clear()
    conf.register_resolvers()
    with initialize_config_dir(str(conf.FOLDER), version_base="1.3"):
        yield


def composed(*given):
    return compose("train", list(given), return_hydra_config=True)


# The space.


def test_a_space_draws_what_its_yaml_says():
    space = distributions(
        {
            "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
            "model.channels": {"low": 16, "high": 64, "step": 16},
            "schedule": ["cosine", "linear_beta"],
            "model.multipliers": [[1], [1, 2]],
        }
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [study.ask(space).params for _ in range(60)]
    rates = [d["optimizer.lr"] for d in drawn]
    assert 1e-4 <= min(rates) < 3e-4 and 3e-3 < max(rates) <= 1e-2
    assert {d["model.channels"] for d in drawn} == {16, 32, 48, 64}
    assert {d["model.multipliers"] for d in drawn} == {"[1]", "[1,2]"}
    assert "model.multipliers=[1,2]" in {o for d in drawn for o in overrides(d)}


@pytest.mark.parametrize(
    "values", [[1], {"low": 1}, {"low": 1, "high": 2, "lgo": True}, {"low": "a", "high": 2}, {"low": 2, "high": 1}, 3]
)
def test_a_space_that_makes_no_sense_is_refused(values):
    with pytest.raises(ValueError, match="optimizer.lr"):
        distributions({"optimizer.lr": values})


@pytest.mark.parametrize("option", conf.options("sweep"))
@pytest.mark.parametrize("method", conf.options("sweep/search"))
def test_every_space_can_be_searched_by_every_method_or_says_why_not(hydra, option, method):
    from hydra.utils import instantiate

    config = compose("sweep", [f"sweep={option}", f"sweep/search={method}"])
    node = OmegaConf.to_container(config.sweep)
    space = distributions(node["space"])
    study = optuna.create_study(sampler=instantiate(node["search"]), directions=["minimize"] * len(node["objectives"]))
    instantiate(node["pruner"])
    if (method, option) in {("grid", "lr_and_ema"), ("cma_es", "quality_and_cost")}:
        with pytest.raises((ValueError, RuntimeError)):
            study.tell(study.ask(space), [1.0] * len(node["objectives"]))
    else:
        trial = study.ask(space)
        composed("formulation=ddpm", *overrides(trial.params))


# The best trial as an experiment.


@pytest.mark.parametrize(
    "given",
    [
        ["formulation=ddpm", "optimizer.lr=0.003", "schedule=cosine", "model.multipliers=[1,2]"],
        ["formulation=score_sde", "schedule=ve", "sampler=ddim", "sampler.steps=7", "logger=none", "+extra.note='a b'"],
        ["experiment=cifar10_ddpm", "model.channels=64", "optimizer.lr=1e-4", "optimizer.lr=0.002"],
        ["dataset=toy", "metric=mmd", "trainer=cpu", "trainer.max_steps=3", "callback.likelihood=null"],
    ],
)
def test_an_experiment_composes_to_what_was_run(hydra, given, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "best.yaml").write_text(experiment(given, "about"))
    straight = OmegaConf.to_container(compose("train", given))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf.FOLDER), version_base="1.3"):
        search_path = f"hydra.searchpath=[file://{tmp_path}]"
        assert OmegaConf.to_container(compose("train", ["experiment=best", search_path])) == straight


def test_an_experiment_cannot_take_something_away():
    with pytest.raises(ValueError, match="callback.vlb"):
        experiment(["~callback.vlb"], "")


# The arguments.


def test_what_is_not_of_the_search_is_of_training(tmp_path):
    found = arguments.sort(["sweep=lr_and_ema", "formulation=ddpm", "n_trials=3", "sweep/pruner=none", "seed=1"])
    assert found == ["sweep=lr_and_ema", "n_trials=3", "sweep/pruner=none", "train=['formulation=ddpm','seed=1']"]
    OmegaConf.save({"arguments": ["sweep=lr_and_ema", "n_trials=9", "dataset=toy"]}, tmp_path / "study.yaml")
    found = arguments.sort([f"study={tmp_path}", "n_trials=3"])
    assert found == ["sweep=lr_and_ema", f"study={tmp_path}", "n_trials=3", "train=['dataset=toy']"]


# What is measured.


def test_only_what_a_run_will_log_can_be_searched_for(hydra):
    logged = Logged(composed("callback.evaluate.num_samples=2000", "callback.evaluate.every_images=6400"))
    assert logged.resolve("final") == "fd_digits_2k" and logged.resolve("fast", meanwhile=True) == "fd_digits_500"
    assert logged.resolve("nfe") == "nfe" and logged.resolve("val/eps_mse", meanwhile=True) == "val/eps_mse"
    for name in ("fd_digits_1k", "fd_digits", "val/los", "bits_per_dim_7"):
        with pytest.raises(ValueError, match="final, fast, fd_digits_2k"):
            logged.resolve(name)
    with pytest.raises(ValueError, match="during training"):
        logged.resolve("final", meanwhile=True)


def test_a_measurement_that_never_comes_is_refused(hydra):
    logged = Logged(composed("trainer.max_steps=10", "callback.evaluate.every_images=6400"))
    with pytest.raises(ValueError, match="callback.evaluate.every_images=128"):
        logged.resolve("fast", meanwhile=True)
    none = Logged(composed("callback.evaluate.num_samples=0"))
    with pytest.raises(ValueError, match="'final'"):
        none.resolve("final")


def test_metrics_of_several_numbers_are_found(hydra, tmp_path):
    logged = Logged(composed("dataset=toy", "metric=mmd", "callback.evaluate.num_samples=100"))
    column = logged.resolve("mmd/second_100")
    (tmp_path / "metrics.csv").write_text(f"step,{column}\n1,\n2,0.5\n")
    assert objective.final_value(tmp_path, column) == 0.5 == objective.values_so_far(tmp_path, column)[0]
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("3,nan\n")
    assert objective.final_value(tmp_path, column) is None


# A study and its workers.

SPACE = {"x": optuna.distributions.FloatDistribution(0, 1)}


def study_in(folder, url=None, settings=None):
    return Study(
        folder, url, ["minimize"], optuna.samplers.RandomSampler(), optuna.pruners.NopPruner(), settings or {"a": 1}
    )


@pytest.fixture(params=["journal", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sqlite", "postgresql"))])
def storage(request, tmp_path):
    """The address of a storage; None for the journal in the study's folder."""
    if request.param == "postgresql":
        if reason := postgresql.missing():
            pytest.skip(reason)
        with postgresql.server() as url:
            yield url
    else:
        yield f"sqlite:///{tmp_path / 'study.db'}" if request.param == "sqlite" else None


def test_a_trial_whose_worker_died_is_tried_again_with_its_settings_and_folder(tmp_path, storage):
    folder = tmp_path / "mine"
    here, there = study_in(folder, storage), study_in(folder, storage)
    lost = here.ask(SPACE, 3)
    lost.set_user_attr("folder", "trials/0000")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert there.retry_dead() == []  # its process, this one, is alive
    lost.set_user_attr("pid", dead.pid)
    assert there.retry_dead() == [0] and here.retry_dead() == []
    again = there.ask(SPACE, 3)
    assert again.params == lost.params and again.user_attrs["folder"] == "trials/0000"
    assert not here.tell(lost, [0.5])  # should it come back after all
    assert there.tell(again, [0.25])
    assert [t.value for t in here.trials()] == [0.25]
    for study in (here, there):
        if storage:
            study.study._storage._backend.engine.dispose()  # its connections


def test_a_trial_of_a_silent_machine_is_tried_again(tmp_path):
    study = study_in(tmp_path / "mine")
    lost = study.ask(SPACE, 3)
    lost.set_user_attr("host", "elsewhere")
    assert study.retry_dead() == []
    lost.set_user_attr("beat", lost.user_attrs["beat"] - 2 * SILENT)
    assert study.retry_dead() == [0]


def test_a_study_has_no_more_trials_than_it_was_given(tmp_path):
    """Trials that are tried again are counted once."""
    here, there = study_in(tmp_path / "mine"), study_in(tmp_path / "mine")
    asked = [study.ask(SPACE, 3) for study in (here, there, here)]
    assert here.ask(SPACE, 3) is None and there.ask(SPACE, 3) is None
    assert here.again(asked[0])
    assert there.ask(SPACE, 3).params == asked[0].params
    assert here.ask(SPACE, 3) is None and len(here.trials()) == 3


def test_a_method_that_knows_its_end_ends_the_study(tmp_path):
    space = {"x": optuna.distributions.CategoricalDistribution([0, 1, 2])}
    study = Study(
        tmp_path / "g", None, ["minimize"], optuna.samplers.BruteForceSampler(), optuna.pruners.NopPruner(), {}
    )
    values = []
    while (trial := study.ask(space, 100)) is not None:
        values.append(trial.params["x"])
        study.tell(trial, [trial.params["x"]])
    assert sorted(values) == [0, 1, 2]


def test_a_study_of_something_else_is_refused(tmp_path):
    study_in(tmp_path / "mine")
    with pytest.raises(ValueError, match="another a"):
        study_in(tmp_path / "mine", settings={"a": 2})


# At the command line.


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["n_trials=0"], ["n_trials", "at least 1"]),
        (["sweep=nothing"], ["no sweep=nothing", "lr_and_ema"]),
        (["formulation=dppm"], ["no formulation=dppm", "ddpm"]),
        (["optimizer.lrr=1"], ["optimizer.lrr"]),
        (["optimizer.lr=1e-3"], ["optimizer.lr", "leave it out"]),
        (["sweep.objectives=[minimize fid_7k]"], ["'fid_7k'", "final"]),
        (["sweep.objectives=[down final]"], ["minimize or maximize"]),
        (["sweep.prune_on=final"], ["'final'", "val/eps_mse"]),
        (["sweep.objectives=[minimize final, minimize nfe]"], ["sweep/pruner=none"]),
        (["sweep/search=grid"], ["sweep/search"]),
        (["sweep.search.n_startup_trials=ten", "callback.evaluate.every_images=640"], ["sweep/search", "'str'"]),
        (["sweep=schedule_and_prediction", "formulation=ncsn"], ["formulation.prediction"]),
        (["storage=sqlite:////nowhere/at/all.db", "callback.evaluate.every_images=640"], ["storage", "sqlite"]),
        (["-m", "seed=0,1"], ["train.py -m"]),
        (["trainer=gpu", "callback.evaluate.every_images=640"], ["cannot run here", "needs 1 GPUs"]),
    ],
)
def test_bad_input_gets_a_sentence(given, words, tmp_path):
    done = call("sweep.py", *given, cwd=tmp_path)
    assert done.code == refusal.BAD_INPUT and all(word in done.err for word in words), done
    assert len(done.err.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_without_optuna_a_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = call("sweep.py", cwd=tmp_path)
    assert done.code == refusal.BAD_INPUT and "pip install" in done.err


@pytest.mark.slow
def test_wandbs_agent_would_run_commands_that_compose(tmp_path):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    given = ["formulation=score_sde", "schedule=ve", "name='a b'", "wandb=true", f"study={tmp_path / 'w'}"]
    done = call("sweep.py", *given, "callback.evaluate.every_images=640", cwd=tmp_path)
    assert done.code == 0 and "wandb sweep" in done.out, done
    definition = yaml.safe_load((tmp_path / "w" / "wandb.yaml").read_text())
    assert definition["metric"] == {"name": "fd_digits_1k", "goal": "minimize"} and definition["method"] == "bayes"
    drawn = {name: {"value": p["max"]} for name, p in definition["parameters"].items()}
    args = create_sweep_command_args({"args": drawn})
    command = create_sweep_command(definition["command"])
    line = [a for word in command for a in (args["args_no_hyphens"] if word == "${args_no_hyphens}" else [word])]
    program = line.index("${program}")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf.FOLDER), version_base="1.3"):
        config = compose("train", line[program + 1 :])
    assert config.optimizer.lr == 0.01 and config.callback.ema.half_life == 500_000 and config.name == "a b"
    assert config.schedule._target_.endswith("VE")


# The whole of it.

MINE = """
search: {_target_: optuna.samplers.BruteForceSampler}
pruner: {_target_: optuna.pruners.ThresholdPruner, upper: 0.9}
space:
  optimizer.lr: [1e-9, 3e-3, 1e-2]
objectives: [minimize final]
prune_on: train/loss
"""


@pytest.mark.slow
def test_two_processes_search_one_study_with_a_pruner(tmp_path):
    """Both start trials of the same journal; the one that learns nothing is stopped, saved and marked."""
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "sweep" / "mine.yaml").write_text(MINE)
    given = [
        *("--config-dir", str(tmp_path / "conf"), "sweep=mine", "dataset=toy", "logger=none", "n_trials=3"),
        *[
            t for t in TINY if not t.startswith(("model.", "trainer.val"))
        ],  # a validation of 100,000 points costs more than the rest
        *("trainer.max_steps=150", "sampler.steps=4", "callback.likelihood.num_images=0", f"study={tmp_path / 'mine'}"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "sweep.py"), *given]
    other = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    here = call("sweep.py", *given, cwd=tmp_path)
    there, _ = other.communicate(timeout=500)
    assert here.code == 0 and other.returncode == 0, (here, there)
    assert all("Best: trial" in out and "running   0" in out for out in (here.out, there)), (here.out, there)
    with (tmp_path / "mine" / "trials.csv").open(newline="") as file:
        states = {row["optimizer.lr"]: row for row in csv.DictReader(file)}
    assert {rate: row["state"] for rate, row in states.items()} == {
        "1e-09": "pruned", "0.003": "finished", "0.01": "finished"
    }  # fmt: skip
    stopped = tmp_path / "mine" / states["1e-09"]["folder"]
    assert (stopped / "checkpoints" / "last.ckpt").exists() and status.read(stopped).state == "interrupted"
    best = min(states.values(), key=lambda row: float(row["sliced_wasserstein_32"] or "inf"))
    assert f"optimizer.lr={best['optimizer.lr']}" in here.out
    page = (tmp_path / "mine" / "study.html").read_text()
    assert "Parallel coordinates" in page and "Importance" in page and 'src="http' not in page
