"""The command line of sweep.py: its own settings stay, everything else is train.py's; a study brings what it was."""

from pathlib import Path
from typing import Any

from hydra import compose
from hydra.errors import HydraException
from omegaconf import OmegaConf

from triptych import conf
from triptych.recall import check_stored, quoted
from triptych.refusal import explain

OF_A_CALL = ("n_trials", "workers", "gpus_per_trial", "study", "storage", "wandb")  # may differ from call to call


def sort(arguments: list[str]) -> list[str]:
    """`formulation=ddpm n_trials=3` -> `n_trials=3 train=['formulation=ddpm']`."""
    if any(a in ("-h", "--help", "--hydra-help", "--version") for a in arguments):
        return arguments
    if any(a in ("-m", "--multirun") for a in arguments):
        raise ValueError("sweep.py is a sweep already: leave out -m, or use train.py -m for a grid.")
    arguments = _of_the_study(arguments)
    known = set(OmegaConf.load(conf.FOLDER / "sweep.yaml")) - {"defaults", "train"}  # pyright: ignore[reportArgumentType]
    own, others = [], []
    for argument in arguments:
        key = _key(argument)
        ours = key.partition(".")[0].partition("/")[0] in known | {"sweep"} or key.startswith("hydra")
        (own if ours or argument.startswith("-") or "=" not in argument else others).append(argument)
    return [*own, f"train={quoted(others)}"]


def check(config: Any) -> None:
    """Refuses settings of train.py that there are not, before anything slow is imported.

    Where the space chooses options of a group, what is set of any group may fit one of its options only: that is tried
    out later, by the search.
    """
    base = [str(o) for o in config.train]
    grouped = [name for name in config.sweep.space if name in conf.groups()]
    settings = [o for o in base if not grouped or _key(o).partition(".")[0] not in conf.groups()]
    try:
        compose("train", settings, return_hydra_config=True)
    except HydraException as error:
        raise ValueError(explain(error, "train", "sweep")) from error


def _of_the_study(arguments: list[str]) -> list[str]:
    """What a study was started with comes first, where the command line does not say otherwise."""
    folder = next((a.partition("=")[2].strip("'\"") for a in arguments if a.startswith("study=")), None)
    if not folder or not (Path(folder) / "study.yaml").exists():
        return arguments
    given = {_key(a) for a in arguments}
    stored: Any = OmegaConf.load(Path(folder) / "study.yaml")
    before = [str(a) for a in stored.arguments if _key(str(a)) not in given]
    check_stored(before, Path(folder) / "study.yaml", "hydra")
    return [*before, *arguments]


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+~")
