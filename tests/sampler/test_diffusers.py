"""The same trajectories as diffusers' schedulers, in float64, on any grid: an implementation that is not ours.

diffusers keeps its tables in float32; ours are put in their place, so that what is compared is the algorithm. It is
told x_0 itself (prediction_type="sample"). Its timestep k means level (k + 1) / T of ours (T-L1).
"""

import math

import pytest
import torch
from oracles import two_modes

from triptych.noise import from_generator
from triptych.sampler import DDIM, Ancestral, DPMSolver, UniPC
from triptych.sampler.base import Path
from triptych.schedule import VP, Cosine, LinearBeta

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own making

SCHEDULES = {"linear": LinearBeta(), "cosine": Cosine(), "vp": VP()}
IRREGULAR = [1.0, 0.93, 0.9, 0.71, 0.64, 0.6, 0.42, 0.39, 0.3, 0.21, 0.17, 0.12, 0.09, 0.05, 0.03, 0.022, 0.01, 0.0]


def start():
    return torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def by_table(kind, schedule, steps, **options):
    """A scheduler of timesteps, with float64 tables."""
    scheduler = kind(
        num_train_timesteps=schedule.T,
        trained_betas=schedule.beta.tolist(),
        prediction_type="sample",
        timestep_spacing="trailing",  # our uniform grid
        clip_sample=False,
        **options,
    )
    scheduler.betas, scheduler.alphas = schedule.beta, 1 - schedule.beta
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.one = scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    scheduler.set_timesteps(steps)
    return scheduler


def run_by_table(scheduler, schedule, x, **options):
    """All steps but the last one, which lands on x_0: in respaced DDPM, diffusers adds noise to it (T-L2)."""
    denoiser, generator = two_modes(schedule), torch.Generator().manual_seed(0)
    for k in scheduler.timesteps[:-1]:
        t = torch.full((len(x),), (int(k) + 1) / schedule.T, dtype=torch.float64)
        x = scheduler.step(denoiser(x, t), k, x, generator=generator, **options).prev_sample
    return x


def stream():
    return from_generator(torch.Generator().manual_seed(0))


def last_but_one(sampler, schedule):
    return list(sampler.trajectory(two_modes(schedule), start(), noise=stream()))[-2]


@pytest.mark.parametrize("steps", [pytest.param(1000, marks=pytest.mark.slow), 50])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("key", ["linear", "cosine"])
def test_ddpm(key, variance, steps):
    schedule = SCHEDULES[key]
    scheduler = by_table(diffusers.DDPMScheduler, schedule, steps, variance_type=variance)
    theirs = run_by_table(scheduler, schedule, start())
    sampler = Ancestral(steps=steps, variance=variance, grid="uniform")
    torch.testing.assert_close(last_but_one(sampler, schedule), theirs, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("key", ["linear", "cosine"])
def test_ddim(key, eta):
    schedule = SCHEDULES[key]
    scheduler = by_table(diffusers.DDIMScheduler, schedule, 50, set_alpha_to_one=True)  # T-L11
    theirs = run_by_table(scheduler, schedule, start(), eta=eta)
    sampler = DDIM(steps=50, eta=eta, grid="uniform")
    torch.testing.assert_close(last_but_one(sampler, schedule), theirs, rtol=1e-7, atol=1e-8)


def run_by_sigma(kind, path, denoiser, x, noise=None, **options):
    """A multistep scheduler on the path's sigmas, ending at 0. Its sigma is sigma / alpha, its alpha^2 + sigma^2 = 1.

    DPMSolverMultistepScheduler casts its state to float32, UniPCMultistepScheduler does not.
    """
    scheduler = kind(prediction_type="sample", final_sigmas_type="zero", **options)
    scheduler.set_timesteps(len(path))
    scheduler.sigmas = torch.tensor([math.exp(-log_snr / 2) for log_snr in path.log_snr], dtype=torch.float64)
    scheduler.timesteps = torch.arange(len(path), 0, -1)
    for i, k in enumerate(scheduler.timesteps):
        x_0 = denoiser(x, torch.full((len(x),), path.t[i], dtype=torch.float64))
        z = {} if noise is None else {"variance_noise": noise(x)}
        x = scheduler.step(x_0, k, x, **z).prev_sample
    return x


@pytest.mark.parametrize(
    "grid", ["log_snr", "uniform", "karras", IRREGULAR], ids=lambda grid: grid if isinstance(grid, str) else "irregular"
)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("key", SCHEDULES)
def test_dpm_solver_multistep(key, order, grid):
    denoiser, sampler = two_modes(SCHEDULES[key]), DPMSolver(steps=20, order=order, grid=grid)
    kind, options = diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": order}
    theirs = run_by_sigma(kind, sampler.path(denoiser), denoiser, start(), **options)
    torch.testing.assert_close(sampler(denoiser, start()), theirs, rtol=5e-6, atol=1e-6)


@pytest.mark.parametrize(
    "grid", ["log_snr", IRREGULAR], ids=lambda grid: grid if isinstance(grid, str) else "irregular"
)
@pytest.mark.parametrize("order", [1, 2])
def test_sde_dpm_solver_multistep(order, grid):
    denoiser, sampler = two_modes(VP()), DPMSolver(steps=20, order=order, sde=True, grid=grid)
    kind, options = diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", "solver_order": order}
    theirs = run_by_sigma(kind, sampler.path(denoiser), denoiser, start(), stream(), **options)
    torch.testing.assert_close(sampler(denoiser, start(), noise=stream()), theirs, rtol=5e-6, atol=1e-6)


class Third(diffusers.DPMSolverMultistepScheduler):
    """diffusers' order 3 with the other half of its last term, the one that makes it of order 3."""

    def multistep_dpm_solver_third_order_update(self, model_output_list, *args, sample=None, noise=None, **kwargs):
        x = super().multistep_dpm_solver_third_order_update(model_output_list, *args, sample=sample, **kwargs)
        l_s, l_0, l_1, l_2 = (-self.sigmas[self.step_index + k].log() for k in (1, 0, -1, -2))
        h, (m_0, m_1, m_2) = l_s - l_0, reversed(model_output_list[-3:])
        second = ((m_0 - m_1) / (l_0 - l_1) - (m_1 - m_2) / (l_1 - l_2)) / (l_0 - l_2)  # half the second derivative
        alpha = 1 / (1 + self.sigmas[self.step_index + 1] ** 2).sqrt()
        return x + alpha * (h**2 / 2 - (h + torch.expm1(-h))) * second


@pytest.mark.parametrize(
    "grid", ["log_snr", "karras", IRREGULAR], ids=lambda grid: grid if isinstance(grid, str) else "irregular"
)
def test_dpm_solver_multistep_of_order_three(grid):
    denoiser, sampler = two_modes(VP()), DPMSolver(steps=20, order=3, grid=grid)
    options = {"algorithm_type": "dpmsolver++", "solver_order": 3, "lower_order_final": False}
    theirs = run_by_sigma(Third, sampler.path(denoiser), denoiser, start(), **options)
    torch.testing.assert_close(sampler(denoiser, start()), theirs, rtol=5e-6, atol=1e-6)


@pytest.mark.parametrize(
    "grid", ["log_snr", "uniform", "karras", IRREGULAR], ids=lambda grid: grid if isinstance(grid, str) else "irregular"
)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("key", SCHEDULES)
def test_uni_pc(key, order, grid):
    denoiser, sampler = two_modes(SCHEDULES[key]), UniPC(steps=20, order=order, grid=grid)
    kind, options = diffusers.UniPCMultistepScheduler, {"solver_order": order, "solver_type": "bh2"}
    theirs = run_by_sigma(kind, sampler.path(denoiser), denoiser, start(), **options)
    torch.testing.assert_close(sampler(denoiser, start()), theirs, rtol=1e-9, atol=1e-10)


def test_the_tables_that_are_compared_are_those_of_diffusers():
    """Its own linear and squared-cosine tables, to their float32."""
    for name, schedule in [("linear", LinearBeta()), ("squaredcos_cap_v2", Cosine())]:
        theirs = diffusers.DDPMScheduler(beta_schedule=name).alphas_cumprod.double()
        path = Path.of(schedule, schedule.levels)
        torch.testing.assert_close(torch.tensor(path.alpha).double() ** 2, theirs, rtol=2e-4, atol=1e-9)
