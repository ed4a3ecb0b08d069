"""A study that many processes on many machines work on: which trials it has, who runs them, whose worker has died."""

import contextlib
import logging
import os
import socket
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, OptunaError, UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from triptych import disk

Direction = Literal["minimize", "maximize"]
BEAT = 30.0  # seconds between two signs of life of a trial's worker
SILENT = 180.0  # seconds without one after which it is taken for dead
OPEN = (TrialState.WAITING, TrialState.RUNNING)


class Study:
    """An Optuna study that is asked and told; a trial whose worker died is tried again by another.

    Args:
        folder: of the study; its name is the study's.
        url: of the storage; None for a journal file in the folder.
        directions: minimize or maximize, one for each objective.
        settings: what is searched and how; every process must want the same.

    Raises:
        ValueError: the storage cannot be reached, or the study there is of something else.
    """

    def __init__(
        self,
        folder: Path,
        url: str | None,
        directions: Sequence[Direction],
        sampler: BaseSampler,
        pruner: BasePruner,
        settings: dict[str, Any],
    ) -> None:
        quiet()
        self.exhausted = False
        self._beats: dict[int, float] = {}
        where = url or str(folder / "journal.log")
        try:
            self.study = optuna.create_study(
                study_name=folder.name,
                storage=_storage(folder, url),
                directions=list(directions),
                sampler=sampler,
                pruner=pruner,
                load_if_exists=True,
            )
            stored = self.study.user_attrs.get("settings")
        except Exception as error:  # of whichever database driver
            said = str(error).strip().splitlines()
            raise ValueError(
                f"The storage {where} cannot be used: {said[0] if said else type(error).__name__}"
            ) from error
        if stored is None:
            self.study.set_user_attr("settings", settings)
        elif stored != settings:
            different = sorted(k for k in {*stored, *settings} if stored.get(k) != settings.get(k))
            raise ValueError(
                f"The study {folder.name} in {where} has another {' and '.join(different)}: give study=… another name, "
                "or give it alone, which takes its own settings."
            )
        self.study.stop = self._stop  # pyright: ignore[reportAttributeAccessIssue]

    def _stop(self) -> None:
        """Samplers that know their end call this; Optuna's own works inside of `optimize` only."""
        self.exhausted = True

    def trials(self) -> list[FrozenTrial]:
        """All but those that are being tried again."""
        return [t for t in self.study.get_trials(deepcopy=False) if not t.user_attrs.get("again")]

    def ask(self, distributions: dict[str, BaseDistribution], n_trials: int) -> Trial | None:
        """A new trial, or one that is to be tried again; None if the study has enough."""
        trials = self.trials()
        waiting = any(t.state == TrialState.WAITING for t in trials)
        if not waiting and (self.exhausted or len(trials) >= n_trials):
            return None
        trial = self.study.ask(distributions)
        if sum(t.number < trial.number for t in self.trials()) >= n_trials and "folder" not in trial.user_attrs:
            trial.set_user_attr("again", True)  # another machine was faster: one too many
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        trial.set_user_attr("host", socket.gethostname())
        trial.set_user_attr("pid", os.getpid())
        self.beat(trial, now=True)
        return trial

    def beat(self, trial: Trial, now: bool = False) -> None:
        """A sign of life, now and then."""
        if now or time.monotonic() - self._beats.get(trial.number, 0.0) > BEAT:
            self._beats[trial.number] = time.monotonic()
            with contextlib.suppress(UpdateFinishedTrialError, ValueError):
                trial.set_user_attr("beat", time.time())

    def tell(self, trial: Trial, values: Sequence[float] | None = None, state: TrialState | None = None) -> bool:
        """False if the trial was taken away from this process in the meantime."""
        try:
            self.study.tell(trial, values, state)
        except (ValueError, UpdateFinishedTrialError):
            return False
        return True

    def again(self, trial: FrozenTrial | Trial) -> bool:
        """Puts a trial back in the line, to go on in the folder it has; False if somebody else did."""
        attributes = {"folder": trial.user_attrs.get("folder"), "before": trial.number}
        try:
            identity = trial._trial_id
            self.study._storage.set_trial_user_attr(identity, "again", True)
            self.study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, OptunaError):
            return False
        self.study.enqueue_trial(dict(trial.params), user_attrs=attributes)
        return True

    def retry_dead(self) -> list[int]:
        """Puts back the trials whose worker has died; their numbers."""
        dead = [t for t in self.trials() if t.state == TrialState.RUNNING and _dead(t)]
        return [t.number for t in dead if self.again(t)]


def _dead(trial: FrozenTrial) -> bool:
    beat, pid = trial.user_attrs.get("beat"), trial.user_attrs.get("pid")
    if beat is None:  # it has just been asked for
        return trial.datetime_start is not None and time.time() - trial.datetime_start.timestamp() > SILENT
    if trial.user_attrs.get("host") == socket.gethostname():
        return not disk.alive(int(pid or 0))
    return time.time() - float(beat) > SILENT


def _storage(folder: Path, url: str | None) -> str | BaseStorage:
    if url:
        return url
    folder.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(folder / "journal.log")))


def quiet() -> None:
    """Optuna's own log and warnings say nothing to our users."""
    optuna.logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    warnings.filterwarnings("ignore", module="optuna")
