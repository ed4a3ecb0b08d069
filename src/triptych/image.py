"""Images for people: [-1, 1] <-> uint8 by one rule, grids, strips, animations, scatter plots of points in the plane."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FINE = 600  # pixels a picture should at least span, so that 8x8 images can be looked at


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] -> {0, ..., 255}, rounded half up: floor(127.5 x + 128), which is unbiased (T-F2); clamped outside."""
    return (x.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def to_uint8_truncating(x: Tensor) -> Tensor:
    """The other convention, floor(127.5 (x + 1)), half a level darker; only to compare with those who use it (T-F2)."""
    return ((x.float() + 1) * 127.5).clamp(0, 255).to(torch.uint8)


def from_uint8(x: Tensor) -> Tensor:
    """{0, ..., 255} -> [-1, 1] in float32."""
    return x.float() / 127.5 - 1


def dequantise(levels: Tensor, u: Tensor) -> Tensor:
    """Uniform dequantisation, for likelihoods. Theis, van den Oord, Bethge 2016. arXiv:1511.01844.

        x_0 = 2 (k + u) / 256 - 1,    u ~ U[0, 1)

    so that x_0 fills [-1, 1) evenly; not k / 255 + u / 256, which does not (T-K7).

    Args:
        levels: grey levels k = 0, ..., 255, uint8 [B, ...].
        u: float32 [B, ...].
    """
    return (levels + u).div_(128).sub_(1)


def grid(images: Tensor, columns: int | None = None, pad: int = 1) -> Tensor:
    """uint8 [N, C, H, W] -> one picture, uint8 [C, H', W'], filled row by row on a white ground."""
    n, c, h, w = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    canvas = torch.full((c, rows * (h + pad) + pad, columns * (w + pad) + pad), 255, dtype=torch.uint8)
    for k, image in enumerate(images):
        top, left = (k // columns) * (h + pad) + pad, (k % columns) * (w + pad) + pad
        canvas[:, top : top + h, left : left + w] = image.cpu()
    return canvas


def strip(frames: Sequence[Tensor], pad: int = 1) -> Tensor:
    """T tensors uint8 [N, C, H, W] -> one picture: a row a sample, a column a moment."""
    stacked = torch.stack(list(frames), dim=1)  # [N, T, C, H, W]
    return grid(stacked.flatten(0, 1), columns=stacked.shape[1], pad=pad)


def enlarge(picture: Tensor, pixels: int = FINE) -> Tensor:
    """uint8 [C, H, W], each pixel repeated a whole number of times until the wider side spans about `pixels`."""
    factor = max(1, round(pixels / max(picture.shape[-2:])))
    return picture.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def to_numpy(picture: Tensor) -> np.ndarray:
    """uint8 [C, H, W] -> [H, W, 3] or [H, W]."""
    array = picture.cpu().permute(1, 2, 0).numpy()
    return array[..., 0] if array.shape[-1] == 1 else array


def save(picture: Tensor, path: Path | str) -> Path:
    """Writes a uint8 [C, H, W] picture as PNG."""
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(to_numpy(picture)).save(path)
    return path


def save_animation(pictures: Sequence[Tensor], path: Path | str, seconds: float = 4.0) -> Path:
    """Writes uint8 [C, H, W] pictures as a looping GIF that rests on the last one for a second and a half."""
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [Image.fromarray(to_numpy(picture)) for picture in pictures]
    durations = [max(20, round(1000 * seconds / len(frames)))] * (len(frames) - 1) + [1500]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return path


def scatter(points: Tensor, limit: float = 1.2, pixels: int = FINE) -> Tensor:
    """Points [N, 2] -> a picture of them, uint8 [3, pixels, pixels], y upwards."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(pixels / 100, pixels / 100), dpi=100, layout="tight")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.scatter(points[:, 0].cpu().numpy(), points[:, 1].cpu().numpy(), s=3, alpha=0.5, linewidths=0)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axes.grid(alpha=0.2)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy()).permute(2, 0, 1)


def picture(samples: Tensor, columns: int | None = None) -> Tensor:
    """Whatever a dataset holds, as one picture uint8 [C, H, W]: a grid of uint8 images, or a scatter plot of points."""
    if samples.ndim == 2:
        return scatter(samples)
    return enlarge(grid(samples, columns))


def filmstrip(moments: Sequence[Tensor]) -> Tensor:
    """A trajectory as one picture: T tensors [N, ...] of uint8 images (a row a sample) or points (a panel a moment)."""
    if moments[0].ndim == 2:
        limit = max(1.2, *(float(m.abs().quantile(0.98)) for m in moments))
        return grid(torch.stack([scatter(m, limit, 240) for m in moments]), columns=len(moments))
    return enlarge(strip(moments), 2 * FINE)
