"""A multilayer perceptron for toy data."""

from torch import Tensor, nn
from torch.nn import functional as F

from triptych.model.condition import Condition, LabelEmbedding, label_of
from triptych.model.embedding import NoiseRange, SinusoidalEmbedding, full_precision, rescale_noise
from triptych.model.init import linear


class MLP(nn.Module):
    """Residual layers on points, each told the time. [B, in_channels], [B], cond -> [B, out_channels].

    Args:
        hidden: the width of every layer.
        layers: residual layers.
        num_classes: 0 is an unconditional network, which refuses labels.
    """

    noise_range: NoiseRange = None

    def __init__(
        self, in_channels: int, out_channels: int, hidden: int = 128, layers: int = 3, num_classes: int = 0
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.num_classes = in_channels, out_channels, num_classes
        self.input = linear(in_channels, hidden)
        self.layers = nn.ModuleList(ResidualLayer(hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.output = linear(hidden, out_channels, zero=True)
        self.embedding = SinusoidalEmbedding(hidden)
        self.time = nn.Sequential(linear(hidden, hidden), nn.SiLU(), linear(hidden, hidden))
        self.label = LabelEmbedding(num_classes, hidden) if num_classes else None
        self.time_projection = linear(hidden, layers * hidden)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        times = self._times(c_noise, label_of(cond, self.num_classes)).chunk(len(self.layers), dim=1)
        h = self.input(x)
        for layer, time in zip(self.layers, times, strict=True):
            h = layer(h, time)
        return self.output(F.silu(self.norm(h))).to(x.dtype)

    def _times(self, c_noise: Tensor, label: Tensor | None) -> Tensor:
        with full_precision(c_noise):
            embedding = self.time(self.embedding(rescale_noise(c_noise, self.noise_range)))
            if self.label is not None and label is not None:
                embedding = embedding + self.label(label)
            return self.time_projection(F.silu(embedding))


class ResidualLayer(nn.Module):
    """x + W2 silu(W1 silu(norm(x)) + time). [B, hidden], [B, hidden] -> [B, hidden]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(hidden), linear(hidden, hidden), linear(hidden, hidden)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x))) + time))
