"""Many pictures, each decoded once, into a cache."""

import logging
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from triptych.dataset.cache import Writer
from triptych.dataset.picture import Picture

log = logging.getLogger(__name__)

Item = tuple[str, Callable[[], Path | bytes], int]  # what to call it, where its bytes are, its label (-1: none)
CHUNK = 256


def decode(items: Iterable[Item], total: int, picture: Picture, corrupt: str, writer: Writer) -> None:
    """Decode all items in order, on all cores: Pillow releases the interpreter lock.

    Args:
        corrupt: "refuse" raises if any picture cannot be read, "skip" leaves those out, named in the log and in the
            cache's about.json.
    """
    if corrupt not in ("refuse", "skip"):
        raise ValueError(f"dataset.corrupt={corrupt} must be refuse or skip.")

    def read(item: Item) -> np.ndarray | str:
        try:
            return picture(item[1]())
        except (ValueError, OSError) as error:
            return f"{item[0]} ({error})"

    items = iter(items)
    bad: list[str] = []
    chunks = iter(lambda: list(islice(items, CHUNK)), [])
    console = Console(stderr=True)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4) as pool:
        for chunk in track(
            chunks,
            "decoding",
            total=-(-total // CHUNK),
            console=console,
            transient=True,
            disable=not sys.stderr.isatty(),
        ):
            results = list(pool.map(read, chunk))
            bad += [result for result in results if isinstance(result, str)]
            good = [(r, item[2]) for r, item in zip(results, chunk, strict=True) if not isinstance(r, str)]
            if good:
                labels = [label for _, label in good]
                writer.add(np.stack([image for image, _ in good]), None if labels[0] < 0 else labels)
    if not bad:
        return
    named = f"{len(bad)} of {total} pictures cannot be used: {', '.join(bad[:5])}{', ...' if len(bad) > 5 else ''}"
    if corrupt == "refuse":
        raise ValueError(f"{named}. Mend them, or type dataset.corrupt=skip to leave them out.")
    log.warning("%s. They are left out.", named)
    writer.notes += bad
