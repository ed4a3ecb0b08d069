"""Pictures of samples, small enough to travel inside a page: each pixel once, and only so many."""

import base64
import io
from pathlib import Path
from typing import Any

from triptych.report.runs import Run
from triptych.report.table import Table

MOMENTS = 8  # of training, a run: evenly spaced, the last one always
WIDEST = 640  # pixels
SMALL = 24_000  # bytes up to which a picture stays lossless


def embed(table: Table, most: int) -> tuple[dict[int, dict[str, list[dict[str, Any]]]], str]:
    """({run: {"grid" | "strip": [{seen, uri, width}]}}, which runs and why), for the first run of each group.

    Args:
        most: runs whose pictures are embedded, in the order of the table; every one of them is said to be left out.
    """
    pictured = [next((i for i in row.runs if table.runs[i].grids), None) for row in table.groups]
    wanted = [i for i in pictured if i is not None]
    chosen = wanted[:most]
    found = {}
    for index in chosen:
        run = table.runs[index]
        found[index] = {"grid": _moments(run.grids), "strip": _moments(run.strips)}
    told = "No run kept pictures of samples." if not wanted else "One seed of each row."
    if len(wanted) > len(chosen):
        told = (
            f"Pictures of {len(chosen)} of {len(wanted)} rows are in this page, one seed each: the first rows of the "
            f"table as it opens. More: compare.py pictures={len(wanted)}."
        )
    if any(len(table.runs[i].grids) > MOMENTS for i in chosen):
        told += f" At most {MOMENTS} moments of training, evenly spaced."
    return found, told


def how_drawn(run: Run) -> str:
    """Sampler and seed of a run's pictures, from its config."""
    callbacks = run.config.get("callback")
    samples = callbacks.get("samples") if isinstance(callbacks, dict) else None
    if not isinstance(samples, dict):
        return "drawn in an unknown way"
    sampler = samples.get("sampler")
    name = str(sampler.get("_target_")).rpartition(".")[2] if isinstance(sampler, dict) else "its sampler"
    steps = f" {sampler['steps']}" if isinstance(sampler, dict) and sampler.get("steps") else ""
    return f"{name}{steps}, seed {samples.get('seed')}"


def largest(pictures: dict[int, Path]) -> Path | None:
    """The picture after the most images."""
    return pictures[max(pictures)] if pictures else None


def _moments(pictures: dict[int, Path]) -> list[dict[str, Any]]:
    seen = sorted(pictures)
    if len(seen) > MOMENTS:
        seen = sorted({seen[round(k * (len(seen) - 1) / (MOMENTS - 1))] for k in range(MOMENTS)})
    moments = []
    for n in seen:
        try:
            uri, width, height = data_uri(pictures[n])
        except (OSError, ValueError, SyntaxError):  # what PIL raises for half a file
            continue
        moments.append({"seen": n, "uri": uri, "width": width, "height": height})
    return moments


def data_uri(path: Path) -> tuple[str, int, int]:
    """(data URI, width, height in pixels) of a picture, enlarged pixels undone, shrunk if it is still wide."""
    from PIL import Image

    with Image.open(path) as opened:
        picture = opened.convert("L") if opened.mode in ("1", "L", "LA") else opened.convert("RGB")
    picture = _undo_enlarging(picture)
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, max(1, round(picture.height * WIDEST / picture.width))), Image.Resampling.BOX)
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    kind = "png"
    if content.tell() > SMALL:
        content, kind = io.BytesIO(), "webp"
        picture.save(content, "WEBP", quality=82)
    encoded = base64.b64encode(content.getvalue()).decode()
    return f"data:image/{kind};base64,{encoded}", picture.width, picture.height


def _undo_enlarging(picture: Any) -> Any:
    """The picture with each pixel once, if every pixel is repeated a whole number of times (image.enlarge)."""
    from PIL import Image

    def repeats(factor: int) -> bool:
        if picture.width % factor or picture.height % factor:
            return False
        small = picture.resize((picture.width // factor, picture.height // factor), Image.Resampling.NEAREST)
        return small.resize(picture.size, Image.Resampling.NEAREST).tobytes() == picture.tobytes()

    for factor in range(min(32, picture.width, picture.height), 1, -1):
        if repeats(factor):
            return picture.resize((picture.width // factor, picture.height // factor), Image.Resampling.NEAREST)
    return picture
