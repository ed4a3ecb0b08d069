"""How fast each solver converges: on the two-mode mixture for the deterministic ones, in distribution for the others.

The reference is SciPy's eighth-order Runge-Kutta in log sigma / alpha, which shares no code with any of our solvers.
"""

import functools
import math

import pytest
import torch
from oracles import gaussian, gaussian_flow, two_modes
from scipy.integrate import solve_ivp

from triptych.sampler import (
    DDIM,
    Ancestral,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    StochasticHeun,
    UniPC,
)
from triptych.schedule import EDM, VE, VP, Rectified, SubVP

SCHEDULES = {"vp": VP(), "sub_vp": SubVP(), "ve": VE(0.02, 8.0), "edm": EDM(0.01, 40.0), "rectified": Rectified()}
KEYS = [k if k == "vp" else pytest.param(k, marks=pytest.mark.slow) for k in SCHEDULES]
T_START = {"rectified": 0.99}  # of alpha(1) = 0 only the first-order step knows

DETERMINISTIC = {
    "ddim": (DDIM, {}, 1),
    "heun": (Heun, {}, 2),
    "dpm_solver_1": (DPMSolver, {"order": 1}, 1),
    "dpm_solver_2": (DPMSolver, {"order": 2}, 2),
    "dpm_solver_3": (DPMSolver, {"order": 3}, 3),
    "uni_pc_1": (UniPC, {"order": 1}, 2),  # UniC raises the order of UniP by one
    "uni_pc_2": (UniPC, {"order": 2}, 3),
    "uni_pc_3": (UniPC, {"order": 3}, 3),  # 4 but for its first steps, whose order is lower
    "flow_euler": (ProbabilityFlow, {"method": "euler"}, 1),
    "flow_heun": (ProbabilityFlow, {"method": "heun"}, 2),
    "flow_rk4": (ProbabilityFlow, {"method": "rk4"}, 4),
}


def at(f, t):
    return float(f(torch.tensor(t, dtype=torch.float64)))


@functools.cache
def reference(key):
    """Starts [B, 2], and where the exact flow takes them at the cleanest grid point, then the last step to x_0."""
    schedule, start = SCHEDULES[key], T_START.get(key, 1.0)
    denoiser, end = two_modes(schedule), schedule.grid_ends[0]
    source = torch.Generator().manual_seed(0)
    x = at(schedule.sigma, start) * torch.randn(8, 2, generator=source, dtype=torch.float64)

    def slope(log_sigma, y):  # d y / d log sigma = y - x_0, y = x / alpha
        t = schedule.time(torch.tensor([-2 * log_sigma], dtype=torch.float64))
        y = torch.from_numpy(y).reshape(x.shape)
        return (y - denoiser(schedule.alpha(t) * y, t.expand(len(x)))).flatten().numpy()

    ends = (-at(schedule.log_snr, start) / 2, -at(schedule.log_snr, end) / 2)
    y = (x / at(schedule.alpha, start)).flatten().numpy()
    y = solve_ivp(slope, ends, y, method="DOP853", rtol=1e-11, atol=1e-11).y[:, -1]
    exact = torch.from_numpy(y).reshape(x.shape) * at(schedule.alpha, end)
    if at(schedule.sigma, 0.0) == 0:
        exact = denoiser(exact, torch.full((len(x),), end, dtype=torch.float64))
    return x, exact


def error(key, sampler, x, exact):
    return float((sampler(two_modes(SCHEDULES[key]), x) - exact).square().mean().sqrt())


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_on_the_mixture(name, key):
    make, options, order = DETERMINISTIC[name]
    x, exact = reference(key)
    options = {"t_start": T_START.get(key, 1.0), **options}
    coarse, fine = (error(key, make(steps=n, **options), x, exact) for n in (128, 256))
    slope = math.log2(coarse / fine)
    assert slope > order - 0.35, (coarse, fine, slope)
    assert slope < order + 0.45 or name == "uni_pc_3", (coarse, fine, slope)


@pytest.mark.parametrize("key", KEYS)
def test_adaptive_flow_is_as_exact_as_its_tolerance(key):
    """Dormand-Prince from t = 1 to t_min, on Gaussian data, whose flow has a closed form."""
    schedule = SCHEDULES[key]
    x = schedule.prior_std * torch.randn(5, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = gaussian_flow(schedule, x, 1.0, schedule.t_min, 0.3, 0.5)
    for tolerance in (1e-3, 1e-6, 1e-9):
        y = ProbabilityFlow(rtol=tolerance, atol=tolerance)(gaussian(schedule, 0.3, 0.5), x)
        assert (y - exact).abs().max() < 100 * tolerance


# Stochastic samplers on Gaussian data: every step is affine in x and z, so the law of the sample is known without any
# Monte Carlo error. Row 0 of the batch carries the mean; row k the weight of the k-th random number.


def law(sampler, denoiser, draws):
    """Mean and standard deviation of the sampler's output, exactly."""
    x = torch.zeros(draws + 2, 1, dtype=torch.float64)
    x[1] = denoiser.schedule.prior_std
    count = iter(range(2, draws + 2))

    def noise(like):
        z = torch.zeros_like(like)
        z[next(count)] = 1
        return z

    y = sampler(denoiser, x, noise=noise)
    return float(y[0]), float((y[1:] - y[0]).square().sum().sqrt())


STOCHASTIC = {
    "ancestral": (Ancestral, {}, 1),
    "ancestral_large": (Ancestral, {"variance": "fixed_large"}, 1),
    "ddim_1": (DDIM, {"eta": 1.0}, 1),
    "ddim_half": (DDIM, {"eta": 0.5}, 1),
    "euler_maruyama": (EulerMaruyama, {}, 1),
    "reverse_diffusion": (ReverseDiffusion, {}, 1),
    "sde_dpm_solver_1": (DPMSolver, {"sde": True, "order": 1}, 1),
    "sde_dpm_solver_2": (DPMSolver, {"sde": True}, 2),
    "stochastic_heun": (StochasticHeun, {"S_churn": 3.0}, 2),
    "pc": (PredictorCorrector, {}, 1),
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_weak_order_on_a_gaussian(name, key):
    make, options, order = STOCHASTIC[name]
    schedule, start = SCHEDULES[key], T_START.get(key, 1.0)
    denoiser = gaussian(schedule, 0.3, 0.5)
    laws = [law(make(steps=n, t_start=start, **options), denoiser, 2 * n) for n in (50, 100, 200)]
    coarse, fine = (abs(a[1] - b[1]) for a, b in zip(laws[:-1], laws[1:], strict=True))
    assert math.log2(coarse / fine) > order - 0.2, laws  # on some schedules a Gaussian's leading error vanishes
    assert laws[-1] == pytest.approx((0.3, math.hypot(0.5, at(schedule.sigma, 0.0))), rel=0.05)
