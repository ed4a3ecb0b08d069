"""The sizes of a network's levels, and the refusal of those that cannot be."""

from collections.abc import Sequence


def level_resolutions(resolution: int, levels: int, attention: Sequence[int]) -> list[int]:
    """[R, R/2, ..., R/2^(levels-1)]; refuses an R that cannot be halved so often, and attention elsewhere."""
    if levels < 1:
        raise ValueError(
            "A U-Net needs at least one level; give one multiplier a level, for example multipliers=[1,2]."
        )
    if resolution % 2 ** (levels - 1):
        possible = next(n for n in range(levels, 0, -1) if resolution % 2 ** (n - 1) == 0)
        raise ValueError(
            f"{levels} multipliers halve the image {levels - 1} times, but a side of {resolution} can be "
            f"halved only {possible - 1} times; give at most {possible} multipliers, or images whose side is "
            f"a multiple of {2 ** (levels - 1)}."
        )
    resolutions = [resolution // 2**i for i in range(levels)]
    missing = [r for r in attention if r not in resolutions]
    if missing:
        raise ValueError(
            f"Attention is asked for at resolution {', '.join(map(str, missing))}, which this network never "
            f"has; choose among {', '.join(map(str, resolutions))}, or attention=[] for none."
        )
    return resolutions


def head_count(channels: int, heads: int, head_channels: int | None) -> int:
    """The number of attention heads at a level, refused when the heads do not divide the channels."""
    if head_channels is not None:
        if channels % head_channels:
            raise ValueError(
                f"Heads of {head_channels} channels do not divide the {channels} channels of an attention "
                f"level; choose head_channels among the divisors of {channels}."
            )
        return channels // head_channels
    if channels % heads:
        raise ValueError(
            f"{heads} heads do not divide the {channels} channels of an attention level; "
            f"choose heads among the divisors of {channels}."
        )
    return heads


def refine_widths(resolution: int, channels: int, multipliers: Sequence[int]) -> list[int]:
    """The channels of a RefineNet's levels, refused when the levels that halve do not divide the image."""
    if len(multipliers) < 3:
        raise ValueError(
            f"A RefineNet needs at least three multipliers, of which the last two levels are dilated, got "
            f"{len(multipliers)}; the papers' are multipliers=[1,2,2,2]."
        )
    factor = 2 ** (len(multipliers) - 3)
    if resolution % factor or resolution <= factor:
        raise ValueError(
            f"{len(multipliers)} multipliers halve the image {len(multipliers) - 3} times, which a side of "
            f"{resolution} does not allow; give fewer multipliers, or images whose side is a multiple of {factor}."
        )
    return [channels * m for m in multipliers]
