"""Images that somebody hands over, to begin with: a picture, a folder of pictures, or a NumPy archive."""

import zipfile
from pathlib import Path

import numpy as np

from triptych.dataset.image_folder import SUFFIXES
from triptych.dataset.picture import Picture

LARGEST = 4096  # pictures of a folder: they are all held in memory


def given(path: Path | str, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 [N, C, H, W], or float32 [N, D] points, of the wanted shape (C, H, W) or (D,).

    Pictures are cropped to their central square and resized; what an archive holds must fit as it is: uint8
    [N, H, W, C], [N, C, H, W] or [N, H, W], as sample.py writes it. In a folder, the order is that of the names.
    """
    path = Path(str(path))
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {path}: init=… takes a picture, a folder of pictures, or an npz.")
    if path.suffix == ".npz":
        return _archive(path, shape)
    if len(shape) != 3:
        raise ValueError(f"{path} is of pictures, but this run makes points of {shape[0]} coordinates: give an npz.")
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
    if not 1 <= len(files) <= LARGEST:
        raise ValueError(f"{path} holds {len(files)} pictures, but 1 to {LARGEST:,} can be begun with.")
    read = Picture(channels=shape[0], resolution=shape[1])
    return np.stack([_picture(file, read) for file in files])


def _picture(file: Path, read: Picture) -> np.ndarray:
    try:
        return read(file)
    except ValueError as error:
        raise ValueError(f"{file} is no picture that can be read ({error}).") from error


def _archive(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as archive:
            array = archive["arr_0" if "arr_0" in archive.files else archive.files[0]]
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is damaged, or no archive of plain arrays.") from error
    if len(shape) == 3:
        c, h, w = shape
        if array.ndim == 4 and array.shape[1:] == (h, w, c):
            array = array.transpose(0, 3, 1, 2)
        if array.ndim == 3 and c == 1:
            array = array[:, None]
    kind = np.uint8 if len(shape) == 3 else np.float32
    if array.shape[1:] != shape or len(array) < 1 or not np.can_cast(array.dtype, kind, "same_kind"):
        layout = " x ".join(map(str, array.shape))
        wanted = " x ".join(map(str, shape))
        raise ValueError(f"{path} holds {array.dtype} {layout}, but this run makes {np.dtype(kind)} N x {wanted}.")
    return array.astype(kind)
