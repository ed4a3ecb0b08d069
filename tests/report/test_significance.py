import math
import random

import pytest
import scipy.stats

from triptych.report.significance import Sample, compare, welch


@pytest.mark.parametrize(("n", "m", "spread"), [(2, 2, 1.0), (3, 5, 4.0), (10, 2, 0.1)])
def test_welch_is_scipys(n, m, spread):
    generator = random.Random(n)
    a, b = [generator.gauss(0, 1) for _ in range(n)], [generator.gauss(0.5, spread) for _ in range(m)]
    expected = scipy.stats.ttest_ind(a, b, equal_var=False).pvalue
    assert welch(a, b) == pytest.approx(expected, rel=1e-10)


def test_seeds_come_before_blocks_and_blocks_before_standard_errors():
    two = Sample((1.0, 1.1))
    blocks = Sample((1.0,), blocks=(0.9, 1.1, 1.0), standard_error=0.1)
    other = Sample((2.0,), blocks=(1.9, 2.1), standard_error=0.1)
    error, worse = Sample((1.0,), standard_error=0.1), Sample((1.2,), standard_error=0.1)
    assert "2 and 2 seeds" in compare(two, Sample((1.0, 1.2)))[1]
    p, how = compare(blocks, other)
    assert "seed blocks" in how
    assert p == pytest.approx(scipy.stats.ttest_ind((0.9, 1.1, 1.0), (1.9, 2.1), equal_var=False).pvalue)
    p, how = compare(error, worse)
    assert "z-test" in how and p == pytest.approx(2 * scipy.stats.norm.sf(0.2 / math.hypot(0.1, 0.1)))


def test_a_single_value_without_error_cannot_be_tested():
    assert compare(Sample((1.0, 1.1)), Sample((2.0,)))[0] is None
    assert "no test" in compare(Sample((1.0,)), Sample((2.0,)))[1]


def test_equal_values_without_spread_are_equal_and_others_are_not():
    assert welch((1.0, 1.0), (1.0, 1.0)) == 1.0
    assert welch((1.0, 1.0), (2.0, 2.0)) == 0.0
