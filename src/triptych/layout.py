"""Where a run keeps what, on disk. Imports nothing heavy, so that the command line may ask before anything else."""

import sys
import zipfile
from pathlib import Path

from omegaconf import OmegaConf


def folder_of(path: Path | str) -> Path:
    """The run folder of a run folder or of a checkpoint inside one; for a lone checkpoint, the folder it is in."""
    path = Path(str(path))  # a folder called 1 is a number to Hydra
    if path.is_dir() and not is_checkpoint(path):
        return path
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def is_checkpoint(path: Path) -> bool:
    """Whether it is called one: a file, or a folder that several processes have written (`pieces`)."""
    return path.is_file() or (path.is_dir() and path.suffix == ".ckpt" and not (path / "config.yaml").exists())


def checkpoint_of(path: Path | str) -> Path:
    """The newest whole checkpoint of a run folder, or the file itself; a truncated one is named and skipped."""
    path = Path(str(path))
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {path}: give run=<a run folder or a .ckpt file>.")
    if is_checkpoint(path):
        return path
    found = checkpoints(path)
    if not found:
        raise FileNotFoundError(f"The run folder {path} has no checkpoint in {path / 'checkpoints'}.")
    whole = next((p for p in found if zipfile.is_zipfile(p / "meta.pt" if p.is_dir() else p)), found[0])
    for checkpoint in found[: found.index(whole)]:
        print(f"{checkpoint} is only a part of a checkpoint, and is skipped.", file=sys.stderr)
    return whole


def checkpoints(folder: Path | str) -> list[Path]:
    """All checkpoints of a run folder, the newest first: last.ckpt, which no other is ahead of, then by their age."""

    def age(path: Path) -> float:
        try:
            return -path.stat().st_mtime
        except OSError:  # it has just been replaced
            return 0.0

    found = (Path(folder) / "checkpoints").glob("[!.]*.ckpt")
    return sorted(found, key=lambda p: (p.name != "last.ckpt", age(p)))


def config_beside(path: Path | str) -> dict | None:
    """The config.yaml of the run that a folder or a checkpoint belongs to, as it was written; None without one."""
    path = Path(str(path))
    alone = is_checkpoint(path) and path.parent.name != "checkpoints"  # then the folder may be anybody's
    stored = folder_of(path) / "config.yaml"
    return OmegaConf.to_container(OmegaConf.load(stored)) if stored.exists() and not alone else None  # pyright: ignore
