import pickle
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.metric.published import published, sha256_of

FILE = "weights-inception-2015-12-05-6726825d.pth"
ADDRESS = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
PUBLISHED = "6726825d"  # beginning of the file's sha256
SIZE = 299

# A branch is a chain of convolutions (name, output channels, kernel, stride, padding), begun by a pooling or not.
Convolution = tuple[str, int, int | tuple[int, int], int, int | tuple[int, int]]
Branch = tuple[str, list[Convolution]]  # pooling: "", "average", "max", "max/2" (stride 2)
ROW: tuple[tuple[int, int], tuple[int, int]] = ((1, 7), (0, 3))
COLUMN: tuple[tuple[int, int], tuple[int, int]] = ((7, 1), (3, 0))


class Inception(nn.Module):
    """Rethinking the Inception Architecture for Computer Vision. Szegedy et al. 2015. arXiv:1512.00567.

    The network of 2015-12-05 that every FID is measured with, as TensorFlow runs it (T-F8): bilinear resize to
    299 x 299 without half-pixel centres or antialiasing (T-F1), (x - 128) / 128, average pooling that does not
    count the padding, and a maximum in the last block. uint8 [N, 3, H, W] -> the 2048 pool features [N, 2048].

    Weights: torch-fidelity's file, from `weights`, else the environment's TRIPTYCH_INCEPTION, else torch's hub folder,
    where it is downloaded once. The tensor names inside are that file's.

    Attributes:
        sha256: of the weights file, for the record; None for random weights.
    """

    name = "inception"
    num_features = 2048
    max_batch = 64
    resize = "bilinear to 299x299 as TensorFlow 1 (no half-pixel centres, no antialiasing)"

    def __init__(self, weights: str | Path | None = None, pretrained: bool = True) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, 2, 0)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3, 1, 0)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, 1, 1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1, 1, 0)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3, 1, 0)
        self.Mixed_5b = _Mixed(192, _grid_35(32))
        self.Mixed_5c = _Mixed(256, _grid_35(64))
        self.Mixed_5d = _Mixed(288, _grid_35(64))
        self.Mixed_6a = _Mixed(288, _reduce_35())
        self.Mixed_6b = _Mixed(768, _grid_17(128))
        self.Mixed_6c = _Mixed(768, _grid_17(160))
        self.Mixed_6d = _Mixed(768, _grid_17(160))
        self.Mixed_6e = _Mixed(768, _grid_17(192))
        self.Mixed_7a = _Mixed(768, _reduce_17())
        self.Mixed_7b = _MixedWide(1280, "average")
        self.Mixed_7c = _MixedWide(2048, "max")
        self.fc = nn.Linear(2048, 1008)
        self.sha256: str | None = None
        if pretrained:
            path = published(ADDRESS, weights, variable="TRIPTYCH_INCEPTION")
            try:
                self.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            except (RuntimeError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
                raise ValueError(
                    f"{path} does not hold the weights of the Inception of 2015 as torch-fidelity publishes them: "
                    f"download {ADDRESS}."
                ) from error
            self.sha256 = sha256_of(path)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        if self.sha256 is not None and not self.sha256.startswith(PUBLISHED):
            warnings.warn(
                f"These weights are not those of every other FID (sha256 {self.sha256[:8]}, not {PUBLISHED}): "
                "the number compares with nobody's.",
                stacklevel=2,
            )
        x = (tensorflow_resize(self.colour(images).float(), SIZE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))  # 35 x 35
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))  # 17 x 17
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))  # 8 x 8

    def logits(self, features: Tensor, bias: bool = False) -> Tensor:
        """Pool features [N, 2048] -> [N, 1008]; the Inception score leaves the bias out."""
        return F.linear(features, self.fc.weight, self.fc.bias if bias else None)

    @staticmethod
    def colour(images: Tensor) -> Tensor:
        """Repeats grey images over three channels, which is not what the network was made for (T-F16)."""
        if images.shape[1] == 1:
            warnings.warn(
                "Inception has seen photographs in colour only: grey images are repeated over three channels, and "
                "a distance in the features of the data set itself (metric=fd_mnist, fd_digits, ...) says more.",
                stacklevel=2,
            )
            return images.expand(-1, 3, -1, -1)
        if images.shape[1] != 3:
            raise ValueError(f"Inception reads images of 3 channels (or 1), but these have {images.shape[1]}.")
        return images


def tensorflow_resize(x: Tensor, size: int) -> Tensor:
    """Bilinear with source coordinate = index * (old / new), as tf.image.resize_bilinear of TensorFlow 1.

    [N, C, H, W] -> [N, C, size, size]. torch's own puts half-pixel centres, whichever its `align_corners`.
    """

    def interpolate(x: Tensor, dim: int) -> Tensor:
        old = x.shape[dim]
        at = torch.arange(size, dtype=torch.float32, device=x.device) * torch.tensor(old / size, device=x.device)
        low = at.long()
        weight = (at - low).to(x.dtype).unflatten(0, (-1, 1) if dim == 2 else (1, -1))
        first = x.index_select(dim, low)
        return first + (x.index_select(dim, (low + 1).clamp(max=old - 1)) - first) * weight

    return interpolate(interpolate(x, 3), 2)


class _Conv(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        stride: int,
        padding: int | tuple[int, int],
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class _Mixed(nn.Module):
    """Branches side by side, their outputs concatenated."""

    def __init__(self, in_channels: int, branches: list[Branch]) -> None:
        super().__init__()
        self.branches = [(pooling, [name for name, *_ in chain]) for pooling, chain in branches]
        for _, chain in branches:
            channels = in_channels
            for name, width, kernel, stride, padding in chain:
                self.add_module(name, _Conv(channels, width, kernel, stride, padding))
                channels = width

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for pooling, names in self.branches:
            h = _pool(x, pooling)
            for name in names:
                h = self.get_submodule(name)(h)
            outputs.append(h)
        return torch.cat(outputs, 1)


class _MixedWide(nn.Module):
    """The blocks at 8 x 8, whose 3 x 3 convolutions end in a row and a column side by side."""

    def __init__(self, in_channels: int, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        self.branch1x1 = _Conv(in_channels, 320, 1, 1, 0)
        self.branch3x3_1 = _Conv(in_channels, 384, 1, 1, 0)
        self.branch3x3_2a = _Conv(384, 384, (1, 3), 1, (0, 1))
        self.branch3x3_2b = _Conv(384, 384, (3, 1), 1, (1, 0))
        self.branch3x3dbl_1 = _Conv(in_channels, 448, 1, 1, 0)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, 1, 1)
        self.branch3x3dbl_3a = _Conv(384, 384, (1, 3), 1, (0, 1))
        self.branch3x3dbl_3b = _Conv(384, 384, (3, 1), 1, (1, 0))
        self.branch_pool = _Conv(in_channels, 192, 1, 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(single),
                self.branch3x3_2b(single),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(_pool(x, self.pooling)),
            ],
            1,
        )


def _pool(x: Tensor, pooling: str) -> Tensor:
    if pooling == "average":
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    if pooling == "max":
        return F.max_pool2d(x, 3, 1, 1)
    return F.max_pool2d(x, 3, 2) if pooling == "max/2" else x


def _grid_35(pool: int) -> list[Branch]:
    return [
        ("", [("branch1x1", 64, 1, 1, 0)]),
        ("", [("branch5x5_1", 48, 1, 1, 0), ("branch5x5_2", 64, 5, 1, 2)]),
        (
            "",
            [
                (f"branch3x3dbl_{i}", width, 3 if i > 1 else 1, 1, int(i > 1))
                for i, width in ((1, 64), (2, 96), (3, 96))
            ],
        ),
        ("average", [("branch_pool", pool, 1, 1, 0)]),
    ]


def _reduce_35() -> list[Branch]:
    return [
        ("", [("branch3x3", 384, 3, 2, 0)]),
        (
            "",
            [
                ("branch3x3dbl_1", 64, 1, 1, 0),
                ("branch3x3dbl_2", 96, 3, 1, 1),
                ("branch3x3dbl_3", 96, 3, 2, 0),
            ],
        ),
        ("max/2", []),
    ]


def _grid_17(width: int) -> list[Branch]:
    def along(name: str, channels: int, axis: tuple[tuple[int, int], tuple[int, int]]) -> Convolution:
        kernel, padding = axis
        return name, channels, kernel, 1, padding

    return [
        ("", [("branch1x1", 192, 1, 1, 0)]),
        (
            "",
            [
                ("branch7x7_1", width, 1, 1, 0),
                along("branch7x7_2", width, ROW),
                along("branch7x7_3", 192, COLUMN),
            ],
        ),
        (
            "",
            [
                ("branch7x7dbl_1", width, 1, 1, 0),
                along("branch7x7dbl_2", width, COLUMN),
                along("branch7x7dbl_3", width, ROW),
                along("branch7x7dbl_4", width, COLUMN),
                along("branch7x7dbl_5", 192, ROW),
            ],
        ),
        ("average", [("branch_pool", 192, 1, 1, 0)]),
    ]


def _reduce_17() -> list[Branch]:
    return [
        ("", [("branch3x3_1", 192, 1, 1, 0), ("branch3x3_2", 320, 3, 2, 0)]),
        (
            "",
            [
                ("branch7x7x3_1", 192, 1, 1, 0),
                ("branch7x7x3_2", 192, (1, 7), 1, (0, 3)),
                ("branch7x7x3_3", 192, (7, 1), 1, (3, 0)),
                ("branch7x7x3_4", 192, 3, 2, 0),
            ],
        ),
        ("max/2", []),
    ]
