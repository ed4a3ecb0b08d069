"""A sampler's own cost: kernels per network call, and no scalar read inside the loop (design 4.2, performance T6)."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
from triptych.schedule import VE, VP, Rectified

VIEWS = {"select", "unbind", "expand", "view", "_unsafe_view", "slice", "unsqueeze", "detach", "as_strided", "t"}
SCALARS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero"}


class Counter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.kernels, self.scalars = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.kernels += name not in VIEWS
        self.scalars += name in SCALARS
        return func(*args, **(kwargs or {}))


class Fixed:
    """A network that costs nothing."""

    def __init__(self, schedule, x):
        self.schedule, self.x_0, self.calls = schedule, torch.zeros_like(x), 0

    def __call__(self, x_t, t, cond=None):
        self.calls += 1
        return self.x_0

    def moments(self, x_t, t, cond=None):
        self.calls += 1
        return self.x_0, self.x_0


# The most kernels a network call may cost, its random numbers included.
MOST = {
    "ddim": (lambda n: DDIM(steps=n), 2),
    "ddim_clip": (lambda n: DDIM(steps=n, clip=1.0), 3),
    "ddim_1": (lambda n: DDIM(steps=n, eta=1.0), 4),
    "ancestral": (lambda n: Ancestral(steps=n), 4),
    "ancestral_clip": (lambda n: Ancestral(steps=n, clip=1.0), 5),
    "ancestral_learned": (lambda n: Ancestral(steps=n, variance="learned"), 7),
    "euler_maruyama": (lambda n: EulerMaruyama(steps=n), 4),
    "reverse_diffusion": (lambda n: ReverseDiffusion(steps=n), 4),
    "predictor_corrector": (lambda n: PredictorCorrector(steps=n), 4),
    "annealed_langevin": (lambda n: AnnealedLangevin(steps=n, steps_per_level=3), 4),
    "flow_euler": (lambda n: ProbabilityFlow(steps=n, method="euler"), 2),
    "flow_heun": (lambda n: ProbabilityFlow(steps=n, method="heun"), 2.5),
    "flow_rk4": (lambda n: ProbabilityFlow(steps=n, method="rk4"), 3.5),
    "heun": (lambda n: Heun(steps=n), 2.5),
    "stochastic_heun": (lambda n: StochasticHeun(steps=n), 4),
    "dpm_solver_1": (lambda n: DPMSolver(steps=n, order=1), 2),
    "dpm_solver_2": (lambda n: DPMSolver(steps=n), 3),
    "dpm_solver_3": (lambda n: DPMSolver(steps=n, order=3), 4),
    "sde_dpm_solver": (lambda n: DPMSolver(steps=n, sde=True), 5),
    "uni_pc_1": (lambda n: UniPC(steps=n, order=1), 3),
    "uni_pc_2": (lambda n: UniPC(steps=n), 4),
    "uni_pc_3": (lambda n: UniPC(steps=n, order=3), 5),
}


def count(sampler, schedule):
    """Kernels, scalar reads and calls after the first yield, i.e. inside the loop."""
    x = torch.zeros(4, 3, 8, 8)
    denoiser = Fixed(schedule, x)
    with torch.no_grad():
        trajectory = sampler.trajectory(denoiser, x)
        next(trajectory)
        calls = denoiser.calls
        with Counter() as counter:
            for _ in trajectory:
                pass
    return counter.kernels, counter.scalars, denoiser.calls - calls


@pytest.mark.parametrize("schedule", [VP(), VE(0.02, 50.0), Rectified()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("key", MOST)
def test_kernels_per_call(key, schedule):
    make, most = MOST[key]
    if key == "annealed_langevin" and type(schedule) is not VE:
        pytest.skip("alpha = 1 only")
    short, scalars, calls = count(make(20), schedule)
    long, more_scalars, more_calls = count(make(40), schedule)
    assert scalars == more_scalars == 0
    assert (long - short) / (more_calls - calls) <= most <= 8
