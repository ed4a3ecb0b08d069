"""The scalars of a run as they lie in its metrics.csv; reading them needs nothing heavy."""

import csv
from pathlib import Path

AXIS = "images_seen"  # what every curve is drawn against


def read_csv(path: Path | str) -> list[dict[str, float]]:
    """The rows of a metrics.csv, empty cells left out."""
    with Path(path).open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)]
