"""Trials as processes: so many at a time, each in a process group of its own, with GPUs of its own."""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from triptych import status
from triptych.signals import EXIT_CODES
from triptych.sweep import machine
from triptych.sweep.trial import FAILED, FINISHED, RUNNING, STOPPED, Trial

STOP_CODES = (*EXIT_CODES.values(), -signal.SIGINT, -signal.SIGTERM, -signal.SIGKILL)
PR_SET_PDEATHSIG = 1  # Linux: the signal a process gets when its parent is gone, however it went


class Pool:
    """Starts trials, and tells which have ended.

    Args:
        command: what is run before a trial's overrides, e.g. python train.py.
        n_jobs: trials at a time.
        gpus: names of the GPUs that are handed out.
    """

    def __init__(self, command: Sequence[str], n_jobs: int, gpus: Sequence[str]) -> None:
        self.command, self.n_jobs, self.free = list(command), n_jobs, list(gpus)
        self.threads = max(1, machine.cores() // n_jobs)
        self._children: dict[Trial, subprocess.Popen] = {}
        self._gpus: dict[Trial, list[str]] = {}
        self._began: dict[Trial, float] = {}
        self._asked_to_stop: set[Trial] = set()
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    @property
    def running(self) -> list[Trial]:
        return list(self._children)

    def fits(self, trial: Trial) -> bool:
        """Whether there is room for one more, and for this one."""
        return len(self._children) < self.n_jobs and trial.gpus <= len(self.free)

    def seconds(self, trial: Trial) -> float:
        """Since the trial was started this time."""
        return time.monotonic() - self._began[trial] if trial in self._began else 0.0

    def start(self, trial: Trial, how: Sequence[str]) -> None:
        """Starts a trial; `how` are the arguments that say where it runs, and whether it goes on."""
        names, self.free = self.free[: trial.gpus], self.free[trial.gpus :]
        trial.folder.mkdir(parents=True, exist_ok=True)
        with trial.log.open("ab") as log:
            self._children[trial] = subprocess.Popen(
                [*self.command, *trial.overrides, *how],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=machine.environment(names, max(1, self.threads // trial.processes)),
                start_new_session=True,  # the terminal's Ctrl-C is ours alone
                preexec_fn=self._die_with_us if self._libc else None,
            )
        self._gpus[trial], self._began[trial] = names, time.monotonic()
        trial.state, trial.attempts = RUNNING, trial.attempts + 1

    def ended(self) -> Iterator[Trial]:
        """Trials that are no longer running, each with its new state; whatever they left behind is ended too."""
        ended = [trial for trial, child in self._children.items() if child.poll() is not None]
        for trial in ended:
            child = self._children.pop(trial)
            _signal_group(child.pid, signal.SIGKILL)
            self.free = sorted([*self.free, *self._gpus.pop(trial)])
            took = self.seconds(trial)
            trial.seconds += took
            del self._began[trial]
            trial.code = child.returncode
            trial.state, trial.reason = _judge(child.returncode, trial in self._asked_to_stop)
            if trial.state == FAILED:
                trial.reason = _own_words(trial, took) or trial.reason
            self._asked_to_stop.discard(trial)
            yield trial

    def stop(self, trial: Trial) -> None:
        """Asks a trial to save and end; its first rank tells the others."""
        self._asked_to_stop.add(trial)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._children[trial].pid, signal.SIGTERM)

    def kill(self, trial: Trial) -> None:
        self._asked_to_stop.add(trial)
        _signal_group(self._children[trial].pid, signal.SIGKILL)

    def _die_with_us(self) -> None:
        """Between fork and exec: should this process be killed, the trial is asked to save and end."""
        self._libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # pyright: ignore[reportOptionalMemberAccess]


def _judge(code: int, asked: bool) -> tuple[str, str]:
    if code == 0:
        return FINISHED, ""
    if asked or code in STOP_CODES:
        return STOPPED, ""
    died = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return FAILED, f"ended {died}"


def _own_words(trial: Trial, seconds: float) -> str:
    """Why a run says that it failed; empty if it has said nothing in these last seconds."""
    said = status.read(trial.folder)
    if said is None or said.state != "failed":
        return ""
    reason = re.sub(r" \([^()]*\)", "", said.reason)  # details are in the log
    return reason if time.time() - (trial.folder / status.NAME).stat().st_mtime < seconds + 1 else ""


def _signal_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def last_lines(path: Path, count: int = 15) -> list[str]:
    """The end of a log."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip()][-count:]
