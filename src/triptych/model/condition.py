"""What a network may be told besides the noise level: nothing, labels [B], or a dict of tensors."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Condition = Tensor | dict[str, Tensor] | None


def label_of(cond: Condition, num_classes: int) -> Tensor | None:
    """The class labels [B] in a condition, None when it holds none; refused by an unconditional network."""
    label = cond.get("label") if isinstance(cond, dict) else cond
    if label is not None and not num_classes:
        raise ValueError(
            "Labels were given to an unconditional network; build it with model.num_classes=<number of classes>, "
            "or leave the labels out (dataset.conditional=false)."
        )
    return label


def augment_of(cond: Condition) -> Tensor | None:
    """The augmentation's parameters [B, 9] in a condition, None when it holds none."""
    return cond.get("augment") if isinstance(cond, dict) else None


class LabelEmbedding(nn.Module):
    """A learned vector a class, times `gain`; label -1 and None are the null vector. [B] -> [B, channels].

    The null vector is zero unless `learned_null`: beside an embedding of the noise level it would only move that
    one's bias.
    """

    def __init__(self, num_classes: int, channels: int, gain: float = 1.0, learned_null: bool = False) -> None:
        super().__init__()
        self.table, self.gain = nn.Embedding(num_classes, channels), gain
        self.null = nn.Parameter(torch.randn(channels)) if learned_null else None

    def forward(self, label: Tensor | None) -> Tensor | float:
        null = 0.0 if self.null is None else self.null
        if label is None:
            return null
        known = (label >= 0).unsqueeze(1)
        embedding = F.embedding(label.clamp(min=0), self.table.weight)
        if self.gain != 1.0:
            embedding = embedding * self.gain
        return torch.where(known, embedding, null)
