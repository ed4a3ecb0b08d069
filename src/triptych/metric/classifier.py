import hashlib
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

SHIPPED = ("digits", "mnist", "fashion_mnist", "cifar10")


class SmallClassifier(nn.Module):
    """A small convolutional network that tells a dataset's classes apart; its features judge generated images.

    uint8 [N, C, H, W] -> features [N, D] with D = `num_features`, the inputs of the last linear layer, themselves
    linear in what the convolutions found, so that nothing saturates. Batch
    normalisation rather than group normalisation: in eval mode it is a fixed affine map, so that the features still
    see an image's contrast. Images of another size are resized to `resolution` (bilinear, antialiased); grey ones are
    repeated over the channels of a colour network.

    Attributes:
        widths: channels of the stages; each stage after the first halves the resolution.
        blocks: residual blocks a stage.
        sha256: of the weights file, for the record; None before training.
    """

    def __init__(
        self,
        name: str,
        in_channels: int,
        resolution: int,
        num_classes: int = 10,
        num_features: int = 64,
        widths: tuple[int, ...] = (32, 64),
        blocks: int = 1,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.name, self.num_features = name, num_features
        self.in_channels, self.resolution = in_channels, resolution
        self.sha256: str | None = None
        self.accuracy: float | None = None
        self.resize = f"bilinear, antialiased, to {resolution}x{resolution}; none at that size"
        self.max_batch = 500
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)]
        for before, width in zip((widths[0], *widths), widths, strict=False):
            stride = 1 if len(layers) == 1 else 2
            layers += [_Block(before, width, stride)] + [_Block(width, width, 1) for _ in range(blocks - 1)]
        layers += [nn.BatchNorm2d(widths[-1]), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.project = nn.Linear(widths[-1] * 4, num_features)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(num_features, num_classes)
        self.register_buffer("scale", torch.ones(()))  # the reported features are scale * features
        self.scale: Tensor

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * self.features(self.prepare(images))

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float in [-1, 1] at the network's channels and resolution."""
        n, channels, height, width = images.shape
        if channels != self.in_channels and channels != 1:
            raise ValueError(f"fd_{self.name} reads images of {self.in_channels} channels, but these have {channels}.")
        x = images.float().div(127.5).sub(1).expand(n, self.in_channels, height, width)
        if (height, width) != (self.resolution, self.resolution):
            size = (self.resolution, self.resolution)
            x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
        return x

    def features(self, x: Tensor) -> Tensor:
        """[N, C, H, W] in [-1, 1] -> [N, D]."""
        return self.project(F.adaptive_avg_pool2d(self.body(x), 2).flatten(1))

    def logits(self, features: Tensor) -> Tensor:
        """Reported features [N, D] -> [N, classes]."""
        return self.head(self.dropout(features / self.scale))

    @classmethod
    def load(cls, path: str | Path) -> "SmallClassifier":
        """Reads a safetensors file written by `tools/train_classifier.py`: its metadata holds the constructor's
        arguments and the held-out accuracy."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"There are no classifier weights at {path}: train them with "
                "`python tools/train_classifier.py dataset=<name> root=<folder>`."
            )
        raw = path.read_bytes()
        with safe_open(path, "pt") as file:
            meta = file.metadata()
        network = cls(
            name=meta["name"],
            in_channels=int(meta["in_channels"]),
            resolution=int(meta["resolution"]),
            num_classes=int(meta["num_classes"]),
            num_features=int(meta["num_features"]),
            widths=tuple(int(w) for w in meta["widths"].split(",")),
            blocks=int(meta["blocks"]),
        )
        network.load_state_dict(load(raw))
        network.sha256 = hashlib.sha256(raw).hexdigest()
        network.accuracy = float(meta["accuracy"])
        return network.eval().requires_grad_(False)


def fd_extractor(dataset: str, weights: str | None = None) -> SmallClassifier:
    """The shipped classifier of a dataset, or one from `weights`, for `FrechetDistance` and the others."""
    if weights is not None:
        return SmallClassifier.load(weights)
    if dataset not in SHIPPED:
        raise ValueError(
            f"There is no shipped classifier for {dataset!r}: choose one of {', '.join(SHIPPED)}, "
            "or give weights=<file> trained by tools/train_classifier.py."
        )
    return SmallClassifier.load(Path(str(files("triptych.metric") / "weights" / f"{dataset}.safetensors")))


class _Block(nn.Module):
    """x + two convolutions, each after batch normalisation and SiLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm_1 = nn.BatchNorm2d(in_channels)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm_2 = nn.BatchNorm2d(out_channels)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        same = stride == 1 and in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm_1(x))
        return self.skip(x) + self.conv_2(F.silu(self.norm_2(self.conv_1(h))))
