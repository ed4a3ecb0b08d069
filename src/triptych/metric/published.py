import hashlib
import os
import re
from pathlib import Path

import torch

from triptych.download import fetch


def published(address: str, given: str | Path | None, variable: str) -> Path:
    """Where a published file lies: `given`, else the path in the environment's `variable`, else torch's hub folder.

    If it is in none of them it is downloaded into the hub folder, once. The beginning of its sha256 stands in its
    name, as torch's hub has it (`<anything>-<hex>.pth`), and is checked.
    """
    given = given or os.environ.get(variable)
    if given:
        if not Path(given).is_file():
            raise FileNotFoundError(f"There is no file {given}; it can be downloaded from {address}.")
        return Path(given)
    name = address.rsplit("/", 1)[1]
    digest = re.search(r"-([0-9a-f]{8,})\.[^.]+$", name)
    return fetch(
        address,
        Path(torch.hub.get_dir()) / "checkpoints" / name,
        sha256=digest[1] if digest else None,
        otherwise=f"name its place by metric.extractor.weights=<path> or {variable}=<path>, or measure by "
        "metric=fd_cifar10, fd_mnist, …, which need no download",
    )


def sha256_of(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
