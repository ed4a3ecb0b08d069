"""One encoded picture to uint8 [C, R, R], whatever its mode, by Pillow."""

import io
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "adm": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """How a picture becomes an image: centre crop to a square, then resize. Pillow's filters are antialiased.

    EXIF orientation is applied, transparency is laid on white, CMYK and palettes become RGB, 16 bits of grey become 8
    by rounding (of colour, by Pillow's own truncation), animations give their first frame.

    Attributes:
        channels: 1 (luma) or 3.
        resolution: R.
        crop: side of the central square that is kept, in pixels of the file; None keeps the largest.
        filter: "bilinear", "bicubic", "lanczos", "box", "hamming", or "adm": halved by box while it is at least twice
            too large, then bicubic, then cropped (Dhariwal, Nichol 2021. arXiv:2105.05233, their released code).
    """

    channels: int
    resolution: int
    crop: int | None = None
    filter: str = "lanczos"

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise ValueError(
                f"dataset.resolution={self.resolution} must be the side of an image in pixels, such as 64."
            )
        if self.filter not in FILTERS:
            raise ValueError(f"dataset.filter={self.filter} is not one of {', '.join(FILTERS)}.")
        if self.channels not in (1, 3):
            raise ValueError(f"dataset.channels={self.channels}: pictures are read with 1 channel or with 3.")
        if self.filter == "adm" and self.crop is not None:
            raise ValueError("dataset.filter=adm crops after it resizes: type dataset.crop=null.")

    @property
    def key(self) -> dict[str, object]:
        """All that shapes the bytes; decoders differ between Pillow's versions."""
        return {**asdict(self), "pillow": PIL.__version__}

    def __call__(self, source: Path | bytes) -> np.ndarray:
        """-> uint8 [C, R, R]. A file that cannot be read raises a ValueError that says why, not which."""
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
                opened.load()
                picture = self.square(self.plain(ImageOps.exif_transpose(opened)))
        except (OSError, SyntaxError, EOFError, LookupError, RuntimeError, Image.DecompressionBombError) as error:
            raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
        array = np.asarray(picture)
        return array[None] if self.channels == 1 else array.transpose(2, 0, 1)

    def plain(self, picture: Image.Image) -> Image.Image:
        """Any mode to L or RGB."""
        mode = "L" if self.channels == 1 else "RGB"
        if picture.mode.startswith("I"):  # 16 bits of grey (as 32 in some files)
            levels = np.asarray(picture).astype(np.int64)
            if levels.min(initial=0) < 0 or levels.max(initial=0) > 65535:
                raise ValueError("it has more than 16 bits a channel")
            return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert(mode)
        if picture.mode == "F":
            raise ValueError("it holds floating point numbers, whose range is not known")
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            return Image.alpha_composite(white, picture).convert("RGB").convert(mode)
        return picture.convert("RGB").convert(mode) if picture.mode in ("P", "CMYK") else picture.convert(mode)

    def square(self, picture: Image.Image) -> Image.Image:
        size = self.resolution
        if self.filter == "adm":
            while min(picture.size) >= 2 * size:
                picture = picture.resize((picture.width // 2, picture.height // 2), FILTERS["box"])
            scale = size / min(picture.size)
            picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), FILTERS["adm"])
            return centre(picture, size)
        if self.crop is not None and self.crop > min(picture.size):
            raise ValueError(f"it is {picture.width} x {picture.height}, smaller than the crop of {self.crop}")
        picture = centre(picture, self.crop or min(picture.size))
        return picture if picture.size == (size, size) else picture.resize((size, size), FILTERS[self.filter])


def centre(picture: Image.Image, side: int) -> Image.Image:
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))
