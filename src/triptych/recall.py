"""A command line that names a run, or a sweep, is completed by that run's own settings."""

import re
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from triptych import conf
from triptych.layout import config_beside
from triptych.refusal import NO_DEFAULT


def resume_arguments(arguments: list[str]) -> list[str]:
    """`resume=<run folder>` becomes the run's own overrides, then the new ones, written in that folder.

    `resume=auto hydra.run.dir=<folder>` does so if there is a run to continue, and else begins one there.
    """
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    folder = given.get("resume")
    many = bool({"-m", "--multirun"} & {*arguments})
    if many and folder is None and given.get("hydra/launcher", "processes") != "processes":
        return [*arguments, "resume=auto"]  # a job that is submitted again goes on
    if not folder or folder == "null":
        return arguments
    if many:
        if folder == "auto":
            return arguments  # every trial looks in its own folder
        return _sweep_arguments(Path(folder), [a for a in arguments if not a.startswith("resume=")])
    auto = folder == "auto"
    if auto:
        folder = given.get("hydra.run.dir", "").strip("'\"")
        if not folder:
            raise ValueError("resume=auto needs a folder to look in, the same each time: give hydra.run.dir=….")
        if not (Path(folder) / "overrides.yaml").exists():
            return arguments  # there is nothing yet
    stored = Path(folder) / "overrides.yaml"
    if not stored.exists():
        raise FileNotFoundError(f"There is no run to resume at {folder}: it has no overrides.yaml.")
    before = [str(a) for a in OmegaConf.load(stored) if not str(a).startswith(("resume=", "hydra.run.dir="))]
    check_stored(before, stored, "hydra")
    before = [override for override in before if override not in arguments]  # a resubmission says them again
    return [*before, *arguments, *([] if auto else [f"hydra.run.dir={quoted(str(Path(folder)))}"])]


def _sweep_arguments(folder: Path, arguments: list[str]) -> list[str]:
    """`-m resume=<sweep folder>` becomes the sweep's own arguments, where the command line does not say otherwise."""
    stored = folder / "multirun.yaml"
    if not stored.exists():
        raise FileNotFoundError(f"There is no sweep to resume at {folder}: it has no multirun.yaml.")
    overrides = OmegaConf.load(stored).hydra.overrides
    given = {a.split("=", 1)[0] for a in arguments} | {"hydra.mode", "hydra.sweep.dir"}
    before = [str(a) for a in (*overrides.hydra, *overrides.task) if str(a).split("=", 1)[0] not in given]
    check_stored(before, stored, "hydra.searchpath")
    return [*before, *arguments, f"hydra.sweep.dir={quoted(str(folder))}"]


def check_stored(overrides: list[str], file: Path, forbidden: str) -> None:
    """Refuses overrides from a file that would call what they like."""
    for override in overrides:
        if "_target_" in override or override.lstrip("+~").startswith(forbidden):
            raise ValueError(f"{file} says {override!r}, which a file may not ask for: remove that line.")


def run_arguments(arguments: list[str], nodes: tuple[str, ...], instead: tuple[str, ...] = ()) -> list[str]:
    """`run=<folder or checkpoint>` brings the run's own choices of these nodes, which the command line may override.

    A node that is not chosen anew by `node=option` comes as the run's option, with the values that the run gave it.
    With -m, what is brought has one value each, the same in every job; a grid over a node (`-m sampler=ddim,heun`) is
    a choice of it, so nothing of the run's is brought there.

    Args:
        instead: settings with which no run is needed.
    """
    given = dict(a.split("=", 1) for a in arguments if "=" in a and not a.startswith("-"))
    run = given.get("run")
    asks = any(a.startswith("-") and a not in ("-m", "--multirun", "-r", "--run") for a in arguments)  # for a page
    if not run and not asks and not {key.lstrip("+") for key in given} & {"run", *instead}:
        raise ValueError(NO_DEFAULT.format("run"))
    if not run or any(a in ("--help", "-h", "--hydra-help") for a in arguments):
        return arguments
    config = _stored_config(Path(run))
    brought: list[str] = []
    for node in nodes:
        values = config.get(node)
        if node in given or not isinstance(values, dict) or "_target_" not in values:
            continue
        option = config.get("choices", {}).get(node)
        if option in conf.options(node):
            brought.append(f"{node}={option}")
            brought += [f"++{key}={value}" for key, value in _leaves(values, node)]
    # checkpoints are called step=100.ckpt, which Hydra reads in quotes only
    return [*brought, *(f"run={quoted(run)}" if a == f"run={run}" and "=" in run else a for a in arguments)]


def _stored_config(path: Path) -> dict:
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {path}: give run=<a run folder or a .ckpt file>.")
    stored = config_beside(path)
    if stored is None:  # a lone checkpoint: its config is inside
        from triptych.run import read_checkpoint

        stored = dict(read_checkpoint(path).get("hyper_parameters", {}))
    return stored


def _leaves(values: dict, prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}.{key}"
        if isinstance(value, dict) and value and not any("." in str(k) for k in value):  # dots part keys, in Hydra
            yield from _leaves(value, name)
        else:
            yield name, quoted(value)


def quoted(value: object) -> str:
    """A value as Hydra's override grammar reads it back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(quoted(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{quoted(v)}" for k, v in value.items()) + "}"
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + m[2].replace("'", "\\'"), str(value))
    return f"'{escaped}'"  # backslashes are special before a quote only
