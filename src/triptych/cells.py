"""`-m` of evaluate.py: many samplers on one checkpoint, in one process. Imports nothing heavy.

Hydra's own launcher would start over for each of them: read the checkpoint, build the reference, draw the noise. So the
lists are taken from the command line, multiplied out by Hydra's own parser, and handed on as one setting, `grid`, which
processes that the task starts get as well.
"""

import itertools
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from typing import Any

from omegaconf import DictConfig

from triptych import conf
from triptych.recall import quoted

FLAGS = ("-m", "--multirun")
VARIED = ("sampler", "guidance", "ema", "weights")  # what leaves checkpoint, reference and noise as they are


def collect(arguments: list[str]) -> list[str]:
    """`-m sampler=a,b sampler.steps=1,2 x=y` becomes `x=y grid=[[sampler=a,sampler.steps=1],...]`.

    Whatever is said of the varied groups goes into every cell, so that the rest composes without it.
    """
    if not any(a in FLAGS for a in arguments):
        return arguments
    from hydra.core.override_parser.overrides_parser import OverridesParser

    kept: list[str] = []
    axes: list[list[str]] = []
    for argument in arguments:
        if argument in FLAGS:
            continue
        if argument.startswith("-") or "=" not in argument:
            kept.append(argument)
            continue
        (override,) = OverridesParser.create().parse_overrides([argument])
        key = override.get_key_element()
        group = key.lstrip("+~").split("@")[0].split(".")[0]
        sweeps = override.is_sweep_override()
        if group not in VARIED:
            if sweeps:
                raise ValueError(
                    f"-m compares samplers and averages on one checkpoint, not {argument!r}: only "
                    f"{', '.join(VARIED)} and their settings may be lists; for the rest start evaluate.py once for "
                    "each value."
                )
            kept.append(argument)
        elif sweeps:
            axes.append([f"{key}={value}" for value in _values(override, group)])
        else:
            axes.append([argument])
    grid = [list(cell) for cell in itertools.product(*axes)]
    if len(grid) < 2:
        raise ValueError("-m needs a list to go through, such as sampler=ddim,heun sampler.steps=10,20,50.")
    return [*kept, f"grid={quoted(grid)}"]


def compose(name: str, overrides: list[str]) -> DictConfig:
    """The config `name` with these overrides, also inside of a job of Hydra's."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf.FOLDER), version_base="1.3"):
        return hydra.compose(name, overrides)


def _values(override: Any, group: str) -> Iterator[str]:
    if hasattr(override.value(), "include"):  # glob(...): of the group's yamls
        glob = override.value()
        for name in conf.options(group):
            if any(fnmatch(name, p) for p in glob.include) and not any(fnmatch(name, p) for p in glob.exclude):
                yield name
        return
    yield from map(str, override.sweep_string_iterator())


def varied(grid: Sequence[Sequence[str]]) -> list[str]:
    """The keys whose values differ between cells, in the order they are written: sampler, sampler.steps, ..."""
    keys = list(dict.fromkeys(key for cell in grid for key in settings(cell)))
    return [key for key in keys if len({settings(cell).get(key) for cell in grid}) > 1]


def settings(cell: Sequence[str]) -> dict[str, str]:
    """What a cell says, the last word of each key."""
    pairs = (override.split("=", 1) for override in cell)
    return {key.lstrip("+~"): value for key, value in pairs}
