"""docs/slurm.sbatch on a real SLURM: two nodes on this machine; a job that is preempted comes back and goes on."""

import re
import sys
import time

import pytest
from scripts import ROOT
from slurm import MARKS, two_nodes, wait

from triptych import run, status

pytestmark = MARKS
TINY = (
    "model.channels=8 model.blocks=1 model.multipliers=[1] global_batch_size=16 trainer.accelerator=cpu logger=none "
    "trainer.max_steps=30 trainer.log_every_n_steps=5 callback.samples.count=4 callback.evaluate.num_samples=0 "
    "callback.likelihood.num_images=0 callback.vlb.num_images=0 callback.samples.sampler.steps=2"
)


@pytest.fixture
def slurm(monkeypatch):
    with two_nodes(monkeypatch) as call:
        yield call


def test_a_job_on_two_nodes_is_put_back_by_sigusr1_and_goes_on(slurm, tmp_path, monkeypatch):
    text = (ROOT / "docs" / "slurm.sbatch").read_text()
    text = re.sub(r"#SBATCH --(gpus|cpus)-per.*\n", "", text).replace("per-node=8", "per-node=1")
    (tmp_path / "job").write_text(text)
    folder, out = tmp_path / "run", tmp_path / "out.txt"
    for name, value in {
        "RUN": folder,
        "PYTHON": sys.executable,
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": 1,
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(ROOT)
    slow = ("trainer.max_steps=100000", "trainer.limit_val_batches=0")
    job = slurm("sbatch", "--parsable", "-o", out, tmp_path / "job", *TINY.split(), *slow).strip()
    assert wait(lambda: (status.read(folder) or status.Status()).phase == "training"), out.read_text()
    time.sleep(2)
    slurm("scancel", "--signal=USR1", job)  # to the tasks, as --signal does when the time is nearly up
    assert wait(lambda: "to be continued (exit code 75)" in out.read_text()), out.read_text()
    step = run.newest_step(folder)
    assert step and status.read(folder).exit_code == 75
    assert wait(lambda: "PENDING" in slurm("scontrol", "show", "job", job)), slurm("scontrol", "show", "job", job)
    slurm("scontrol", "update", f"jobid={job}", "StartTime=now")  # SLURM would wait for two minutes
    assert wait(lambda: f"from step {step}" in out.read_text()), out.read_text()
    assert "2 processes on 2 nodes x 1 accumulated x 8" in out.read_text()
    assert wait(lambda: status.read(folder).phase == "training" and status.read(folder).state == "running")
    slurm("scancel", "--signal=TERM", job)
    assert wait(lambda: status.read(folder).exit_code == 143), out.read_text()
    assert run.newest_step(folder) >= step
