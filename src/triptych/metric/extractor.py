"""What a feature network has to do, and how a metric holds one."""

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Extractor(Protocol):
    """uint8 [N, C, H, W] -> [N, D]. An `nn.Module` in practice.

    Optional attributes, read for the record of an evaluation: `name` (what stands behind `fd_`), `sha256` of the
    weights, `resize` (the rule in words), and `max_batch`, the most images to hand over at once.
    """

    num_features: int

    def __call__(self, images: Tensor) -> Tensor: ...


class FrozenExtractor:
    """A feature network outside of `nn.Module` registration: always in eval mode, never trained, never saved.

    A metric inside a LightningModule would otherwise put the network's weights into the optimizer, the EMA and
    the checkpoint, and `train()` would switch its dropout on. The network follows the metric's device, runs in
    float32 whatever autocast and TF32 say, and sees one image size only. Metrics that share one extractor and are given
    the same tensor, one after the other, share one pass through the network.
    """

    def __init__(self, network: nn.Module) -> None:
        if not hasattr(network, "num_features"):
            raise ValueError(
                f"The extractor {type(network).__name__} has no attribute num_features: set it to the length D "
                "of the features it returns, [N, D]."
            )
        self.network = network.eval().requires_grad_(False)
        self.num_features = int(getattr(network, "num_features"))  # noqa: B009  (a Tensor or Module, says nn.Module)
        self.name: str = getattr(network, "name", type(network).__name__)
        self.sha256: str | None = getattr(network, "sha256", None)
        self.resize: str | None = getattr(network, "resize", None)
        self.image_shape: tuple[int, ...] | None = None
        self._last: tuple[Tensor, int, Tensor] | None = None  # images, their version, their features

    @property
    def identity(self) -> str:
        """Whose features these are: name, weights and resize; two that differ here are not on one scale (T-F8)."""
        weights = f"-{self.sha256[:8]}" if self.sha256 else ""
        return self.name + weights + (f" ({self.resize})" if self.resize else "")

    @classmethod
    def of(cls, network: "nn.Module | FrozenExtractor") -> "FrozenExtractor":
        """Freezes a network; one already frozen is shared as it is."""
        return network if isinstance(network, FrozenExtractor) else cls(network)

    @torch.no_grad()
    def __call__(self, images: Tensor, device: torch.device | str | None = None) -> Tensor:
        """uint8 [N, C, H, W] -> features [N, D] on `device` (None: the images' own)."""
        device = torch.device(images.device if device is None else device)
        version = -1 if images.is_inference() else images._version
        if self._last is not None and self._last[0] is images and self._last[1] == version >= 0:
            return self._last[2].to(device)
        self.check_images(images)
        network = self.network.eval().to(device)
        with torch.autocast(device.type, enabled=False), _ieee():
            parts = images.split(getattr(network, "max_batch", len(images)))
            features = torch.cat([network(part.to(device)) for part in parts])
        self.check_features(features)
        self._last = images, version, features
        return features

    def forget(self, size: bool) -> None:
        """Lets go of the last images; with `size` the next may have another size."""
        self._last = None
        if size:
            self.image_shape = None

    def check_images(self, images: Tensor) -> None:
        """Refuses what would give a wrong number: floats, NaN, an empty batch, a second image size."""
        if images.dtype != torch.uint8:
            bad = images.is_floating_point() and not bool(torch.isfinite(images).all())
            raise ValueError(
                ("The images hold NaN or Inf" if bad else f"The images are {images.dtype}")
                + ", but a metric reads uint8 images in 0..255: convert [-1, 1] with triptych.image.to_uint8."
            )
        if images.ndim != 4 or images.numel() == 0:
            raise ValueError(f"A metric reads a batch [N, C, H, W] with N >= 1, but got {list(images.shape)}.")
        shape = tuple(images.shape[1:])
        if self.image_shape not in (None, shape):
            raise ValueError(
                f"These images are {_times(shape)} (channels x height x width), but earlier ones were "
                f"{_times(self.image_shape)}: real and generated images must have one size."
            )
        self.image_shape = shape

    def check_features(self, features: Tensor) -> None:
        """Refuses features of another length than declared, NaN and Inf."""
        if features.ndim != 2 or features.shape[1] != self.num_features or len(features) == 0:
            raise ValueError(
                f"The features of {self.name} must be [N, {self.num_features}] with N >= 1, "
                f"but are {list(features.shape)}."
            )
        if not bool(torch.isfinite(features).all()):
            raise ValueError(f"The features of {self.name} hold NaN or Inf, so no distance is defined.")


@contextlib.contextmanager
def _ieee() -> Iterator[None]:
    """Convolutions on CUDA in float32: by default they round to the 11 bits of TF32, which moves a Fréchet distance in
    its fourth digit, and more so where the reference was read without."""
    convolutions: Any = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    before, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before


def _times(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape or ()))
