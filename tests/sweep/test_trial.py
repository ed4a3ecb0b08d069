"""What a trial is called, what it needs of the machine, and how far it is, read from its files."""

import pytest
from omegaconf import OmegaConf

from triptych import recall
from triptych.sweep import ledger, machine, progress
from triptych.sweep.trial import FINISHED, RUNNING, Trial, digest, folder_of


def test_a_trial_is_found_again_when_its_sweep_has_grown(tmp_path):
    """Trials with the same overrides share a folder, whatever else is swept beside them and in whatever order."""
    fixed = ["dataset=toy", "optimizer.lr=1e-3"]
    small = [[f"formulation={f}", "seed=0", *fixed] for f in ("ddpm", "edm")]
    grown = [[*fixed, f"formulation={f}", f"seed={s}"] for f in ("ddpm", "edm") for s in (0, 1)]
    before = [folder_of(tmp_path, o, small) for o in small]
    for folder in before:
        folder.mkdir()
    assert [f.name.rpartition("-")[0] for f in before] == ["ddpm", "edm"]
    after = [folder_of(tmp_path, o, grown) for o in grown]
    assert len(set(after)) == 4 and set(before) < set(after)
    assert digest(small[0]) == digest(small[0][::-1]) != digest(small[1])


def test_a_folders_name_can_be_typed_after_run(tmp_path):
    """No character that Hydra's grammar or a shell would read as something else."""
    jobs = [["model.multipliers=[1,2]", "name='a b/c'", "++x.y={k:1}"], ["model.multipliers=[1]", "name=x", "++x.y=2"]]
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for job in jobs:
        name = folder_of(tmp_path, job, jobs).name
        (read,) = OverridesParser.create().parse_overrides([f"run={name}"])
        assert read.value() == name and not set(name) & set(" '\"$&;*?()[]{}<>|`\\/")


@pytest.mark.parametrize(
    ("trainer", "available", "asked", "expected"),
    [
        ({"accelerator": "auto", "devices": 1}, 8, None, (1, 1)),
        ({"accelerator": "auto", "devices": "auto", "strategy": "ddp"}, 8, None, (8, 8)),
        ({"accelerator": "auto", "devices": "auto", "strategy": "ddp"}, 8, 2, (2, 2)),
        ({"accelerator": "gpu", "devices": 4}, 8, None, (4, 4)),
        ({"accelerator": "auto", "devices": 1}, 0, None, (0, 1)),
        ({"accelerator": "cpu", "devices": 2}, 8, None, (0, 2)),
        ({"accelerator": "auto", "devices": "auto"}, 0, None, (0, 1)),
    ],
)
def test_what_a_trial_needs(trainer, available, asked, expected):
    assert machine.needs(OmegaConf.create(trainer), available, asked) == expected


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        ({"accelerator": "gpu", "devices": 16}, "needs 16 GPUs"),
        ({"accelerator": "gpu", "devices": [0, 3]}, "give a number"),
        ({"accelerator": "auto", "devices": 1, "num_nodes": 2}, "hydra/launcher=slurm"),
    ],
)
def test_what_a_machine_does_not_have_is_refused(trainer, words):
    with pytest.raises(ValueError, match=words):
        machine.needs(OmegaConf.create(trainer), 8, None)


def test_a_trials_environment_knows_nothing_of_other_ranks(monkeypatch):
    """T-D12: a sweep may itself run under torchrun or inside an allocation."""
    for name in ("LOCAL_RANK", "MASTER_PORT", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID", "WANDB_RUN_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = machine.environment(["2", "5"], 3)
    assert found["CUDA_VISIBLE_DEVICES"] == "2,5" and found["OMP_NUM_THREADS"] == "3"
    assert not {"LOCAL_RANK", "MASTER_PORT", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID", "WANDB_RUN_ID"} & set(found)


def test_progress_is_read_while_the_file_is_being_written(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(
        "step,images_seen,time,train/images_per_second,val/loss,samples/alarm,bits_per_dim_4,fd_digits_32\n"
        "10,640,1.0,320,,,,\n20,1280,2.0,640,0.5,0.0,,\n"
    )
    found = progress.read(tmp_path)
    assert (found.step, found.images, found.rate, found.metric) == (20, 1280, 640, ("val/loss", 0.5))
    assert found.seconds_left(120) == pytest.approx(100 * 64 / 640)
    with path.open("a") as file:
        file.write("30,1920,3.0,,,0.0,3.1,7.5\n40,25")
    assert progress.read(tmp_path).metric == ("fd_digits_32", 7.5) and progress.read(tmp_path).step == 30
    rows = progress.rows(path)
    assert len(rows) == 3 and rows == progress.rows(path, tail=10_000) and progress.rows(path, tail=40) == rows[2:]


def test_the_ledger_tells_what_was_cut_off(tmp_path):
    trials = [Trial(n, ("seed=0", "name='a, b'"), tmp_path / n) for n in ("done", "cut", "new")]
    trials[0].state, trials[0].result, trials[0].seconds = FINISHED, "fd 1.0", 12.4
    trials[1].state = RUNNING
    ledger.write(tmp_path / "ledger.csv", trials[:2])
    again = [Trial(t.name, t.overrides, t.folder) for t in trials]
    ledger.recall(tmp_path / "ledger.csv", again)
    assert (again[0].state, again[0].result, again[0].seconds) == (FINISHED, "fd 1.0", 12)
    assert again[1].reason == "was cut off" and again[2].state == "waiting"
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.csv"]


def test_a_sweep_is_continued_with_its_own_arguments(tmp_path):
    OmegaConf.save(
        {"hydra": {"overrides": {"hydra": ["hydra.mode=MULTIRUN", "hydra.sweep.dir=x"], "task": ["seed=0,1", "a=1"]}}},
        tmp_path / "multirun.yaml",
    )
    found = recall.resume_arguments(["-m", f"resume={tmp_path}", "a=2", "hydra.launcher.n_jobs=2"])
    assert found == ["seed=0,1", "-m", "a=2", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir='{tmp_path}'"]
    with pytest.raises(FileNotFoundError, match="no sweep to resume"):
        recall.resume_arguments(["-m", f"resume={tmp_path / 'nowhere'}"])
