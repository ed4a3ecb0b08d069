"""Where a run keeps what, on disk. Imports nothing heavy, so that the command line may ask before anything else."""

from pathlib import Path

from omegaconf import OmegaConf


def folder_of(path: Path | str) -> Path:
    """The run folder of a run folder or of a checkpoint inside one; for a lone checkpoint, the folder it is in."""
    path = Path(path)
    if path.is_dir():
        return path
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def checkpoint_of(path: Path | str) -> Path:
    """The checkpoint of a run folder (its last one), or the file itself."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {path}: give run=<a run folder or a .ckpt file>.")
    if path.is_file():
        return path
    last = path / "checkpoints" / "last.ckpt"
    if last.exists():
        return last
    others = sorted((path / "checkpoints").glob("*.ckpt"), key=lambda p: p.stat().st_mtime)
    if not others:
        raise FileNotFoundError(f"The run folder {path} has no checkpoint in {path / 'checkpoints'}.")
    return others[-1]


def config_beside(path: Path | str) -> dict | None:
    """The config.yaml of the run that a folder or a checkpoint belongs to, as it was written; None without one."""
    path = Path(path)
    alone = path.is_file() and path.parent.name != "checkpoints"  # then the folder may be anybody's
    stored = folder_of(path) / "config.yaml"
    return OmegaConf.to_container(OmegaConf.load(stored)) if stored.exists() and not alone else None  # pyright: ignore
