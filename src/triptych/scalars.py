"""The scalars of a run as they lie in its metrics.csv; reading them needs nothing heavy."""

import csv
from pathlib import Path

AXIS = "images_seen"  # what every curve is drawn against


def read_csv(path: Path | str) -> list[dict[str, float]]:
    """The rows of a metrics.csv, empty cells left out, and so is a last line that was cut off in writing."""
    text = Path(path).read_text()
    whole = text[: text.rfind("\n") + 1].splitlines()
    return [{k: float(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(whole)]
