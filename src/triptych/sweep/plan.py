"""From the overrides of a grid to trials: what each is called and needs, and which cannot work."""

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.progress import track

from triptych.sweep import machine
from triptych.sweep.feasible import as_chosen, why_not
from triptych.sweep.trial import IMPOSSIBLE, Trial, folder_of, shown

Compose = Callable[[Sequence[str]], DictConfig]
MANY = 20  # trials whose checking takes long enough for a progress bar
IRRELEVANT = ("seed=", "name=", "logger", "optimizer.")  # overrides that make no combination impossible


@dataclass
class Planned:
    """A trial with its composed config as plain values."""

    trial: Trial
    config: dict[str, Any]


def plan(
    sweep: Path, jobs: Sequence[Sequence[str]], compose: Compose, gpus: int, gpus_per_trial: int | None
) -> list[Planned]:
    """Every different trial once, the impossible ones marked.

    Args:
        jobs: the overrides of each. compose: a trial's overrides -> its config. gpus: of this machine.
    """
    jobs = [[o for o in overrides if not o.startswith("resume=")] for overrides in jobs]  # trials go on by themselves
    jobs = list({tuple(sorted(overrides)): overrides for overrides in jobs}.values())
    known: dict[tuple[str, ...], str | None] = {}
    planned = []
    hidden = len(jobs) < MANY or not sys.stdout.isatty()
    for overrides in track(jobs, "checking", disable=hidden, transient=True):
        config = compose(overrides)
        steps, folder = config.trainer.get("max_steps", -1), folder_of(sweep, overrides, jobs)
        trial = Trial(folder.name, tuple(overrides), folder, steps=steps if steps > 0 else None)
        trial.differs = tuple(shown(overrides, jobs))
        key = tuple(sorted(o for o in overrides if not o.startswith(IRRELEVANT)))
        try:
            trial.gpus, trial.processes = machine.needs(config.trainer, gpus, gpus_per_trial)
            if key not in known:
                known[key] = why_not(config, trial.processes)
        except ValueError as error:
            known[key] = str(error)
        if reason := known[key]:
            trial.state, trial.reason = IMPOSSIBLE, reason
        with as_chosen(config):
            plain = {} if reason else _plain(config)
        planned.append(Planned(trial, plain))
    return planned


def _plain(config: DictConfig) -> dict[str, Any]:
    """The task's config, as the task sees it."""
    task = copy.deepcopy(config)
    with read_write(task), open_dict(task):
        del task["hydra"]
    return OmegaConf.to_container(task, resolve=True)  # pyright: ignore[reportReturnType]
