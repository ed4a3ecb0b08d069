"""What is left of a run, read from its folder: nothing is required, and whatever is missing is said."""

import glob
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from triptych import record, status
from triptych.scalars import AXIS, read_csv

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MARKS = ("config.yaml", "overrides.yaml", "metrics.csv", status.NAME, "checkpoints")  # any of them: a run's folder
UNKNOWN = "unknown"
PAUSE = 600.0  # seconds without a row that are taken for a pause, not for training


@dataclass
class Run:
    """One training run.

    Attributes:
        name: short and unique in its report.
        status: running, finished, interrupted, failed, lost, as triptych.status tells; or unknown.
        notes: what a reader must know about it: no evaluation, an older version, an unreadable file.
        scalars: metric -> (images seen, seconds of training so far, value), as logged.
        grids, strips: images seen -> a picture of samples, and of their denoising.
        environment: versions, machine, devices: what is known.
        links: text -> address.
    """

    name: str
    folder: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    status: str = UNKNOWN
    notes: list[str] = field(default_factory=list)
    scalars: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    grids: dict[int, Path] = field(default_factory=dict)
    strips: dict[int, Path] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    images_seen: int | None = None
    seconds: float | None = None

    @property
    def seed(self) -> Any:
        return self.config.get("seed")


def find(where: str | list[str]) -> list[Path]:
    """The run folders at or below each folder or glob, sorted; refuses, in words, where there are none."""
    patterns = [where] if isinstance(where, str) else list(where)
    found: set[Path] = set()
    for pattern in patterns:
        start = re.sub(r"(/\*\*)+/?$", "", pattern) or pattern  # what lies below is searched anyway
        places = [start] if os.path.isdir(start) else glob.glob(os.path.expanduser(start), recursive=True)
        for place in places:
            found.update(_below(Path(place)))
    if not found:
        shown = ", ".join(patterns)
        raise FileNotFoundError(
            f"There are no runs at {shown}: give runs=<a folder of runs, or a glob in quotes>, e.g. runs='runs/**'."
        )
    return sorted(found)


def _below(place: Path) -> Iterator[Path]:
    """Run folders from here downwards; a run holds no other run."""
    for folder, inside, files in os.walk(place):
        if any(mark in files or mark in inside for mark in MARKS):
            inside.clear()
            yield Path(folder)
        else:
            inside[:] = sorted(name for name in inside if name != "wandb" and not name.startswith("."))


def names(folders: list[Path]) -> list[str]:
    """Each folder's path below what they all share."""
    if len(folders) == 1:
        return [folders[0].name or str(folders[0])]
    shared = os.path.commonpath([f.absolute() for f in folders])
    return [os.path.relpath(f.absolute(), shared) for f in folders]


def read(folder: Path, name: str) -> Run:
    """Everything in a run's folder; what cannot be read becomes a note."""
    run = Run(name, folder)
    run.config = _yaml(run, "config.yaml", dict) or {}
    run.overrides = [str(o) for o in _yaml(run, "overrides.yaml", list) or []]
    _read_scalars(run)
    run.records = [r for r in record.read(folder / "evaluations") if _usable(r, run)]
    run.grids, run.strips = _pictures(folder / "samples"), _pictures(folder / "samples" / "strip")
    _read_status(run)
    _describe(run)
    return run


def _usable(found: dict[str, Any], run: Run) -> bool:
    value = found.get("value")
    if isinstance(found.get("metric"), str) and isinstance(value, (int, float)) and math.isfinite(value):
        return True
    run.notes.append("a file in evaluations/ is not a record")
    return False


def _yaml(run: Run, name: str, kind: type) -> Any:
    assert run.folder is not None
    try:
        with (run.folder / name).open() as file:
            content = yaml.load(file, Loader)  # noqa: S506 (a safe loader)
    except FileNotFoundError:
        run.notes.append(f"no {name}")
        return None
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        run.notes.append(f"{name} cannot be read")
        return None
    if not isinstance(content, kind):
        run.notes.append(f"{name} cannot be read")
        return None
    return content


def _read_scalars(run: Run) -> None:
    assert run.folder is not None
    try:
        rows = read_csv(run.folder / "metrics.csv")
    except FileNotFoundError:
        run.notes.append("no metrics.csv")
        return
    except (OSError, ValueError, UnicodeDecodeError):
        run.notes.append("metrics.csv cannot be read to its end")
        return
    add_scalars(run, rows)


def add_scalars(run: Run, rows: list[dict[str, float]]) -> None:
    """Rows of {images_seen, time, metric: value, ...}, in order. Pauses are not training: they are left out."""
    last, seconds = None, 0.0
    for row in rows:
        now = row.get("time")
        if now is not None:
            if last is not None and 0 < now - last < PAUSE:
                seconds += now - last
            last = now
        seen = row.get(AXIS)
        if seen is None:
            continue
        run.images_seen = max(run.images_seen or 0, int(seen))
        for metric, value in row.items():
            if metric not in (AXIS, "step", "time") and math.isfinite(value):
                run.scalars.setdefault(metric, []).append((seen, seconds, value))
    run.seconds = seconds if rows else None


def _pictures(folder: Path) -> dict[int, Path]:
    found = {}
    for path in folder.glob("images_seen=*.png") if folder.is_dir() else ():
        if number := re.fullmatch(r"images_seen=(\d+)", path.stem):
            found[int(number[1])] = path
    return dict(sorted(found.items()))


def _read_status(run: Run) -> None:
    assert run.folder is not None
    told = status.read(run.folder)
    if told is None:
        unread = (run.folder / status.NAME).exists()
        run.notes.append(
            "status.json cannot be read" if unread else "no status.json: from an older version, or not started"
        )
        return
    run.status = told.state
    run.images_seen = max(run.images_seen or 0, told.images_seen)
    known = {"phase": told.phase, "step": told.step, "max_steps": told.max_steps, "started": told.started}
    known |= {"last heard of": told.updated, "host": told.host, "SLURM job": told.job, "exit code": told.exit_code}
    if told.state != "running":
        del known["phase"]
    if told.max_steps < 0:
        del known["max_steps"]
    run.environment |= {k: v for k, v in known.items() if v not in ("", None)}
    if told.environment:
        run.environment["trained with"] = told.environment
    if told.state == "lost":
        run.notes.append("its status says running, but its process is gone")
    elif told.reason and told.state != "finished":
        run.notes.append(told.reason)


def _describe(run: Run) -> None:
    """Notes, environment and links that follow from the rest."""
    if not run.records:
        run.notes.append("no evaluation")
    if run.config and "choices" not in run.config:
        run.notes.append("from an older version: its config does not name the options that were chosen")
    if run.records and isinstance(code := run.records[-1].get("code"), dict):
        run.environment["evaluated with"] = code
    trainer = run.config.get("trainer")
    if isinstance(trainer, dict):
        told = ("accelerator", "devices", "num_nodes", "precision")
        run.environment["trainer"] = {k: trainer[k] for k in told if k in trainer}
    assert run.folder is not None
    run.links["folder"] = str(run.folder)
    logger, run_id = run.config.get("logger"), run.config.get("run_id")
    if isinstance(logger, dict) and run_id:
        offline = sorted((run.folder / "wandb").glob(f"offline-run-*-{run_id}"))
        online = sorted((run.folder / "wandb").glob(f"run-*-{run_id}"))
        if online and logger.get("entity"):
            address = f"https://wandb.ai/{logger['entity']}/{logger.get('project')}/runs/{run_id}"
            run.links["W&B"] = address
        elif offline:
            run.environment["W&B"] = f"offline: wandb sync {offline[-1]}"
        elif online:
            run.environment["W&B"] = f"project {logger.get('project')}, run {run_id}"
