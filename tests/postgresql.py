"""A PostgreSQL on this machine, for as long as a test lasts: Debian's packages, started by whom they want."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from slurm import end, ports, wait

FOUND = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))


def missing():
    """Why none can be started, or None."""
    if not FOUND:
        return "PostgreSQL is not installed: apt-get install postgresql"
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed: pip install -e '.[dev]'"
    if os.geteuid() == 0 and not (shutil.which("runuser") and "postgres" in {p.pw_name for p in pwd.getpwall()}):
        return "PostgreSQL does not run as root, and there is no user postgres"
    return None


@contextlib.contextmanager
def server():
    """Its address for SQLAlchemy."""
    (port,), bin = ports(1), FOUND[-1].parent
    asked = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        if asked:
            shutil.chown(name, "postgres")
        data = f"{name}/data"
        initdb = [*asked, bin / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=name)
        command = [
            *asked,
            bin / "postgres",
            "-D",
            data,
            "-p",
            str(port),
            "-k",
            name,
            "-c",
            "listen_addresses=127.0.0.1",
        ]
        running = subprocess.Popen(command, cwd=name, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ready = [bin / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-q"]
        try:
            assert wait(lambda: subprocess.run(ready).returncode == 0, 60)
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
        finally:
            end(running)
