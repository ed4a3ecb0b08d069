"""Non-leaky augmentation: the network is told what was done to each image, so that it can be asked for none."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

PARAMETERS = 13  # uniform numbers that one image needs: five gates and eight parameters

# The lowpass filter of Daubechies' symlet with six vanishing moments (sym6). Orthonormal to its own even shifts, so
# that upsampling with it and downsampling again is the identity.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip


def augment(x: Tensor, u: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """EDM's augmentation pipeline. Karras, Aittala, Aila, Laine 2022. arXiv:2206.00364, Appendix F.2.

    x-flip always (a fair coin); then with the given probability each of y-flip, isotropic scaling by 2^(0.2 N),
    rotation by an angle in (-pi, pi), scaling by 2^(0.2 N) along a random axis and its inverse across it, and
    translation by N / 8 of the image. One resampling does all of it, at twice the resolution, over mirrored edges.
    An image to which nothing was done, or only flips, keeps its pixels exactly.

    Args:
        x: [B, C, H, H]. u: from U(0, 1) [B, 13]. probability: the paper's A_prob.

    Returns:
        Images [B, C, H, H], and labels [B, 9]: a_0, a_1, a_2, cos a_3 - 1, sin a_3, a_5 cos a_4, a_5 sin a_4, a_6, a_7.
    """
    gate = (u[:, :5] < probability).to(u.dtype)
    normal = torch.special.ndtri(u)
    flip_x = (u[:, 5] < 0.5).to(u.dtype)
    flip_y = (u[:, 6] < 0.5).to(u.dtype) * gate[:, 0]
    scale = normal[:, 7] * gate[:, 1]
    angle = torch.pi * (2 * u[:, 8] - 1) * gate[:, 2]
    axis = torch.pi * (2 * u[:, 9] - 1) * gate[:, 3]
    stretch = normal[:, 10] * gate[:, 3]
    shift = normal[:, 11:13] * gate[:, 4:5]
    rotation = torch.stack([angle.cos() - 1, angle.sin()], 1)
    stretching = torch.stack([stretch * axis.cos(), stretch * axis.sin()], 1)
    labels = torch.cat([torch.stack([flip_x, flip_y, scale], 1), rotation, stretching, shift], 1)

    x = torch.where(chosen(flip_x), x.flip(3), x)
    x = torch.where(chosen(flip_y), x.flip(2), x)
    # What takes a point of the result back to the image: the inverse of each step, last step first.
    factor = torch.exp2(0.2 * stretch)
    diagonal = torch.diag_embed(torch.stack([1 / factor, factor], 1))
    back = turn(angle) @ turn(axis) @ diagonal @ turn(-axis) * torch.exp2(-0.2 * scale)[:, None, None]
    offset = back @ (-2 * shift / 8)[:, :, None]  # the image is [-1, 1] wide
    moved = gate[:, 1:].sum(1)
    return torch.where(chosen(moved), resample(x, torch.cat([back, offset], 2)), x), labels


def chosen(which: Tensor) -> Tensor:
    """[B] -> bool [B, 1, 1, 1]."""
    return which.bool().view(-1, 1, 1, 1)


def turn(angle: Tensor) -> Tensor:
    """Rotation matrices [B, 2, 2]."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def resample(x: Tensor, back: Tensor) -> Tensor:
    """The image seen through affine maps of the result's points to the image's, both in [-1, 1]^2.

    [B, C, H, H], [B, 2, 3] -> [B, C, H, H].
    """
    size, taps = x.shape[-1], len(SYM6)
    centre = sum(k * h for k, h in enumerate(SYM6)) / sum(SYM6)
    first = round(centre - 0.5)  # where the image begins in the upsampled one
    delta = first - (centre - 0.5)  # and by how much of a fine pixel that is late
    margin = 4  # pixels on each side that the upsampling filter reaches into
    fine = upsample(mirror(mirror(x, margin, 2), margin, 3))
    begin = 2 * margin + first
    fine = fine[..., begin : begin + 2 * size, begin : begin + 2 * size]

    span = torch.arange(-first, 2 * size + taps - 2 - first, device=x.device, dtype=x.dtype)  # 2 H + taps - 2 points
    span = (span + 0.5 + delta) / size - 1
    points = torch.stack(torch.meshgrid(span, span, indexing="xy"), -1)
    points = torch.einsum("hwj,bij->bhwi", points, back[:, :, :2]) + back[:, None, None, :, 2] - delta / size
    return downsample(F.grid_sample(fine, points, padding_mode="reflection", align_corners=False))


def mirror(x: Tensor, margin: int, dim: int) -> Tensor:
    """`margin` mirrored pixels on both sides, the edge repeated, as grid_sample's reflection does."""
    before = x.narrow(dim, 0, margin).flip(dim)
    after = x.narrow(dim, x.shape[dim] - margin, margin).flip(dim)
    return torch.cat([before, x, after], dim)


def kernel(x: Tensor) -> Tensor:
    taps = _taps(x.device, x.dtype)
    return (taps[:, None] * taps).expand(x.shape[1], 1, -1, -1)


@functools.lru_cache(maxsize=4)
def _taps(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Copied to a device once: each copy makes the host wait for it."""
    return torch.tensor(SYM6, device=device, dtype=dtype)


def upsample(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, 2 H + 10, 2 W + 10]. Each axis of the filter gains sqrt(1/2): 2 keeps the brightness."""
    return 2 * F.conv_transpose2d(x, kernel(x), stride=2, groups=x.shape[1])


def downsample(x: Tensor) -> Tensor:
    """The adjoint, and therefore the inverse, of `upsample`."""
    return 0.5 * F.conv2d(x, kernel(x), stride=2, groups=x.shape[1])
