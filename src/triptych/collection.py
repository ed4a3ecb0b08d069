"""Anybody's images: an npz such as the ADM evaluator's or ours, a npy, or a folder of pictures."""

import hashlib
import json
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from triptych.progress import bar

PICTURES = frozenset(".png .jpg .jpeg .webp .bmp .gif .tif .tiff .ppm .pgm".split())
ARRAYS = (".npz", ".npy")
PREFERRED = ("arr_0", "images", "samples")  # names of the array, the ADM evaluator's first
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s", "n", "extractor")


@dataclass(frozen=True)
class Collection:
    """Images uint8 [N, C, H, W], or points float32 [N, 2].

    Attributes:
        source: file, format, checksum, for the record of an evaluation.
        warnings: sentences about what the numbers will suffer from.
    """

    images: np.ndarray
    source: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def read(path: Path | str, shown: bool = False) -> Collection:
    """Everything in the file or folder; refuses what would give a wrong number, in words."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {path}: give an npz file of images, or a folder of pictures.")
    images, form, warnings = _pictures(path, shown) if path.is_dir() else _array(path)
    if len(images) < 2:
        raise ValueError(f"{path} holds {len(images) or 'no'} image{'s' * (len(images) != 1)}: a distance needs many.")
    return Collection(images, {"file": str(path), "format": form, "sha256": digest(path)}, warnings)


def like(collection: Collection, shape: tuple[int, ...], name: str) -> Collection:
    """The same images with the channels of a data set's shape [C, H, W]; refuses another size."""
    images, file = collection.images, collection.source["file"]
    if (images.ndim == 2) != (len(shape) == 1):
        raise ValueError(f"{file} holds {_said(images.shape[1:])}, but the data set {name} {_said(shape)}.")
    if images.ndim == 2:
        return collection
    if images.shape[2:] != shape[1:]:
        height, width = images.shape[2:]
        raise ValueError(
            f"The images of {file} are {height}x{width}, but {name} is {shape[1]}x{shape[2]}: how they are resized "
            "is part of a number, so resize them yourself, or compare with a data set of their size."
        )
    warnings = list(collection.warnings)
    if images.shape[1] == 3 and shape[0] == 1:
        if (images != images[:, :1]).any():
            raise ValueError(f"The images of {file} are in colour, but {name} is grey.")
        images = images[:, :1]
    elif images.shape[1] == 1 and shape[0] == 3:
        warnings.append(f"The images of {file} are grey, and {name} is in colour: they are repeated over the channels.")
        images = np.repeat(images, 3, 1)
    return Collection(images, collection.source, warnings)


def protocol(path: Path) -> dict[str, Any]:
    """What is known of how the images were made, or nothing: from the record.json that sample.py puts beside its
    samples.npz, or from the json of the file's own name that evaluate.py puts beside what it keeps."""
    try:
        beside = path / "record.json" if path.is_dir() else path.with_suffix(".json")
        if path.name == "samples.npz" and not beside.exists():
            beside = path.with_name("record.json")
        told = json.loads(beside.read_text())
        seeds = {"seed": told["seed"], "first": told["first"], "last": told["first"] + told["num_samples"] - 1}
        known = ("sampler", "guidance", "nfe", "labels", "images_seen", "weights", "quantisation", "images_per_second")
        said = {key: told[key] for key in known} | {"computing": told.get("computing"), "run": str(told["run"])}
        return said | {"seeds": seeds | {"blocks": 1}}
    except (OSError, ValueError, KeyError, TypeError):
        unknown = ("sampler", "guidance", "nfe", "labels", "images_seen", "images_per_second", "seeds", "computing")
        return dict.fromkeys(unknown) | {"weights": "not known", "quantisation": "as stored", "run": str(path)}


def names(path: Path) -> list[str]:
    """The arrays of an npz file; empty for anything else."""
    if path.is_dir() or not zipfile.is_zipfile(path):
        return []
    with np.load(path, allow_pickle=False) as file:
        return list(file.files)


def digest(path: Path) -> str:
    """The beginning of a file's sha256, or of its pictures' names and contents."""
    found = hashlib.sha256()
    for file in [path] if path.is_file() else _listed(path):
        if path.is_dir():
            found.update(file.relative_to(path).as_posix().encode())
        with open(file, "rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()[:16]


def _array(path: Path) -> tuple[np.ndarray, str, list[str]]:
    if path.suffix.lower() not in ARRAYS:
        raise ValueError(f"{path} is neither an npz or npy file nor a folder of pictures.")
    try:
        with open(path, "rb") as opened:
            loaded = np.load(opened, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                images, name = loaded, path.stem
            else:
                name = _name_of_images(path, loaded.files)
                images = loaded[name]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged, or no archive of arrays ({error}).") from error
    except ValueError as error:
        if "pickle" not in str(error).lower():
            raise
        raise ValueError(f"{path} holds Python objects, which are not loaded: save plain arrays.") from error
    if images.dtype != np.uint8 and not (images.ndim == 2 and images.shape[1] == 2):
        what = f"{path} holds {images.dtype} values in {name}"
        if np.issubdtype(images.dtype, np.floating) and not np.isfinite(images).all():
            what += ", NaN or Inf among them"
        raise ValueError(f"{what}: images must be uint8, 0 to 255; [-1, 1] is rounded by floor(127.5 x + 128).")
    if images.ndim == 2 and images.dtype != np.uint8:
        if not np.isfinite(images).all():
            raise ValueError(f"{path} holds NaN or Inf.")
        return images.astype(np.float32), f"{path.suffix[1:]}, {name} {list(images.shape)}", []
    return _channels_first(path, images), f"{path.suffix[1:]}, {name} {list(images.shape)}", []


def _name_of_images(path: Path, found: list[str]) -> str:
    for name in PREFERRED:
        if name in found:
            return name
    others = [name for name in found if name not in (*STATISTICS, "labels", "arr_1")]
    if len(others) != 1:
        raise ValueError(f"{path} holds {', '.join(found) or 'nothing'}: name the array of images arr_0.")
    return others[0]


def _channels_first(path: Path, images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    raise ValueError(f"{path} holds an array {list(images.shape)}: images are [N, H, W, C] with 1 or 3 channels.")


def _listed(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES and not p.name.startswith("."))


def _pictures(folder: Path, shown: bool) -> tuple[np.ndarray, str, list[str]]:
    from PIL import Image

    files = _listed(folder)
    if (folder / "samples.npz").exists():  # beside sample.py's pictures of them
        raise ValueError(f"{folder} holds the samples as an array: give samples={folder / 'samples.npz'}.")
    if not files:
        inside = next((p for p in sorted(folder.iterdir()) if p.suffix in ARRAYS), None)
        hint = f": give samples={inside}" if inside else f" ({' '.join(sorted(PICTURES))})"
        raise FileNotFoundError(f"{folder} holds no pictures{hint}.")
    arrays: list[np.ndarray] = []
    formats: dict[str, int] = {}
    with bar(f"reading {folder.name}", len(files), shown) as advance:
        for file in files:
            try:
                with Image.open(file) as opened:
                    opened.load()
                    formats[str(opened.format)] = formats.get(str(opened.format), 0) + 1
                    array = np.asarray(_plain(opened))
            except (OSError, SyntaxError, EOFError, ValueError, Image.DecompressionBombError) as error:
                raise ValueError(f"{file} cannot be used: {' '.join(str(error).split())}.") from error
            if arrays and array.shape[:2] != arrays[0].shape[:2]:
                (h, w), (height, width) = arrays[0].shape[:2], array.shape[:2]
                raise ValueError(
                    f"{folder} holds pictures of two sizes, {files[0].name} {h}x{w} and {file.name} {height}x{width}: "
                    "a distance is between images of one size."
                )
            arrays.append(array)
            advance(1)
    if any(a.ndim != arrays[0].ndim for a in arrays):  # some grey, some in colour
        arrays = [np.repeat(a[..., None], 3, 2) if a.ndim == 2 else a for a in arrays]
    stacked = np.stack(arrays)
    images = stacked[:, None] if stacked.ndim == 3 else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))
    warnings = []
    if lossy := sum(n for name, n in formats.items() if name in ("JPEG", "MPO")):
        warnings.append(
            f"{lossy} of the {len(files)} pictures in {folder} are JPEG, whose artefacts move every distance (T-F7): "
            "save samples without loss, as PNG or npz, before you compare with others."
        )
    return images, ", ".join(f"{n} {name}" for name, n in sorted(formats.items())), warnings


def _plain(picture: Any) -> Any:
    """L or RGB without loss, or a ValueError."""
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"it has more than 8 bits a channel (mode {picture.mode})")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema()[0] < 255:
            raise ValueError("it is partly transparent, and nothing says what lies behind")
        return picture.convert("RGB")
    return picture if picture.mode in ("L", "RGB") else picture.convert("L" if picture.mode in ("1", "LA") else "RGB")


def _said(shape: tuple[int, ...]) -> str:
    return "points" if len(shape) == 1 else "images of " + "x".join(map(str, shape))
