"""conf/, as the command line sees it: its groups and keys, what was chosen, and the functions that its yamls call."""

import contextlib
import functools
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

FOLDER = Path(__file__).parents[2] / "conf"


def options(group: str) -> list[str]:
    """The names of a config group's yaml files."""
    return sorted(path.stem for path in (FOLDER / group).glob("*.yaml"))


def groups() -> list[str]:
    """The config groups of the command line."""
    return sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and path.name != "hydra")


def groups_of(names: Iterable[str]) -> list[str]:
    """The groups that these configs choose from."""
    configs: list[Any] = [OmegaConf.load(FOLDER / f"{name}.yaml") for name in names]
    defaults = [entry for config in configs for entry in config.get("defaults", [])]
    return sorted({key for entry in defaults if not isinstance(entry, str) for key in entry} & set(groups()))


def keys(name: str) -> list[str]:
    """Every key of the default config, dotted."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    def walk(node: object, prefix: str) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield f"{prefix}{key}"
                yield from walk(value, f"{prefix}{key}.")

    GlobalHydra.instance().clear()
    with contextlib.suppress(Exception), initialize_config_dir(str(FOLDER), version_base="1.3"):
        return [k for k in walk(OmegaConf.to_container(compose(name)), "") if "_target_" not in k]
    return []


def choices() -> dict[str, str]:
    """The option that was chosen from each config group, whatever package it was put in."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return {}
    chosen = HydraConfig.get().runtime.choices.items()
    return {k.split("@")[0]: str(v) for k, v in chosen if not k.startswith("hydra") and v is not None}


def register_resolvers() -> None:
    """The few functions that our yamls may call."""
    OmegaConf.register_new_resolver("out_channels", _out_channels, replace=True)
    OmegaConf.register_new_resolver("run_id", run_id, replace=True)
    OmegaConf.register_new_resolver("choice", _choice, replace=True)
    OmegaConf.register_new_resolver("launched", launched, replace=True)
    OmegaConf.register_new_resolver("accelerator", accelerator, replace=True)
    OmegaConf.register_new_resolver("options_of", _options_of, replace=True)


def _options_of(*names: str) -> str:
    """A paragraph for each config group, as a script's help shows those that are its business."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    return "".join(
        textwrap.fill(f"{name}: {', '.join(options(name))}", width, subsequent_indent="    ", break_on_hyphens=False)
        + "\n"
        for name in names
    )


def _out_channels(_root_: DictConfig) -> int:
    """What a network gives back for each channel it gets: twice as much if it also tells the variance."""
    learned = OmegaConf.select(_root_, "formulation.variance") == "learned"
    return _root_.dataset.channels * (2 if learned else 1)


def launched(what: str, default: int | str) -> int | str:
    """ "devices" (processes a node) or "nodes" of the launcher that started this process, torchrun or srun."""
    world = os.environ
    if "TORCHELASTIC_RUN_ID" in world:
        return int(world["LOCAL_WORLD_SIZE"] if what == "devices" else world["GROUP_WORLD_SIZE"])
    if "SLURM_STEP_NUM_TASKS" in world and "SLURM_PROCID" in world:
        nodes = int(world.get("SLURM_STEP_NUM_NODES", 1))
        return int(world["SLURM_STEP_NUM_TASKS"]) // nodes if what == "devices" else nodes
    return default


def accelerator() -> str:
    """ "auto"; on a Mac "cpu", since Apple's GPUs have no float64, in which noise schedules are computed."""
    return "cpu" if sys.platform == "darwin" else "auto"


def run_id() -> str:
    """A short random name, the same throughout a job of this process."""
    from hydra.core.hydra_config import HydraConfig

    running: Any = HydraConfig.get() if HydraConfig.initialized() else None
    job = None if running is None else OmegaConf.select(running, "job.num")
    return _random_name(job)


@functools.cache
def _random_name(job: int | None) -> str:
    import secrets

    return secrets.token_hex(4)


def _choice(group: str) -> str:
    return choices().get(group, group)


register_resolvers()  # here, for jobs that a launcher has pickled: they import this, and call nothing
