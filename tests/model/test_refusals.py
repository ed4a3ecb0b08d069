"""Networks that cannot be are refused in one sentence that says what is allowed."""

import pytest

from triptych.model import NCSN, DiT, NCSNpp, NCSNv2, UNet


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: UNet(1, 1, 28), "28 can be halved only 2 times.*multiple of 8"),
        (lambda: UNet(1, 1, 32, multipliers=()), "at least one level"),
        (lambda: UNet(1, 1, 32, attention=(12,)), "resolution 12.*choose among 32, 16, 8, 4"),
        (lambda: UNet(1, 1, 32, heads=3), "3 heads do not divide the 256 channels"),
        (lambda: UNet(1, 1, 32, head_channels=60), "60 channels do not divide the 256.*divisors of 256"),
        (lambda: UNet(1, 1, 32, resample="fir"), '"conv" or "resblock"'),
        (lambda: UNet(1, 1, 32, channels=33), "even number.*got 33"),
        (lambda: NCSNpp(1, 1, 28), "28 can be halved only 2 times"),
        (lambda: NCSNpp(1, 1, 32, attention=(7,)), "resolution 7"),
        (lambda: NCSNpp(1, 1, 32, heads=7), "7 heads"),
        (lambda: NCSNpp(1, 1, 32, embedding="sine"), "positional or fourier"),
        (lambda: NCSNpp(1, 1, 32, encoder="deep"), "standard, skip or residual"),
        (lambda: NCSNpp(1, 1, 32, decoder="deep"), "standard, skip or residual"),
        (lambda: NCSNpp(1, 1, 32, taps=(1, 2, 1)), "3 taps is odd"),
        (lambda: NCSN(1, 1, 7), "side of 7.*multiple of 2"),
        (lambda: NCSNv2(1, 1, 32, multipliers=(1, 2)), "at least three multipliers"),
        (lambda: DiT(1, 1, 30, patch=4), "Patches of side 4 do not divide a side of 30"),
        (lambda: DiT(1, 1, 32, hidden=100, heads=3), "3 heads do not divide 100"),
        (lambda: DiT(1, 1, 32, hidden=6, heads=3), "multiple of 4"),
    ],
)
def test_refused(build, words):
    with pytest.raises(ValueError, match=words) as refusal:
        build()
    assert "\n" not in str(refusal.value)
