"""The state of a run on disk, `status.json`: what it is doing, how far it is, why it ended. Imports nothing heavy."""

import dataclasses
import datetime
import json
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych import disk

NAME = "status.json"
EVERY = 10.0  # seconds between two updates of a running run


@dataclass
class Status:
    """Where a run stands.

    Attributes:
        state: "running"; "finished"; "interrupted", asked to stop, saved, to be continued; "failed"; or, only when
            read, "lost": it says running, but its process on this machine is gone (kill -9, a crash).
        phase: of a running run: "starting", "training" or "evaluating".
        step, images_seen: how far it is. max_steps: how far it is meant to go; -1 for no limit.
        started, updated: ISO 8601, UTC.
        reason: why it ended, in one sentence. exit_code: with which code.
        pid, host, job: the process of rank 0, its machine, its SLURM job if any.
        environment: versions and devices that the run was started with.
    """

    state: str = "running"
    phase: str = "starting"
    step: int = 0
    images_seen: int = 0
    max_steps: int = -1
    started: str = ""
    updated: str = ""
    reason: str = ""
    exit_code: int | None = None
    pid: int = 0
    host: str = ""
    job: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)


def read(folder: Path | str) -> Status | None:
    """The status of a run folder; None if it has none, or none that can be read."""
    try:
        content = json.loads((Path(folder) / NAME).read_text())
        known = {one.name for one in dataclasses.fields(Status)}
        status = Status(**{key: value for key, value in content.items() if key in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    if status.state == "running" and status.host == socket.gethostname() and not _alive(status):
        status.state = "lost"
    return status


def refuse_running(folder: Path | str) -> None:
    """A ValueError if another process of this machine trains in this folder."""
    known = read(folder)
    here = known is not None and known.state == "running" and known.host == socket.gethostname()
    if known is not None and here and known.pid != os.getpid():
        raise ValueError(
            f"{os.path.relpath(folder)} is being trained by process {known.pid}, which is at step {known.step}: two "
            f"would overwrite each other. Wait for it, stop it by  kill {known.pid} , or give another folder."
        )


def _alive(status: Status) -> bool:
    try:
        started = datetime.datetime.fromisoformat(status.started).timestamp()
    except ValueError:
        started = None
    return disk.alive(status.pid, started)


class Reporter:
    """Keeps a run's `status.json` fresh; a disk that says no does not stop the run."""

    def __init__(self, folder: Path, max_steps: int = -1) -> None:
        self.path = folder / NAME
        job = os.environ.get("SLURM_JOB_ID")
        self.status = Status(max_steps=max_steps, started=_now(), pid=os.getpid(), host=socket.gethostname(), job=job)
        self._written = 0.0

    def update(self, step: int, images_seen: int, phase: str = "training") -> None:
        """Tells how far the run is; written now and then, and at once where the phase changes."""
        changed = phase != self.status.phase
        self.status.step, self.status.images_seen, self.status.phase = step, images_seen, phase
        if changed or time.monotonic() - self._written > EVERY:
            self.write()

    def end(self, state: str, reason: str, exit_code: int) -> None:
        self.status.state, self.status.reason, self.status.exit_code = state, reason, exit_code
        self.write()

    def write(self) -> None:
        self.status.updated, self._written = _now(), time.monotonic()
        with disk.forgiving(f"{NAME} cannot be written"), disk.replacing(self.path) as file:
            file.write(json.dumps(dataclasses.asdict(self.status), indent=2) + "\n")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
