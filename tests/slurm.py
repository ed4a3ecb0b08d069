"""A SLURM of two nodes on this machine, for as long as a test lasts."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from processes import ports

NEEDED = ("slurmctld", "slurmd", "sbatch", "scontrol", "munged")
MISSING = [name for name in NEEDED if shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin") is None]
MARKS = [
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


@contextlib.contextmanager
def two_nodes(monkeypatch):
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
