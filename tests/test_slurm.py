"""docs/slurm.sbatch on a real SLURM: two nodes on this machine; a job that is preempted comes back and goes on."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from scripts import ROOT

from triptych import run, status

NEEDED = ("slurmctld", "slurmd", "sbatch", "scontrol", "munged")
MISSING = [name for name in NEEDED if shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin") is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"SLURM is not installed: no {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start SLURM's daemons"),
]
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge
CryptoType=crypto/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmctldPort={ports[0]}
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
InactiveLimit=0
KillWait=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=2000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
TINY = (
    "model.channels=8 model.blocks=1 model.multipliers=[1] global_batch_size=16 trainer.accelerator=cpu logger=none "
    "trainer.max_steps=30 trainer.log_every_n_steps=5 callback.samples.count=4 callback.evaluate.num_samples=0 "
    "callback.likelihood.num_images=0 callback.vlb.num_images=0 callback.samples.sampler.steps=2"
)


def ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    found = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return found


@pytest.fixture
def slurm(monkeypatch):
    """A running SLURM of two nodes, with a munge of its own; a function that calls its commands."""
    monkeypatch.setenv("PATH", os.environ["PATH"] + ":/usr/sbin")
    with tempfile.TemporaryDirectory(prefix="slurm") as name, contextlib.ExitStack() as daemons:
        folder = Path(name)  # a short one: a socket's address has at most 107 characters
        folder.chmod(0o755)  # munge insists
        for part in ("state", "spool/n1", "spool/n2"):
            (folder / part).mkdir(parents=True)
        (folder / "key").touch(mode=0o600)
        (folder / "key").write_bytes(os.urandom(1024))
        conf = folder / "slurm.conf"
        conf.write_text(CONF.format(host=socket.gethostname().partition(".")[0], folder=folder, ports=ports(3)))
        monkeypatch.setenv("SLURM_CONF", str(conf))

        def start(*command):
            daemon = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            daemons.callback(end, daemon)

        def call(*command):
            return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout

        places = {"socket": "munge", "key-file": "key", "pid-file": "pid", "log-file": "munge.log", "seed-file": "seed"}
        start("munged", "-F", *(f"--{option}={folder / place}" for option, place in places.items()))
        if not wait((folder / "munge").exists, 20):
            pytest.skip("munge did not start on this machine")
        start("slurmctld", "-D")
        for node in ("n1", "n2"):
            start("slurmd", "-D", "-N", node)
        daemons.callback(lambda: call("scancel", "-u", "root"))
        if not wait(lambda: call("sinfo", "-h", "-o", "%T", "-p", "main").split() == ["idle"], 60):
            pytest.skip("SLURM did not start on this machine")
        yield call


def end(daemon):
    daemon.terminate()
    try:
        daemon.wait(20)
    except subprocess.TimeoutExpired:
        daemon.kill()


def wait(condition, seconds=240):
    until = time.monotonic() + seconds
    while time.monotonic() < until and not condition():
        time.sleep(0.5)
    return condition()


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
