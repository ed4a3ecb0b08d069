"""Mean, width and weight of every mode, on every schedule, by every sampler: two modes in the plane."""

import pytest
import torch
from oracles import MODES, WEIGHTS, WIDTH, finite, gaussian, two_modes

from triptych.noise import from_generator
from triptych.sampler import (
    DDIM,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    StochasticHeun,
    UniPC,
)
from triptych.schedule import EDM, VE, VP, Cosine, Geometric, Learned, LinearBeta, QuadraticBeta, Rectified, SubVP

FAST = [LinearBeta(), VE(0.02, 50.0)]
SLOW = [
    QuadraticBeta(),
    Cosine(),
    VP(),
    SubVP(),
    Geometric(60, 0.02, 10.0),
    EDM(),
    Rectified(),
    Learned(log_snr_min=-9.0),
]
SCHEDULES = [*FAST, *(pytest.param(schedule, marks=pytest.mark.slow) for schedule in SLOW)]
SAMPLERS = {
    "ancestral": Ancestral(steps=150),
    "ancestral_large": Ancestral(steps=200, variance="fixed_large"),
    "ddim": DDIM(steps=200),
    "ddim_1": DDIM(steps=150, eta=1.0),
    "annealed_langevin": AnnealedLangevin(steps=150, steps_per_level=10),
    "euler_maruyama": EulerMaruyama(steps=150),
    "reverse_diffusion": ReverseDiffusion(steps=200),
    "pc_ancestral": PredictorCorrector(steps=100),
    "pc_reverse_diffusion": PredictorCorrector(steps=200, predictor="reverse_diffusion"),
    "pc_euler_maruyama": PredictorCorrector(steps=100, predictor="euler_maruyama"),
    "pc_batch": PredictorCorrector(steps=100, norm="batch"),
    "flow": ProbabilityFlow(rtol=1e-4, atol=1e-4),
    "flow_euler": ProbabilityFlow(steps=500, method="euler"),
    "flow_heun": ProbabilityFlow(steps=50),
    "flow_rk4": ProbabilityFlow(steps=25, method="rk4"),
    "heun": Heun(steps=30),
    "stochastic_heun": StochasticHeun(steps=50, S_churn=20.0),
    "dpm_solver": DPMSolver(steps=30),
    "dpm_solver_3": DPMSolver(steps=40, order=3),
    "sde_dpm_solver": DPMSolver(steps=50, sde=True),
    "uni_pc": UniPC(steps=30),
    "uni_pc_3": UniPC(steps=40, order=3),
}


def name(schedule):
    return type(schedule).__name__


def draw(sampler, denoiser, n, *shape):
    noise = from_generator(torch.Generator().manual_seed(0))
    return sampler(denoiser, sampler.start(denoiser.schedule, (n, *shape), noise).double(), noise=noise)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("key", SAMPLERS)
def test_modes(key, schedule):
    """Weights to 0.035 (three standard errors of 2000 samples), means to 0.02, widths to 10 %."""
    sampler, denoiser = SAMPLERS[key], two_modes(schedule)
    if key == "annealed_langevin" and name(schedule) not in ("VE", "Geometric", "EDM"):
        with pytest.raises(ValueError, match="alpha = 1"):
            sampler(denoiser, torch.zeros(1, 2))
        return
    x = draw(sampler, denoiser, 2000, 2)
    mode = torch.cdist(x, torch.tensor(MODES, dtype=torch.float64)).argmin(1)
    for k in (0, 1):
        mine = x[mode == k]
        assert len(mine) / len(x) == pytest.approx(WEIGHTS[k], abs=0.035)
        assert mine.mean(0).tolist() == pytest.approx(MODES[k], abs=0.02)
        assert float(mine.var(0).mean().sqrt()) == pytest.approx(WIDTH, rel=0.1)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_a_finite_dataset_is_hit(schedule):
    """All probability lies on three points; what is left is sigma(0)."""
    denoiser = finite(schedule)
    x = draw(DDIM(steps=60, denoise="tweedie"), denoiser, 300, 2)
    distance, nearest = torch.cdist(x, denoiser.points).min(1)
    assert float((distance < 1e-3).double().mean()) > 0.98
    assert (nearest.bincount(minlength=3) / 300).tolist() == pytest.approx([1 / 3] * 3, abs=0.1)


@pytest.mark.parametrize("key", SAMPLERS)
def test_float32_and_images(key):
    """Samples of images in float32: finite, and with the moments of the Gaussian they were to have."""
    sampler, schedule = SAMPLERS[key], VE(0.02, 10.0)
    noise = from_generator(torch.Generator().manual_seed(0))
    x = sampler(gaussian(schedule, 0.3, 0.5, (3, 4, 4)), sampler.start(schedule, (100, 3, 4, 4), noise), noise=noise)
    assert x.dtype == torch.float32 and x.shape == (100, 3, 4, 4)
    assert float(x.mean()) == pytest.approx(0.3, abs=0.03)
    assert float(x.std()) == pytest.approx(0.5, rel=0.1)
