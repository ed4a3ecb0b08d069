"""Normalisations of the convolutional networks. Their arithmetic is float32 or wider under mixed precision."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm of at most 32 groups of at least 4 channels: 32 from 128 channels on, as in DDPM and ADM."""
    groups = min(32, max(1, channels // 4))
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels, eps=1e-6)


class InstanceNormPlus(nn.Module):
    """Instance norm++ of NCSNv2: `instance_norm_plus` with one gamma, alpha, beta a channel. [B, C, H, W] -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels).normal_(1.0, 0.02))
        self.alpha = nn.Parameter(torch.empty(channels).normal_(1.0, 0.02))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        return instance_norm_plus(x, self.gamma, self.alpha, self.beta)


class ConditionalInstanceNormPlus(nn.Module):
    """Conditional instance norm++ of NCSN: gamma, alpha, beta are those of a noise level. [B, C, H, W], [B] -> same."""

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.styles = nn.Embedding(levels, 3 * channels)
        nn.init.normal_(self.styles.weight[:, : 2 * channels], 1.0, 0.02)
        nn.init.zeros_(self.styles.weight[:, 2 * channels :])

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return instance_norm_plus(x, *self.styles(index).chunk(3, dim=1))


class NoNorm(nn.Module):
    """Nothing, where a norm could be."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        return x


def instance_norm_plus(x: Tensor, gamma: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """gamma [(x_k - mu_k) / s_k + alpha (mu_k - m) / v] + beta in channel k. Song, Ermon 2019. arXiv:1907.05600, A.

    mu_k, s_k: mean and standard deviation of channel k; m, v: those of the mu_k. As in the paper's code, gamma scales
    both terms; in the paper's text the first only. [B, C, H, W], 3 x [C] or [B, C] -> [B, C, H, W].
    """
    means = x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
    v, m = torch.var_mean(means, dim=1, keepdim=True)
    shift = gamma * alpha * (means - m) * torch.rsqrt(v + 1e-5) + beta
    scale = gamma.expand_as(shift).to(x.dtype)[..., None, None]
    h = F.group_norm(x, x.shape[1])  # instance norm, whose own kernel loses more of bfloat16
    return torch.addcmul(shift.to(x.dtype)[..., None, None], scale, h)
