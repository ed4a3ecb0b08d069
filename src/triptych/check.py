"""What may be mistyped in a config and no constructor sees, or sees too late: refused in words, before any work."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

TYPED = ("model", "schedule", "sampler", "optimizer", "formulation")  # groups whose values keep the type of their yaml
LEAST = {  # the smallest value of a whole number; -1: no limit
    "seed": 0,
    "global_batch_size": 1,
    "num_samples": 1,
    "batch_size": 1,
    "first": 0,
    "repeats": 1,
    "n_trials": 1,
    "workers": 1,
    "gpus_per_trial": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.num_nodes": 1,
    "callback.likelihood.num_images": 0,
    "callback.vlb.num_images": 0,
    "callback.progress.every_n_steps": 1,
    "callback.samples.count": 1,
    "callback.samples.strip": 1,
    "callback.samples.moments": 1,
    "callback.samples.seed": 0,
    "callback.evaluate.num_samples": 0,
    "callback.evaluate.fast_num_samples": 1,
    "callback.evaluate.block": 1,
    "callback.evaluate.seed": 0,
    "formulation.warmup_steps": 0,
}
MAY_BE_ZERO = ("num_classes", "augment_channels", "dropout")  # of a model's sizes
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # of the network; all else is float32, which the others change
ALSO_KNOWN_AS = ("32", "bf16", "16")


def check(config: DictConfig, choices: Mapping[str, str], conf: Path) -> None:
    """Raises a ValueError that names the setting, what it is, and what it may be.

    Args:
        choices: the option that was chosen from each group.
        conf: the folder of the groups.
    """
    for key, least in LEAST.items():
        value = OmegaConf.select(config, key)
        if value is not None and (not _whole(value) or value < least):
            raise ValueError(f"{key} must be a whole number of at least {least}, got {value}.")
    _check_types(config, choices, conf)
    _check_model(config, choices)
    _check_trainer(config)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_types(config: DictConfig, choices: Mapping[str, str], conf: Path) -> None:
    """A number stays a number, and true or false stays one of the two."""
    for group in TYPED:
        path = conf / group / f"{choices.get(group)}.yaml"
        if not path.exists():
            continue
        stored: Any = OmegaConf.to_container(OmegaConf.load(path))
        for key, default in stored.items():
            value = OmegaConf.select(config, f"{group}.{key}")
            if isinstance(default, list) and value is not None and not isinstance(value, ListConfig):
                raise ValueError(f"{group}.{key} must be a list such as {default}, got {value}: type [{value}].")
        for key, default in _leaves(stored):
            value = OmegaConf.select(config, f"{group}.{key}")
            if isinstance(default, bool) and isinstance(value, str):
                raise ValueError(f"{group}.{key} must be true or false, got {value!r}.")
            if isinstance(default, (int, float)) and not isinstance(default, bool) and isinstance(value, str):
                raise ValueError(f"{group}.{key} must be a number such as {default}, got {value!r}.")


def _check_model(config: DictConfig, choices: Mapping[str, str]) -> None:
    model = OmegaConf.select(config, "model")
    if model is None:
        return
    for key, value in _leaves(OmegaConf.to_container(model, resolve=True)):
        name = key.split(".")[0]
        if _whole(value) and value < (0 if name in MAY_BE_ZERO else 1):
            raise ValueError(f"model.{name} must be at least {0 if name in MAY_BE_ZERO else 1}, got {value}.")
    dropout = model.get("dropout", 0)
    if isinstance(dropout, (int, float)) and not 0 <= dropout < 1:
        raise ValueError(f"model.dropout must be a share of at least 0 and below 1, got {dropout}.")
    classes = OmegaConf.select(config, "dataset.num_classes")
    known = model.get("num_classes", classes) or 0
    if classes and OmegaConf.select(config, "dataset.conditional") and known < classes:
        raise ValueError(
            f"dataset.conditional=true gives {classes} labels to the network, which knows of {known or 'none'}: "
            f"type model.num_classes={classes}, or dataset.conditional=false."
        )
    augment = OmegaConf.select(config, "dataset.augment")
    if augment and not model.get("augment_channels"):
        raise ValueError(
            f"dataset.augment={augment} tells the network what was done to an image, so that samples are not altered, "
            "and this one is not told: choose model=edm_ddpmpp or model=edm_ncsnpp with model.augment_channels=9, or "
            "dataset.augment=0."
        )
    points = OmegaConf.select(config, "dataset.resolution") is None
    if points != ("resolution" not in model):
        kinds = ("points", "images") if points else ("images", "points")
        said = {group: choices.get(group, group) for group in ("dataset", "model")}
        other = "mlp" if points else "unet_small"
        raise ValueError(
            f"dataset={said['dataset']} holds {kinds[0]}, but model={said['model']} is for {kinds[1]}: "
            f"choose another model, such as model={other}."
        )


def _check_trainer(config: DictConfig) -> None:
    trainer = OmegaConf.select(config, "trainer")
    precision = str(OmegaConf.select(config, "trainer.precision") or PRECISIONS[0])
    if precision not in (*PRECISIONS, *ALSO_KNOWN_AS):
        raise ValueError(f"trainer.precision must be one of {', '.join(PRECISIONS)}, got {precision}.")
    if trainer is None or "max_steps" not in trainer:
        return
    steps = trainer.max_steps
    if steps != -1 and (not _whole(steps) or steps < 1):
        raise ValueError(f"trainer.max_steps must be a number of optimizer steps, or -1 for no limit, got {steps}.")
    epochs = trainer.get("max_epochs")
    if _whole(epochs) and epochs < 1 and epochs != -1:
        raise ValueError(f"trainer.max_epochs must be at least 1, or null, or -1 for no limit, got {epochs}.")
    devices = trainer.get("devices")
    if _whole(devices) and devices < 1 and devices != -1:
        raise ValueError(f"trainer.devices must be at least 1, or auto, or -1 for all there are, got {devices}.")
    for key in ("val_check_interval", "gradient_clip_val"):
        value = trainer.get(key)
        if isinstance(value, (int, float)) and value <= 0:
            raise ValueError(f"trainer.{key} must be above 0, or null, got {value}.")


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every plain value in nested dicts and lists."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if pairs is None:
        yield prefix, node
        return
    for key, value in pairs:
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
