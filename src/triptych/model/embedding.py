"""Features of the scalar a network is told. Always computed in float32 or wider, whatever autocast says."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

NoiseRange = tuple[float, float] | None


def full_precision(x: Tensor) -> AbstractContextManager:
    """Autocast off, on devices that have it (meta, where FLOPs and parameters are counted, has not)."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


def rescale_noise(c_noise: Tensor, noise_range: NoiseRange) -> Tensor:
    """c_noise from its formulation's range to [0, 1000], where sinusoids of period 10^4 tell values apart."""
    if noise_range is None:
        return c_noise
    low, high = noise_range
    return (c_noise - low) * (1000.0 / (high - low))


class SinusoidalEmbedding(nn.Module):
    """Attention Is All You Need. Vaswani et al. 2017. arXiv:1706.03762, section 3.5. [B] -> [B, channels].

        [sin(c w_i), cos(c w_i)],  w_i = max_period^(-i / n),  i = 0, ..., channels/2 - 1

    n = channels/2 - 1 as in DDPM, so that the last frequency is 1 / max_period; channels/2 as in ADM and DiT when
    `endpoint` is false.
    """

    frequencies: Tensor

    def __init__(self, channels: int, max_period: float = 10_000.0, endpoint: bool = True) -> None:
        super().__init__()
        if channels % 2 or channels < 4:
            raise ValueError(
                f"Sines and cosines of the noise level need an even number of at least 4 channels, got {channels}."
            )
        half = channels // 2
        steps = torch.arange(half, dtype=torch.float64) / (half - 1 if endpoint else half)
        frequencies = torch.exp(-math.log(max_period) * steps)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = c_noise.unsqueeze(1) * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class FourierEmbedding(nn.Module):
    """Random Fourier features of the noise level. Song et al. 2021. arXiv:2011.13456.

        [sin(2 pi c w_i), cos(2 pi c w_i)],  w_i ~ N(0, scale^2), drawn once and never trained

    [B] -> [B, channels].
    """

    frequencies: Tensor

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(channels // 2) * scale)

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = c_noise.unsqueeze(1) * (2 * math.pi * self.frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=1)
