"""The ledger of a sweep: one row a trial, for people and for going on after a crash; written whole or not at all."""

import csv
import shlex
from collections.abc import Iterable
from pathlib import Path

from triptych import disk
from triptych.sweep.trial import RUNNING, Trial

COLUMNS = ("trial", "state", "result", "attempts", "seconds", "reason", "overrides")


def write(path: Path, trials: Iterable[Trial]) -> None:
    with disk.replacing(path, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for t in trials:
            seconds = round(t.seconds)
            writer.writerow([t.name, t.state, t.result, t.attempts, seconds, t.reason, shlex.join(t.overrides)])


def recall(path: Path, trials: Iterable[Trial]) -> None:
    """What an earlier sweep in this folder knew of these trials; one that was running then was cut off."""
    if not path.exists():
        return
    with path.open(newline="") as file:
        known = {row["trial"]: row for row in csv.DictReader(file)}
    for trial in trials:
        row = known.get(trial.name)
        if row is None or trial.over:
            continue
        trial.attempts, trial.seconds = int(row["attempts"]), float(row["seconds"])
        trial.state, trial.result, trial.reason = row["state"], row["result"], row["reason"]
        if trial.state == RUNNING:
            trial.reason = "was cut off"
