"""What a study leaves: a table, a page of plots, and the best trials as experiments that train.py can run."""

import csv
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from triptych import disk
from triptych.sweep.experiment import experiment
from triptych.sweep.plots import page
from triptych.sweep.space import overrides
from triptych.sweep.study import Study
from triptych.sweep.trial import FAILED, FINISHED, PRUNED, RUNNING, WAITING

if TYPE_CHECKING:
    from triptych.sweep.search import Plan

NAMES = {
    TrialState.COMPLETE: FINISHED,
    TrialState.PRUNED: PRUNED,
    TrialState.FAIL: FAILED,
    TrialState.RUNNING: RUNNING,
    TrialState.WAITING: WAITING,
}


def write_table(folder: Path, study: Study, objectives: Sequence[str]) -> Path:
    """trials.csv: one row a trial; any process may write it, and all write the same."""
    trials = study.trials()
    names = sorted({name for t in trials for name in t.params})
    path = folder / "trials.csv"
    with disk.replacing(path, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", *objectives, *names, "measurements", "host", "folder", "reason"])
        for t in trials:
            values = t.values if t.state == TrialState.COMPLETE and t.values else [""] * len(objectives)
            about = [t.user_attrs.get(key, "") for key in ("host", "folder", "reason")]
            parameters = [t.params.get(name, "") for name in names]
            writer.writerow([t.number, NAMES[t.state], *values, *parameters, len(t.intermediate_values), *about])
    return path


def best(study: Study) -> list[FrozenTrial]:
    """The best trial, or those of the Pareto front of several objectives."""
    complete = [t for t in study.trials() if t.state == TrialState.COMPLETE]
    if not complete:
        return []
    found = study.study.best_trials
    return sorted(found, key=lambda t: t.values)[: 1 if len(study.study.directions) == 1 else None]


def write(plan: "Plan", study: Study) -> str:
    """Writes everything, and says in a few lines what it was."""
    folder, objectives = plan.folder, list(plan.objectives)
    table = write_table(folder, study, objectives)
    states = Counter(NAMES[t.state] for t in study.trials())
    lines = [", ".join(f"{count} {state}" for state, count in states.items()) + "."]
    chosen = best(study)
    for trial in chosen:
        name = "best" if len(objectives) == 1 else f"best_{trial.number}"
        lines += _best(plan, trial, name)
    lines.append(f"  table     {os.path.relpath(table)}")
    if chosen:
        where, left_out = page(study.study, objectives, folder / "study.html")
        lines.append(
            f"  plots     {os.path.relpath(where)}" + (f" (without {', '.join(left_out)})" if left_out else "")
        )
    return "\n".join(lines)


def _best(plan: "Plan", trial: FrozenTrial, name: str) -> list[str]:
    given = [*plan.base, *overrides(trial.params)]
    values = zip(plan.objectives, trial.values, strict=True)
    result = ", ".join(f"{metric} {value:.4g}" for metric, value in values)
    lines = [f"Best: trial {trial.number}, {result}; {' '.join(overrides(trial.params))}"]
    try:
        text = experiment(given, f"Trial {trial.number} of {plan.folder.name}: {result}.")
    except ValueError as error:
        return [*lines, f"  It cannot be written as an experiment: {error}"]
    path = plan.folder / "experiment" / f"{name}.yaml"
    with disk.replacing(path) as file:
        file.write(text)
    shown = os.path.relpath(plan.folder)
    return [*lines, f"  again     python train.py --config-dir {shown} experiment={name}"]
