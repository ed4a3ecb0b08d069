"""Every schedule against its paper's closed forms, its own derivatives, and the precision that sampling needs."""

import math

import pytest
import torch

from triptych.schedule import (
    EDM,
    VE,
    VP,
    Cosine,
    Discrete,
    Geometric,
    LinearBeta,
    QuadraticBeta,
    Rectified,
    Schedule,
    SubVP,
)

ALL = [LinearBeta(), QuadraticBeta(), Cosine(), VP(), SubVP(), VE(), Geometric(), EDM(), Rectified()]
DISCRETE = [LinearBeta(), LinearBeta(T=250), QuadraticBeta(), Cosine(), Cosine(T=4000)]
inf = math.inf


def name(value):
    return type(value).__name__ if isinstance(value, Schedule) else str(value)


def inside(schedule, n=2001):
    """Times over the whole closed interval, dense near its clean end, too. float64 [2 n]."""
    low, high = max(schedule.t_min, 1e-6), schedule.t_max
    log = torch.linspace(math.log(low), math.log(high), n, dtype=torch.float64).exp()
    return torch.cat([torch.linspace(low, high, n, dtype=torch.float64), log]).clamp(low, high)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_vp_closed_form():
    """Song et al. 2021, App. C: mean exp(-t^2 (b1 - b0) / 4 - t b0 / 2), variance 1 - mean^2, f = -b / 2, g^2 = b."""
    b0, b1, schedule, t = 0.1, 20.0, VP(), f64(0.003, 0.1, 0.5, 1.0)
    log_mean = -0.25 * t**2 * (b1 - b0) - 0.5 * t * b0
    beta = b0 + t * (b1 - b0)
    torch.testing.assert_close(schedule.alpha(t), log_mean.exp(), rtol=1e-14, atol=0)
    torch.testing.assert_close(schedule.sigma(t) ** 2, 1 - (2 * log_mean).exp(), rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.drift(t), -beta / 2, rtol=1e-14, atol=0)
    torch.testing.assert_close(schedule.diffusion_sq(t), beta, rtol=1e-14, atol=0)


def test_sub_vp_closed_form():
    """Song et al. 2021, App. C: standard deviation 1 - exp(-t^2 (b1 - b0) / 2 - t b0), g^2 = b (1 - exp(-2 B))."""
    b0, b1, schedule, t = 0.1, 20.0, SubVP(), f64(0.003, 0.1, 0.5, 1.0)
    integral = 0.5 * t**2 * (b1 - b0) + t * b0
    beta = b0 + t * (b1 - b0)
    torch.testing.assert_close(schedule.alpha(t), (-integral / 2).exp(), rtol=1e-14, atol=0)
    torch.testing.assert_close(schedule.sigma(t), 1 - (-integral).exp(), rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.diffusion_sq(t), beta * (1 - (-2 * integral).exp()), rtol=1e-12, atol=0)


def test_ve_and_geometric_closed_form():
    """Song et al. 2021, App. C: sigma = s0 (s1 / s0)^t, g = sigma sqrt(2 log(s1 / s0)); the same curve in L levels."""
    s0, s1, t = 0.02, 100.0, f64(0.0, 0.1, 0.5, 1.0)
    for schedule in (VE(s0, s1), Geometric(7, s0, s1)):
        sigma = s0 * (s1 / s0) ** t
        torch.testing.assert_close(schedule.sigma(t), sigma, rtol=1e-13, atol=0)
        torch.testing.assert_close(schedule.diffusion_sq(t), sigma**2 * 2 * math.log(s1 / s0), rtol=1e-13, atol=0)
        assert (schedule.alpha(t) == 1).all() and (schedule.drift(t) == 0).all() and schedule.prior_std == s1
    ladder = Geometric(7, s0, s1)
    ratios = ladder.sigma(ladder.levels[1:]) / ladder.sigma(ladder.levels[:-1])
    torch.testing.assert_close(ratios, torch.full_like(ratios, (s1 / s0) ** (1 / 6)), rtol=1e-13, atol=0)
    assert len(ladder.levels) == 7 and ladder.levels[0] == 0 and ladder.levels[-1] == 1  # T-L5: level 0 is sigma_min


def test_edm_and_rectified_closed_form():
    t = f64(0.0, 0.25, 1.0, 1.5)
    torch.testing.assert_close(EDM().sigma(t), 80 * t)
    torch.testing.assert_close(EDM().diffusion_sq(t), 2 * 80**2 * t)
    assert EDM().t_min == 0.002 / 80 and EDM().prior_std == 80
    t = f64(0.0, 0.25, 0.9)
    torch.testing.assert_close(Rectified().alpha(t), 1 - t)
    torch.testing.assert_close(Rectified().sigma(t), t)
    torch.testing.assert_close(Rectified().drift(t), -1 / (1 - t))
    torch.testing.assert_close(Rectified().diffusion_sq(t), 2 * t / (1 - t))


def test_linear_beta_is_the_cumprod_table():
    """Ho et al. 2020, Sec. 4. At level k / T, exactly k noising steps have been made (T-L1)."""
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = (1 - beta).cumprod(0)
    schedule, t = LinearBeta(), torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(schedule.alpha(t), alpha_bar.sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.sigma(t), (1 - alpha_bar).sqrt(), rtol=1e-11, atol=0)
    torch.testing.assert_close(schedule.levels, t)
    assert abs(float(schedule.alpha(f64(1.0))) - 6.35e-3) < 1e-5  # T-L13: sqrt(abar_T)
    assert schedule.alpha(f64(0.0)) == 1 and schedule.sigma(f64(0.0)) == 0


def test_other_tables():
    """The two other tables, with their products written out by hand; T other than 1000 scales beta by 1000 / T."""
    u = torch.arange(1001, dtype=torch.float64) / 1000
    bar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    beta = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    level = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(Cosine().alpha(level), (1 - beta).cumprod(0).sqrt(), rtol=1e-10, atol=0)
    assert abs(float(Cosine().alpha(f64(1.0)) ** 2) - 2.4e-9) < 0.1e-9  # T-L13
    roots = torch.linspace(1e-4**0.5, 0.02**0.5, 1000, dtype=torch.float64)
    torch.testing.assert_close(QuadraticBeta().alpha(level) ** 2, (1 - roots**2).cumprod(0), rtol=1e-11, atol=0)
    torch.testing.assert_close(LinearBeta(T=250).beta, torch.linspace(4e-4, 0.08, 250, dtype=torch.float64))
    own = Discrete(torch.tensor([0.1, 0.5]))
    torch.testing.assert_close(own.alpha(f64(0.5, 1.0)) ** 2, f64(0.9, 0.45))


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_time_inverts_log_snr(schedule):
    t = inside(schedule)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=0, atol=1e-12)
    assert schedule.time(f64(inf)) == 0 and schedule.time(f64(-inf)) == 1


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_log_snr_is_that_of_alpha_and_sigma_and_falls(schedule):
    t = inside(schedule)
    torch.testing.assert_close(
        schedule.log_snr(t), 2 * (schedule.alpha(t).log() - schedule.sigma(t).log()), rtol=1e-9, atol=1e-9
    )
    assert (schedule.log_snr(t[:2001]).diff() < 0).all() and (schedule.log_snr(t[2001:]).diff() < 0).all()


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_drift_and_diffusion_are_the_derivatives(schedule):
    """f = d log alpha / dt and g^2 = d sigma^2 / dt - 2 f sigma^2, by central differences between the levels."""
    t = f64(0.0105, 0.1005, 0.3337, 0.7503, 0.9504)  # within an interval of every table
    h = 1e-6
    f = (schedule.alpha(t + h).log() - schedule.alpha(t - h).log()) / (2 * h)
    slope = (schedule.sigma(t + h) ** 2 - schedule.sigma(t - h) ** 2) / (2 * h)
    torch.testing.assert_close(schedule.drift(t), f, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(schedule.diffusion_sq(t), slope - 2 * f * schedule.sigma(t) ** 2, rtol=1e-5, atol=1e-8)
    alpha_slope, log_sigma_slope = schedule.slopes(t)
    torch.testing.assert_close(alpha_slope, f * schedule.alpha(t), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(log_sigma_slope, slope / (2 * schedule.sigma(t) ** 2), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_closed_forms_equal_the_derivatives_of_the_base(schedule):
    t = inside(schedule, 101)
    t = t[(t * 1000 % 1 > 0.01) & (t * 1000 % 1 < 0.99)]  # a table has two slopes at a level
    torch.testing.assert_close(schedule.drift(t), Schedule.drift(schedule, t), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(schedule.diffusion_sq(t), Schedule.diffusion_sq(schedule, t), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("schedule", [VP(), Rectified(), EDM(), VE()], ids=name)
def test_time_of_the_base_is_the_closed_form(schedule):
    """The bisection that a new schedule inherits."""
    log_snr = torch.linspace(-9, 9, 37, dtype=torch.float64)
    log_snr = log_snr[(schedule.time(log_snr) <= 1) & (schedule.time(log_snr) >= 0)]
    torch.testing.assert_close(Schedule.time(schedule, log_snr), schedule.time(log_snr), rtol=0, atol=1e-12)
    assert Schedule.time(schedule, f64(inf, -inf)).tolist() == [0, 1]


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_f_and_g_are_finite_on_the_closed_interval(schedule):
    ends = f64(schedule.t_min, schedule.t_max)
    assert schedule.drift(ends).isfinite().all() and schedule.diffusion_sq(ends).isfinite().all()
    assert schedule.sigma(ends[:1]) > 0
    low, high = schedule.grid_ends
    assert schedule.t_min <= low < high <= schedule.t_max
    assert schedule.log_snr(f64(low, high)).isfinite().all()


def test_design_intervals():
    for schedule in (VP(), SubVP()):
        assert (schedule.t_min, schedule.t_max) == (1e-5, 1.0)
    assert Rectified().t_max == 1 - 1e-3


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_prior_is_the_marginal_at_one(schedule):
    """T-K16. Data of unit variance at t = 1, up to what is left of it."""
    one = f64(1.0)
    assert abs(float(schedule.sigma(one)) / schedule.prior_std - 1) < 5e-4


def test_sigma_near_zero_in_float32():
    """T-L15: 1 - exp(-B) is wrong by 2.4 % (VP) and 4.7 % (sub-VP) in float32; B(1e-5) = 1e-6 + 9.95e-10."""
    t, integral = torch.tensor([1e-5]), 0.1 * 1e-5 + 19.9 * 1e-10 / 2
    assert VP().sigma(t).dtype == SubVP().sigma(t).dtype == torch.float32
    assert abs(float(VP().sigma(t)) / math.sqrt(-math.expm1(-integral)) - 1) < 1e-6
    assert abs(float(SubVP().sigma(t)) / -math.expm1(-integral) - 1) < 1e-6


@pytest.mark.parametrize("schedule", DISCRETE, ids=lambda s: f"{name(s)}-{s.T}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_native_levels_are_exact_in_any_dtype(schedule, dtype):
    """A float32 time that means level k gives level k's numbers, also those that jump there: f and g^2 (T-L4)."""
    bar = (1 - schedule.beta).cumprod(0)
    t = schedule.levels.to(dtype)
    rtol = {torch.float32: 1.2e-7, torch.float64: 1e-12}[dtype]
    for value, exact in [
        (schedule.alpha(t), bar.sqrt()),
        (schedule.sigma(t), (-torch.expm1(torch.log1p(-schedule.beta).cumsum(0))).sqrt()),
        (schedule.diffusion_sq(t), -schedule.T * torch.log1p(-schedule.beta)),
        (schedule.drift(t), schedule.T / 2 * torch.log1p(-schedule.beta)),
    ]:
        assert value.dtype == dtype
        assert ((value.double() / exact - 1).abs() <= rtol).all()


@pytest.mark.parametrize("cast", ["float", "half", "bfloat16", "double"])
def test_tables_stay_float64(cast):
    """T-L14. Whatever .to(dtype) says: it is called on the formulation that holds the schedule."""
    for schedule in (LinearBeta(), Cosine(), Geometric(), VP()):
        t = f64(0.5, 1.0)
        before = schedule.alpha(t), schedule.sigma(t), schedule.time(f64(0.3))
        getattr(torch.nn.Sequential(schedule), cast)()
        after = schedule.alpha(t), schedule.sigma(t), schedule.time(f64(0.3))
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert schedule.levels is None or schedule.levels.dtype == torch.float64


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_shape_and_dtype(schedule):
    for shape in [(), (3,), (2, 1, 4)]:
        for dtype, out in [(torch.float64,) * 2, (torch.float32,) * 2, (torch.bfloat16, torch.float32)]:
            t = torch.full(shape, 0.5, dtype=dtype)
            for f in (schedule.alpha, schedule.sigma, schedule.log_snr, schedule.drift, schedule.diffusion_sq):
                assert f(t).shape == shape and f(t).dtype == out


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_schedules_survive_a_state_dict_and_a_copy(schedule):
    import copy

    twin = copy.deepcopy(schedule)
    twin.load_state_dict(schedule.state_dict())
    assert torch.equal(twin.sigma(f64(0.37)), schedule.sigma(f64(0.37)))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: VE(2.0, 1.0), "smaller"),
        (lambda: EDM(sigma_min=0.0), "positive"),
        (lambda: LinearBeta(T=0), "T"),
        (lambda: LinearBeta(T=10), "1000 / T"),
        (lambda: Geometric(L=1), "at least 2"),
        (lambda: Discrete(torch.tensor([0.5, 1.0])), "between 0 and 1"),
        (lambda: VP(beta_min=20.0, beta_max=0.1), "smaller"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(build, said):
    with pytest.raises(ValueError, match=said):
        build()
