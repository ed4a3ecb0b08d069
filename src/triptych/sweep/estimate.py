"""How long a sweep will take: from runs that there have been, or else from a few training steps made for it."""

import csv
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from triptych import status
from triptych.sweep import machine
from triptych.sweep.screen import clock
from triptych.sweep.trial import Trial

LOOKED_AT = 40  # earlier runs, the newest
PATIENCE = 90.0  # seconds that measuring may take
SHAPES_THE_STEP = ("model", "formulation", "global_batch_size", "compile")
OF_THE_TRAINER = ("accelerator", "devices", "num_nodes", "strategy", "precision", "accumulate_grad_batches")
SHAPES_THE_END = ("callback", "sampler", "metric")


@dataclass(frozen=True)
class Cost:
    """Of one trial. `rest`: seconds beside training (start, evaluations); None if no earlier run tells."""

    per_step: float
    rest: float | None


def shape(config: dict[str, Any]) -> str:
    """What the time of a training step depends on; two configs of the same shape take as long."""
    plain = {key: config.get(key) for key in SHAPES_THE_STEP}
    formulation = plain.get("formulation") or {}
    plain["formulation"] = {k: v for k, v in formulation.items() if k not in ("optimizer", "seed", "warmup_steps")}
    trainer = config.get("trainer") or {}
    return json.dumps([plain, {k: trainer.get(k) for k in OF_THE_TRAINER}], sort_keys=True, default=str)


def whole_shape(config: dict[str, Any]) -> str:
    """What the rest of a run depends on too."""
    return shape(config) + json.dumps({k: config.get(k) for k in SHAPES_THE_END}, sort_keys=True, default=str)


def earlier(folders: Sequence[Path]) -> dict[str, Cost]:
    """What runs in these folders took: by `shape`, and by `whole_shape` where they came to their end."""
    found: dict[str, list[Cost]] = {}
    runs = [
        path for folder in folders for path in folder.glob("**/config.yaml") if (path.parent / "metrics.csv").exists()
    ]
    for path in sorted(runs, key=lambda p: p.stat().st_mtime)[-LOOKED_AT:]:
        try:
            config = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            with (path.parent / "metrics.csv").open(newline="") as file:
                cells = [row.get("train/images_per_second") for row in csv.DictReader(file)]
            rate = statistics.median(float(cell) for cell in cells[1:] if cell)  # the first one warms up
            batch = config["global_batch_size"]
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            continue
        run = status.read(path.parent)
        found.setdefault(shape(config), []).append(Cost(batch / rate, None))
        if run is not None and run.state == "finished":
            took = datetime.fromisoformat(run.updated) - datetime.fromisoformat(run.started)
            rest = max(0.0, took.total_seconds() - run.images_seen / rate)
            found.setdefault(whole_shape(config), []).append(Cost(batch / rate, rest))
    return {key: _middle(costs) for key, costs in found.items()}


def _middle(costs: list[Cost]) -> Cost:
    rests = [c.rest for c in costs if c.rest is not None]
    return Cost(statistics.median(c.per_step for c in costs), statistics.median(rests) if rests else None)


def measure(configs: Sequence[dict[str, Any]], gpus: list[str], threads: int) -> list[float | None]:
    """Seconds a training step of each config, measured in a process of its own, alone on this machine."""
    command = [sys.executable, "-m", "triptych.sweep.measure"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(list(configs), default=str),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=machine.environment(gpus[:1], threads),
        )
        return json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, json.JSONDecodeError, OSError):
        return [None] * len(configs)


def sentence(trials: Sequence[tuple[Trial, dict[str, Any]]], n_jobs: int, gpus: list[str], threads: int) -> str:
    """About how long these trials will take together, and how that is known.

    Args:
        trials: with the plain config of each.
    """
    parents = {trial.folder.parent for trial, _ in trials}
    known = earlier(sorted({Path("runs"), *parents}))
    unknown = {shape(c): c for _, c in trials if shape(c) not in known and whole_shape(c) not in known}
    if unknown:
        times = measure(list(unknown.values()), gpus, threads)
        known |= {key: Cost(t, None) for key, t in zip(unknown, times, strict=True) if t}
    seconds, with_the_rest = 0.0, True
    for trial, config in trials:
        cost = known.get(whole_shape(config)) or known.get(shape(config))
        limit = _limit(config)
        if cost is None or (trial.steps is None and limit is None):
            return "How long it takes is not known yet."
        training = min(trial.steps * cost.per_step if trial.steps else float("inf"), limit or float("inf"))
        seconds += training + (cost.rest or 0.0)
        with_the_rest &= cost.rest is not None
    about = clock(seconds / max(1, min(n_jobs, len(trials))))
    by = "a few steps of each network just measured" if unknown else "earlier runs of the same networks"
    more = "with evaluations" if with_the_rest else "for training alone; starting and evaluating come on top"
    return f"About {about} in all {more} (from {by})."


def _limit(config: dict[str, Any]) -> float | None:
    """`trainer.max_time` in seconds."""
    text = config["trainer"].get("max_time")
    if not isinstance(text, str):
        return None
    try:
        days, hours, minutes, seconds = (int(part) for part in text.split(":"))
    except ValueError:
        return None
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
