"""Layers initialised as DDPM and score_sde do: uniform of variance 1 / fan_avg, or zero; biases zero."""

from torch import nn


def linear(c_in: int, c_out: int, zero: bool = False, bias: bool = True) -> nn.Linear:
    """A linear layer, weights U(-b, b) with b = sqrt(6 / (fan_in + fan_out)), or zero."""
    layer = nn.Linear(c_in, c_out, bias=bias)
    nn.init.zeros_(layer.weight) if zero else nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, zero: bool = False) -> nn.Conv2d:
    """A convolution that keeps the image's size, or divides it by `stride`, initialised like `linear`."""
    layer = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2)
    nn.init.zeros_(layer.weight) if zero else nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    return layer
