"""A run on disk: its folder, its config, and the way from a checkpoint back to a formulation, safely."""

import importlib
import pickle
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from triptych import disk, pieces, posthoc, status
from triptych.formulation import Formulation
from triptych.layout import checkpoint_of, checkpoints, folder_of

# What a config that comes with a checkpoint may build: our own public classes, and torch's optimizers.
ALLOWED = re.compile(
    r"triptych\.(schedule|model|formulation|sampler|guidance|dataset|metric|callback)(\.\w+)?\.[A-Z]\w*"
    r"|triptych\.metric\.(fd_extractor|feature_metrics)"
    r"|torch\.optim\.[A-Z]\w+"
)


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed config as nested dicts of plain values, all interpolations resolved."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return container  # pyright: ignore[reportReturnType]


def write_config(folder: Path, config: dict[str, Any], overrides: list[str]) -> None:
    """Writes config.yaml and overrides.yaml: enough to run it again."""
    for name, content in (("config.yaml", config), ("overrides.yaml", overrides)):
        with disk.replacing(folder / name) as file:
            OmegaConf.save(OmegaConf.create(content), file)


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """A checkpoint's content, tensors and plain values only; refuses a truncated file, and code (weights_only)."""
    path = checkpoint_of(path)
    if path.is_dir():
        return pieces.read(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path) or "weights_only" in str(error).lower() or "unsupported" in str(error).lower():
            raise ValueError(
                f"The checkpoint {path} holds something other than tensors and plain values, and is not loaded."
            ) from error
        raise ValueError(f"The file {path} is not a checkpoint, or only a part of one.") from error
    except Exception as error:  # of a file that is no pickle, the unpickler says whatever its first bytes lead to
        raise ValueError(f"The file {path} is not a checkpoint, or only a part of one.") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"The file {path} is not a checkpoint of Triptych: it has no state_dict.")
    return checkpoint


def newest(folder: Path | str) -> tuple[Path | None, int | None]:
    """The newest checkpoint of a run folder that can be read, and its step; (None, None) if there is none.

    One that cannot be read is named and skipped; if none can, that is refused, lest a run be begun anew by mistake.
    """
    refused = []
    for path in checkpoints(folder):
        try:
            step = (pieces.about(path)["checkpoint"] if path.is_dir() else read_checkpoint(path))["global_step"]
        except ValueError as error:
            refused.append(str(error))
            continue
        for sentence in refused:
            print(f"{sentence} It is skipped.", file=sys.stderr)
        return path, step
    if refused:
        raise ValueError(f"{refused[0]} No other can be read either: remove them to begin anew.")
    return None, None


def newest_step(folder: Path | str) -> int | None:
    """The optimizer step of the newest checkpoint, read without its tensors."""
    for path in checkpoints(folder):
        try:
            if path.is_dir():
                return pieces.about(path)["checkpoint"]["global_step"]
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"]
        except Exception:  # whatever is wrong with it, it is not the newest one that can be read
            continue
    return None


def finished(folder: Path | str) -> bool:
    """Whether a run has been trained and evaluated to its end."""
    known = status.read(folder)
    return known is None or known.state == "finished"


def build(config: dict[str, Any], **extra: Any) -> Any:
    """Instantiates a config that came from a file, through the allow-list of targets only."""
    import hydra

    check_targets(config)
    return hydra.utils.instantiate(config, **extra)


def check_targets(config: Any) -> None:
    """Refuses a config with a `_target_` that is not on the allow-list, or an interpolation that may become one."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key == "_target_" and not _allowed(value):
                raise ValueError(f"The stored config wants to call {value!r}, which is not allowed.")
            check_targets(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            check_targets(value)
    elif isinstance(config, str) and "${" in config:
        raise ValueError(f"The stored config holds {config!r}, which stands for something else, and is not used.")


def _allowed(target: Any) -> bool:
    """Whether a target's name is on the list, and is not something that one of our modules merely imports."""
    if not isinstance(target, str) or not ALLOWED.fullmatch(target):
        return False
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    return str(getattr(found, "__module__", "")).startswith(("triptych.", "torch.optim."))


def read_config(path: Path | str, checkpoint: dict[str, Any] | None = None) -> dict[str, Any]:
    """The composed config of a run: from its checkpoint, or from config.yaml beside it."""
    if checkpoint is not None and checkpoint.get("hyper_parameters"):
        return dict(checkpoint["hyper_parameters"])
    stored = folder_of(path) / "config.yaml"
    if not stored.exists():
        raise FileNotFoundError(f"Neither the checkpoint nor {stored} holds the config of this run.")
    return plain(OmegaConf.load(stored))  # pyright: ignore[reportArgumentType]


def load(path: Path | str, weights: str = "ema") -> Formulation:
    """A formulation in eval mode from a run folder or a checkpoint file.

    Args:
        weights: "ema", the averaged weights; "raw"; or "ema=0.10", the average of that relative length, rebuilt from
            the run's snapshots. A run trained without an average has raw ones only.
    """
    return restore(read_checkpoint(path), path, weights)


def restore(checkpoint: dict[str, Any], path: Path | str, weights: str = "ema") -> Formulation:
    """`load`, from a checkpoint that has been read."""
    formulation = build(read_config(path, checkpoint)["formulation"])
    put(formulation, checkpoint, path, weights)
    return formulation.eval()


def put(formulation: Formulation, checkpoint: dict[str, Any], path: Path | str, weights: str) -> None:
    """Gives the formulation these weights of the checkpoint, in place."""
    length = _length(weights)
    state = dict(checkpoint["state_dict"])
    if length is not None:
        state |= posthoc.rebuild(_snapshots(checkpoint, path), length)
    elif weights == "ema" and checkpoint.get("ema", {}).get("shadow"):
        state |= checkpoint["ema"]["shadow"]
    try:
        formulation.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"The weights in {path} do not fit its config: {str(error).splitlines()[0]}") from error


def chosen_weights(config: DictConfig) -> str:
    """What `load` is to give, of a config with `weights` and `ema`: ema=0.10 stands for weights="ema=0.10"."""
    if OmegaConf.select(config, "ema") is None:
        return str(config.weights)
    if config.weights != "ema":
        raise ValueError(f"weights={config.weights} and ema={config.ema} exclude each other: leave one of them out.")
    return f"ema={config.ema}"


def weights_profile(checkpoint: dict[str, Any], weights: str = "ema", path: Path | str | None = None) -> str:
    """Which weights `load` gives, for a record."""
    length = _length(weights)
    if length is not None:
        at = "" if path is None else f", at {_snapshots(checkpoint, path)[-1].images} images"
        return f"ema(sigma_rel={length:g}{at})"
    ema = checkpoint.get("ema") or {}
    return ema["profile"] if weights == "ema" and ema.get("shadow") else "raw"


def _length(weights: str) -> float | None:
    """sigma_rel of "ema=0.10"; None of "ema" and "raw"."""
    if weights in ("ema", "raw"):
        return None
    kind, _, length = weights.partition("=")
    try:
        if kind == "ema" and posthoc.exponent(float(length)):
            return float(length)
    except ValueError:
        raise ValueError(
            f"ema must be the relative length of an average, above 0 and at most {posthoc.LONGEST}, such as 0.10, "
            f"got {length}. Several, in evaluate.py:  -m ema=0.05,0.10"
        ) from None
    raise ValueError(f"weights must be ema or raw, got {weights!r}; ema=0.10 gives another average.")


def _snapshots(checkpoint: dict[str, Any], path: Path | str) -> list[posthoc.Snapshot]:
    """Those that had been taken when the checkpoint was."""
    folder = folder_of(path) / posthoc.FOLDER
    seen = max((checkpoint.get(key) or {}).get("images_seen", 0) for key in ("ema", "power_ema"))
    found = [snapshot for snapshot in posthoc.Snapshot.of(folder) if snapshot.images <= seen]
    if not found:
        raise ValueError(
            f"There are no snapshots in {folder} from which an average could be rebuilt: leave ema=… out, or train "
            "with callback.power_ema."
        )
    return found


def new_folder(path: Path | str, what: str, key: str = "out") -> Path:
    """A folder for results, created; refuses one that already holds something."""
    path = Path(str(path))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} already holds {what}: choose another {key}=…, or remove it first.")
    path.mkdir(parents=True, exist_ok=True)
    return path


def refuse_used(folder: Path) -> None:
    """Refuses to train in a folder that already holds a run."""
    if (folder / "config.yaml").exists() or (folder / "checkpoints").exists():
        raise FileExistsError(f"{folder} already holds a run: go on with resume={folder}, or choose another folder.")
