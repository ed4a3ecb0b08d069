"""`hydra/launcher=slurm` on a real SLURM: two trials of two nodes each, one of them put back in the queue."""

import os
import subprocess
import sys
import time

import pytest
from scripts import ROOT, TINY
from slurm import MARKS, two_nodes, wait

from triptych import run, status

pytestmark = MARKS


def test_trials_of_two_nodes_are_jobs_of_an_array_and_one_is_put_back(tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep = tmp_path / "sweep"
    steps = "trainer.max_steps=100000"  # never reached
    launcher = ("nodes=2", "tasks_per_node=1", "cpus_per_task=1", "timeout_min=10", "signal_delay_s=20")
    command = [sys.executable, str(ROOT / "train.py"), "-m", "hydra/launcher=slurm", f"hydra.sweep.dir={sweep}"]
    command += [f"hydra.launcher.{option}" for option in launcher]
    command += [*TINY, "trainer=ddp", "trainer.num_nodes=2", "trainer.devices=1", "trainer.accelerator=cpu"]
    command += ["logger=none", "seed=0,1", steps, "trainer.limit_val_batches=0", "callback.evaluate.num_samples=0"]
    environment = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    said = tmp_path / "said.txt"
    with two_nodes(monkeypatch) as slurm, said.open("w") as file:
        launched = subprocess.Popen(command, cwd=tmp_path, env=os.environ | environment, stdout=file, stderr=file)
        try:

            def training(name):
                found = status.read(sweep / name)
                return found is not None and (found.phase, found.state) == ("training", "running")

            def logs():
                return "".join(path.read_text() for path in sweep.glob(".submitit/*/*.out"))

            assert wait(lambda: training("0") and training("1")), said.read_text() + logs()
            jobs = sorted(slurm("squeue", "-h", "-r", "-o", "%i").split())
            assert len(jobs) == 2
            time.sleep(2)
            slurm("scancel", "--signal=USR2", jobs[0])  # as SLURM does `signal_delay_s` before the end
            assert wait(lambda: "Stopped at step" in logs()), logs()
            step = run.newest_step(sweep / "0")
            assert step
            assert wait(lambda: "PENDING" in slurm("scontrol", "show", "job", jobs[0])), logs()
            slurm("scontrol", "update", f"jobid={jobs[0]}", "StartTime=now")  # SLURM would wait for two minutes
            assert wait(lambda: f"from step {step}" in logs() and training("0")), logs()
            assert training("1") and "2 processes on 2 nodes x 1 accumulated x 8" in logs()
        finally:
            slurm("scancel", "-u", "root")
            launched.kill()
            launched.wait(20)
