from typing import Any

import torch
from torch import Tensor, nn

from triptych.metric.base import FeatureMetric
from triptych.metric.extractor import FrozenExtractor


class InceptionScore(FeatureMetric):
    """Improved Techniques for Training GANs. Salimans et al. 2016. arXiv:1606.03498.

        exp E_x KL(p(y | x) || p(y)), the mean over disjoint splits

    p(y | x) is the softmax of the extractor's `logits(features)`: with `Inception` the 1008 logits without bias, as
    torch-fidelity takes them. Real images are ignored. A sample's split follows from its number alone.

    Attributes:
        splits: the papers have 10, with 5,000 samples each; fewer samples a split lower the score (T-F14).
    """

    higher_is_better = True
    reads_real = False
    split_n: Tensor  # [splits]
    split_p: Tensor  # sum p(y | x), [splits, classes]
    split_p_log_p: Tensor  # sum over x and y of p log p, [splits]
    extractor: FrozenExtractor

    def __init__(self, extractor: nn.Module | FrozenExtractor, splits: int = 10, **kwargs: Any) -> None:
        super().__init__(extractor, **kwargs)
        if splits < 1:
            raise ValueError(f"InceptionScore: splits must be at least 1, got {splits}.")
        self.fewest = max(2, 3 * splits)  # consecutive numbers, hashed by the golden ratio, then leave no split empty
        if not hasattr(self.extractor.network, "logits"):
            raise ValueError(
                f"InceptionScore needs class probabilities, but the extractor {self.extractor.name} has no "
                "`logits(features)`: use Inception or a SmallClassifier."
            )
        probe = torch.zeros(1, self.extractor.num_features)
        classes = self._logits(probe).shape[1]
        self.add_state("split_n", torch.zeros(splits, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("split_p", torch.zeros(splits, classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("split_p_log_p", torch.zeros(splits, dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, features: Tensor, real: bool, index: Tensor | None) -> None:
        if real:
            return
        if index is None:
            index = int(self.split_n.sum()) + torch.arange(len(features))
        # Fibonacci hashing: classes that repeat with the index must not line up with the splits
        split = (index.to(self.device, torch.int64) * 2654435769 % 2**32) * len(self.split_n) // 2**32
        log_p = self._logits(features).double().log_softmax(1)
        p = log_p.exp()
        self.split_n.index_add_(0, split, torch.ones_like(p[:, 0]))
        self.split_p.index_add_(0, split, p)
        self.split_p_log_p.index_add_(0, split, (p * log_p).sum(1))

    @property
    def arguments(self) -> dict[str, Any]:
        return {"splits": len(self.split_n)}

    def real_summary(self) -> None:
        """The score needs no real images."""

    def split_scores(self) -> Tensor:
        """The score of each split, float64 [splits]; papers report the mean and the standard deviation."""
        if bool((self.split_n == 0).any()):
            raise ValueError(
                f"InceptionScore has {len(self.split_n)} splits for {int(self.split_n.sum())} generated samples, "
                "which leaves one empty: make more samples or set fewer splits."
            )
        marginal = self.split_p / self.split_n[:, None]
        return (self.split_p_log_p / self.split_n - torch.special.xlogy(marginal, marginal).sum(1)).exp()

    def compute(self) -> Tensor:
        """[] float64."""
        return self.split_scores().mean()

    def _logits(self, features: Tensor) -> Tensor:
        network = self.extractor.network.eval()
        parameter = next(network.parameters())
        with torch.autocast(parameter.device.type, enabled=False):
            return network.logits(features.to(parameter)).to(self.device)  # pyright: ignore[reportCallIssue]
