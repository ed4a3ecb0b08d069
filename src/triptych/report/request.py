"""What a user asks for, refused in words where it cannot be, before anything is read."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

OURS = {"index.html", "table.csv", "table.md", "wandb"}
SIGN = '<meta name="generator" content="Triptych">'


def check(settings: dict[str, Any]) -> Path:
    """The folder to write to; nothing is written yet."""
    runs, wandb, pictures = settings["runs"], settings["wandb"], settings["pictures"]
    if bool(runs) == bool(wandb):
        raise ValueError("Say where the runs are: runs=<a folder or a glob in quotes>, or wandb=<entity>/<project>.")
    if wandb and (not isinstance(wandb, str) or len([p for p in wandb.split("/") if p]) != 2):
        raise ValueError(f"wandb= is <entity>/<project>, got {wandb!r}.")
    if runs and not isinstance(runs, str) and not (isinstance(runs, list) and all(isinstance(r, str) for r in runs)):
        raise ValueError(f"runs= is a folder, a glob, or a list of them, got {runs!r}.")
    if isinstance(pictures, bool) or not isinstance(pictures, int) or pictures < 0:
        raise ValueError(f"pictures= is how many rows show pictures, 0 or more, got {pictures!r}.")
    if not isinstance(settings["out"], (str, int)) or not str(settings["out"]):
        raise ValueError(f"out= is a folder, got {settings['out']!r}.")
    if settings["summary"] is not None and not isinstance(settings["summary"], dict):
        raise ValueError("summary=null means no summary in W&B; where it goes is summary.project=….")
    if find_spec("plotly") is None:
        raise ValueError("The plots of a report need plotly: pip install -e '.[report]'.")
    out = Path(str(settings["out"]))
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file: choose another out=….")
    others = sorted({path.name for path in out.iterdir()} - OURS) if out.is_dir() else []
    page = out / "index.html"
    if others or (page.exists() and SIGN not in _beginning(page)):
        what = others[0] if others else "an index.html that is not a report of ours"
        raise FileExistsError(f"{out} holds something else ({what}): choose another out=…, or remove it first.")
    return out


def _beginning(page: Path) -> str:
    with page.open(encoding="utf-8", errors="replace") as file:
        return file.read(2000)
