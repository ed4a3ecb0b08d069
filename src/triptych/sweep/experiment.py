"""Overrides of train.py as an experiment's yaml, which composes to the same config."""

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from triptych import conf

SKIPPED = ("hydra", "resume")


def experiment(overrides: Sequence[str], about: str) -> str:
    """The text of a yaml for `--config-dir <its parent's parent> experiment=<its name>`.

    Args:
        overrides: as on the command line; where one comes twice, the last one counts.

    Raises:
        ValueError: an override takes something away, which an experiment cannot.
    """
    defaults: dict[str, Any] = {}
    values = OmegaConf.create({})
    base: list[str] = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.key_or_group, override.value()
        if key.partition(".")[0] in SKIPPED or key.startswith("hydra/"):
            continue
        if override.is_delete():
            raise ValueError(f"{override.input_line} takes something away: give it on the command line.")
        if key == "experiment":
            base = [str(value)] if value is not None else []
        elif "/" in key or ("." not in key and (names := conf.options(key)) and (value is None or str(value) in names)):
            defaults[f"override /{key}"] = value
        else:
            OmegaConf.update(values, key, value, force_add=True)
    listed = [*({k: v} for k, v in defaults.items()), "_self_"]
    content = {"defaults": [*base, *listed], **(OmegaConf.to_container(values) or {})}  # pyright: ignore
    return f"# @package _global_\n# {about}\n{OmegaConf.to_yaml(content)}"
