from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from triptych.metric.extractor import FrozenExtractor


class FeatureMetric(Metric, ABC):
    """Compares real with generated images by their features.

    `update(images, real=True)` and `update(images, real=False)` in any order, then `compute()`. States are summed
    or gathered over processes; float64 stays float64 whatever `.to(dtype)` says. The extractor stays outside of
    the module (see `FrozenExtractor`); without one (None), where `of_points` says that this may be, the samples, points
    [N, D], are their own features.

    Attributes:
        reset_real: whether `reset()` also forgets the real images.
        fewest: generated samples for which the value is defined.
        reference: what a cache knows of the real images, in place of `update(real=True)`; `reset()` keeps it.
    """

    is_differentiable = False
    full_state_update = False
    fewest = 2
    reads_real = True  # whether real images matter at all
    of_points = False  # whether there may be no extractor

    def __init__(self, extractor: nn.Module | FrozenExtractor | None, reset_real: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if extractor is None and not self.of_points:
            raise ValueError(
                f"{type(self).__name__} needs an extractor, such as triptych.metric.Inception(): a module that turns "
                "uint8 [N, C, H, W] into features [N, D], with D as its attribute num_features."
            )
        self.extractor = None if extractor is None else FrozenExtractor.of(extractor)
        self.reset_real = reset_real
        self.reference: Any = None

    @abstractmethod
    def add(self, features: Tensor, real: bool, index: Tensor | None) -> None:
        """Takes in the features [N, D] of samples number `index` [N]."""

    def update(
        self,
        images: Tensor | None,
        real: bool,
        *,
        features: Tensor | None = None,
        index: Tensor | None = None,
    ) -> None:
        """uint8 [N, C, H, W], or features [N, D] that somebody else has computed.

        `index` [N]: the samples' numbers. What draws subsets of the samples sorts by them, so that the value
        does not depend on which process made which.
        """
        if (images is None) == (features is None):
            raise ValueError("Give a metric either images or features.")
        if real and self.reference is not None:
            raise ValueError("Real images cannot be added to a reference that was loaded from a cache.")
        if features is None:
            assert images is not None
            features = images if self.extractor is None else self.extractor(images, self.device)
        if self.extractor is not None:
            self.extractor.check_features(features)
        elif features.ndim != 2 or len(features) == 0 or not bool(torch.isfinite(features).all()):
            raise ValueError(f"Samples must be finite points [N, D] with N >= 1, but are {list(features.shape)}.")
        if index is not None and index.shape != (len(features),):
            raise ValueError(f"There are {len(features)} samples, but the index is {list(index.shape)}.")
        self.add(features.detach().to(self.device), real, index)

    @property
    def arguments(self) -> dict[str, Any]:
        """What else shapes the number, for its record."""
        return {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # torchmetrics' would compute on this batch alone, which has one side only, and lose what was there before
        raise ValueError(
            f"{type(self).__name__} has no value of one batch: call update(images, real=…), then compute()."
        )

    def update_features(self, features: Tensor, real: bool, index: Tensor | None = None) -> None:
        """Features [N, D] that somebody else has computed."""
        self.update(None, real, features=features, index=index)

    def use_reference(self, reference: Any) -> None:
        """Compares with this instead of real images; `reset()` keeps it."""
        self.reference = reference
        self._computed = None
        for name, default in self._defaults.items():
            if name.startswith("real_"):
                setattr(self, name, [] if isinstance(default, list) else default.clone().to(self.device))

    @abstractmethod
    def real_summary(self) -> Any:
        """What `use_reference` takes, of the real images this process has seen."""

    def freeze_reference(self) -> None:
        """Makes the reference of the real images seen so far.

        For an evaluation where every process reads all of them: a reference, unlike images, is not added up over
        processes.
        """
        self.use_reference(self.real_summary())

    def reset(self) -> None:
        """Forgets the images; with `reset_real=False` only the generated ones."""
        kept = {}
        if not self.reset_real:
            kept = {k: getattr(self, k) for k in self._defaults if k.startswith("real_")}
            kept = {k: list(v) if isinstance(v, list) else v for k, v in kept.items()}
        super().reset()
        for name, value in kept.items():
            setattr(self, name, value)
        if self.extractor is not None:
            self.extractor.forget(size=self.reset_real and self.reference is None)

    def store_features(self) -> None:
        """For metrics that need every feature: the states that `add_features` fills and `stored` reads."""
        for name in ("real_features", "fake_features", "real_index", "fake_index"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def add_features(self, features: Tensor, real: bool, index: Tensor | None) -> None:
        side = "real" if real else "fake"
        rows: list[Tensor] = getattr(self, f"{side}_index")
        if index is None:
            first = sum(map(len, rows))
            index = torch.arange(first, first + len(features))
        rows.append(index.to(features.device, torch.int64))
        getattr(self, f"{side}_features").append(features.to(self._stored_dtype))

    def stored(self, real: bool, at_least: int = 1) -> Tensor:
        """All features of one side in the order of their index, float64 [N, D]."""
        if real and self.reference is not None:
            features = self.reference
        else:
            side = "real" if real else "fake"
            features, index = (_joined(getattr(self, f"{side}_{name}")) for name in ("features", "index"))
            features = features[index.argsort(stable=True)] if len(index) else features
        if len(features) < at_least:
            raise ValueError(
                f"{type(self).__name__} needs at least {at_least} {'real' if real else 'generated'} samples, "
                f"but has seen {len(features)}."
            )
        return features.to(self.device, torch.float64)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        # A process without samples must offer an empty tensor of the others' shape and dtype: torchmetrics' own
        # stand-in is one-dimensional and float, and the gather would fail or hang.
        if dist.is_available() and dist.is_initialized() and "fake_features" in self._defaults:
            for side in ("real", "fake"):
                features = _joined(getattr(self, f"{side}_features"))
                width = self._width(features)
                if not len(features):
                    features = torch.zeros(0, width, dtype=self._stored_dtype, device=self.device)
                setattr(self, f"{side}_features", [features])
                index = _joined(getattr(self, f"{side}_index")).to(self.device, torch.int64)
                setattr(self, f"{side}_index", [index])
        super().sync(*args, **kwargs)

    def _width(self, features: Tensor) -> int:
        if self.extractor is not None:
            return self.extractor.num_features
        width = torch.tensor(features.shape[1] if len(features) else 0, device=self.device)
        dist.all_reduce(width, dist.ReduceOp.MAX)
        return int(width)

    @property
    def _stored_dtype(self) -> torch.dtype:
        return torch.float64 if self.extractor is None else torch.float32

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        # What `.to(device, dtype)` does to a tensor, less the dtype
        return super()._apply(lambda x: x.to(fn(x.new_empty(0)).device), exclude_state)


def _joined(rows: Tensor | list[Tensor]) -> Tensor:
    """A stored state as one tensor, empty [0] if there is nothing."""
    return dim_zero_cat(rows) if len(rows) else torch.zeros(0)
