"""What every sampler promises, whatever its algorithm."""

import copy
import dataclasses
import math

import pytest
import torch
from oracles import gaussian, two_modes

from triptych.noise import SampleNoise
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
from triptych.schedule import EDM, VE, VP, Cosine, Geometric, LinearBeta, Rectified

SAMPLERS = {
    "ancestral": Ancestral(steps=12),
    "ancestral_large": Ancestral(steps=12, variance="fixed_large"),
    "ddim": DDIM(steps=12),
    "ddim_1": DDIM(steps=12, eta=1.0),
    "annealed_langevin": AnnealedLangevin(steps=4, steps_per_level=3),
    "euler_maruyama": EulerMaruyama(steps=12),
    "reverse_diffusion": ReverseDiffusion(steps=12),
    "pc_ancestral": PredictorCorrector(steps=6),
    "pc_reverse_diffusion": PredictorCorrector(steps=6, predictor="reverse_diffusion"),
    "pc_euler_maruyama": PredictorCorrector(steps=6, predictor="euler_maruyama", corrector_steps=2),
    "flow": ProbabilityFlow(),
    "flow_euler": ProbabilityFlow(steps=12, method="euler"),
    "flow_heun": ProbabilityFlow(steps=12, method="heun"),
    "flow_rk4": ProbabilityFlow(steps=12, method="rk4"),
    "heun": Heun(steps=12),
    "stochastic_heun": StochasticHeun(steps=12, S_churn=10.0),
    "dpm_solver_1": DPMSolver(steps=12, order=1),
    "dpm_solver_2": DPMSolver(steps=12),
    "dpm_solver_3": DPMSolver(steps=12, order=3),
    "sde_dpm_solver": DPMSolver(steps=12, sde=True),
    "uni_pc_1": UniPC(steps=12, order=1),
    "uni_pc_2": UniPC(steps=12),
    "uni_pc_3": UniPC(steps=12, order=3),
}
DETERMINISTIC = [k for k in SAMPLERS if k.startswith(("ddim", "flow", "heun", "dpm", "uni")) and k != "ddim_1"]
SCHEDULE = VE(0.02, 10.0)  # every sampler works on it

# Network calls for 18 steps where sigma(0) = 0 (VP), and where it is not (VE).
CALLS = [
    (Ancestral(steps=18), 18, 18),
    (DDIM(steps=18), 18, 18),
    (DDIM(steps=18, denoise="tweedie"), 18, 19),
    (EulerMaruyama(steps=18), 18, 18),
    (ReverseDiffusion(steps=18, denoise="tweedie"), 19, 19),
    (PredictorCorrector(steps=18, corrector_steps=2), 54, 54),
    (PredictorCorrector(steps=18, corrector_steps=0), 18, 18),
    (ProbabilityFlow(steps=18, method="euler"), 18, 18),
    (ProbabilityFlow(steps=18, method="heun"), 35, 36),
    (ProbabilityFlow(steps=18, method="rk4"), 69, 72),
    (Heun(steps=18), 35, 36),
    (StochasticHeun(steps=18), 35, 36),
    (DPMSolver(steps=18, order=3), 18, 18),
    (DPMSolver(steps=18, sde=True), 18, 18),
    (UniPC(steps=18, order=3), 18, 18),
]


def start(n=6):
    return 10 * torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def no_noise(like):
    raise AssertionError("noise was drawn where none is used")


class Recorder:
    """A denoiser that keeps what it was given and what it gave, with copies of both."""

    def __init__(self, denoiser):
        self.denoiser, self.schedule, self.seen = denoiser, denoiser.schedule, []

    def __call__(self, x_t, t, cond=None):
        x_0 = self.denoiser(x_t, t, cond)
        self.seen += [(v, v.clone()) for v in (x_t, t, x_0)]
        return x_0


@pytest.mark.parametrize("key", SAMPLERS)
def test_nothing_is_shared_or_changed(key):
    """Neither the caller's x, nor what the denoiser saw or returned, nor any yielded tensor changes afterwards."""
    x, recorder = start(), Recorder(two_modes(SCHEDULE))
    before, kept = x.clone(), []
    for y in SAMPLERS[key].trajectory(recorder, x):
        kept.append((y, y.clone()))
    assert torch.equal(x, before)
    assert all(torch.equal(a, b) for a, b in (*recorder.seen, *kept))
    assert len({y.data_ptr() for y, _ in kept} | {x.data_ptr()}) == len(kept) + 1


@pytest.mark.parametrize("key", SAMPLERS)
def test_an_identity_denoiser_is_not_written_to(key):
    """A network may return its own input."""

    class Identity:
        schedule = SCHEDULE

        def __call__(self, x_t, t, cond=None):
            return x_t

    x = start()
    before = x.clone()
    list(SAMPLERS[key].trajectory(Identity(), x))
    assert torch.equal(x, before)


@pytest.mark.parametrize("key", SAMPLERS)
def test_samplers_are_frozen_and_stateless(key):
    """T-S17: the same sampler on another batch, then on the first again, gives the same bits."""
    sampler, denoiser = SAMPLERS[key], two_modes(SCHEDULE)
    before = copy.deepcopy(sampler)
    first = sampler(denoiser, start(), noise=SampleNoise(0, range(6)))
    sampler(denoiser, start(3), noise=SampleNoise(1, range(3)))
    assert torch.equal(first, sampler(denoiser, start(), noise=SampleNoise(0, range(6))))
    assert sampler == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampler.steps = 3


@pytest.mark.parametrize("key", SAMPLERS)
def test_sample_i_does_not_depend_on_its_batch(key):
    """T-F11, T-S7, T-K9: any split of the batch gives the same samples."""
    sampler, denoiser, x = SAMPLERS[key], two_modes(SCHEDULE), start()
    whole = sampler(denoiser, x, noise=SampleNoise(7, range(6)))
    for edges in ([0, 2, 6], [0, 1, 2, 3, 4, 5, 6]):
        parts = [
            sampler(denoiser, x[a:b], noise=SampleNoise(7, range(a, b)))
            for a, b in zip(edges[:-1], edges[1:], strict=True)
        ]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-10, atol=1e-12)


def test_the_papers_batch_norm_does_depend_on_the_batch():
    """So `norm` is worth recording: T-S7."""
    sampler, denoiser, x = PredictorCorrector(steps=6, norm="batch"), two_modes(SCHEDULE), start()
    whole = sampler(denoiser, x, noise=SampleNoise(7, range(6)))
    part = sampler(denoiser, x[:2], noise=SampleNoise(7, range(2)))
    assert (whole[:2] - part).abs().max() > 1e-3


@pytest.mark.parametrize("schedule", [SCHEDULE, VP(), Rectified()], ids=["ve", "vp", "rectified"])
@pytest.mark.parametrize("key", DETERMINISTIC)
def test_deterministic_samplers_draw_nothing(key, schedule):
    SAMPLERS[key](two_modes(schedule), start(), noise=no_noise)


def test_stochastic_heun_draws_only_between_s_min_and_s_max():
    denoiser = two_modes(EDM())
    StochasticHeun(steps=18, S_churn=0.0)(denoiser, start(), noise=no_noise)
    StochasticHeun(steps=18, S_churn=40.0, S_min=90.0)(denoiser, start(), noise=no_noise)


@pytest.mark.parametrize("key", [k for k in SAMPLERS if k not in (*DETERMINISTIC, "annealed_langevin")])
@pytest.mark.parametrize("schedule", [SCHEDULE, VP()], ids=["ve", "vp"])
def test_the_last_step_adds_no_noise(key, schedule):
    """T-L2, T-S1: as many draws as noisy steps; the last one returns its mean."""
    draws, sampler = [], SAMPLERS[key]

    def noise(like):
        draws.append(1)
        return torch.randn_like(like)

    sampler(two_modes(schedule), start(), noise=noise)
    if key == "stochastic_heun":
        assert len(draws) == sampler.steps  # before the step, not after it
    else:
        correctors = sampler.steps * getattr(sampler, "corrector_steps", 0)
        assert len(draws) == correctors + sampler.steps - 1


@pytest.mark.parametrize(
    ("sampler", "vp", "ve"), CALLS, ids=lambda v: type(v).__name__ if not isinstance(v, int) else ""
)
def test_network_calls(sampler, vp, ve):
    """T-S2, T-S14: Heun's 18 steps make 35 calls."""
    for schedule, calls in ((VP(), vp), (SCHEDULE, ve)):
        denoiser = two_modes(schedule)
        sampler(denoiser, start())
        assert denoiser.calls == calls


def test_network_calls_of_annealed_langevin():
    """L T and one for the denoising: 232 levels of 5 steps are the paper's 1160 + 1."""
    denoiser = two_modes(Geometric(232, 0.02, 100.0))
    AnnealedLangevin()(denoiser, start(2))
    assert denoiser.calls == 1161
    denoiser = two_modes(EDM())
    AnnealedLangevin(steps=7, steps_per_level=3, denoise=False)(denoiser, start(2))
    assert denoiser.calls == 21
    sigmas = EDM().sigma(torch.stack([t[0] for t in denoiser.times[::3]]))
    assert sigmas.tolist() == pytest.approx([80 * (0.002 / 80) ** (i / 6) for i in range(7)], rel=1e-6)


@pytest.mark.parametrize("key", SAMPLERS)
def test_times_fall_and_are_of_the_batch(key):
    """t is [B], float; in float32 the network sees float32, in half precision still float32 (T-L14)."""
    for dtype, seen in [(torch.float64, torch.float64), (torch.float32, torch.float32)]:
        denoiser = two_modes(SCHEDULE)
        y = SAMPLERS[key](denoiser, start().to(dtype))
        assert y.dtype == dtype
        assert all(t.shape == (6,) and t.dtype == seen for t in denoiser.times)
        if key not in ("flow", "flow_rk4", "stochastic_heun"):
            assert all((b <= a).all() for a, b in zip(denoiser.times[:-1], denoiser.times[1:], strict=True))


@pytest.mark.parametrize("key", [k for k in SAMPLERS if k != "annealed_langevin"])
def test_float32_follows_float64(key):
    """Coefficients are float64 whatever the state is: only the state rounds."""
    double = SAMPLERS[key](gaussian(SCHEDULE, 0.3, 0.5, (2,)), start(), noise=SampleNoise(0, range(6)))
    single = SAMPLERS[key](gaussian(SCHEDULE, 0.3, 0.5, (2,)), start().float(), noise=SampleNoise(0, range(6)))
    assert (double - single).abs().max() < 1e-4


@pytest.mark.parametrize("key", SAMPLERS)
def test_t_start_begins_there(key):
    """SDEdit: x at t_start is what is walked from; a start of x_0 plus noise comes back to x_0's mode."""
    sampler = dataclasses.replace(SAMPLERS[key], t_start=0.4)
    denoiser = two_modes(SCHEDULE)
    sigma = float(SCHEDULE.sigma(torch.tensor(0.4)))
    x_0 = denoiser.points[[0, 1]].repeat(20, 1)
    noise = SampleNoise(0, range(40))
    y = sampler(denoiser, x_0 + sigma * noise(x_0), noise=noise)
    assert max(float(t.max()) for t in denoiser.times) <= 0.4 + 1e-6 or key == "stochastic_heun"
    assert float(denoiser.times[0].max()) >= 0.4 - 1e-6
    nearest = torch.cdist(y, denoiser.points).argmin(1)
    assert (nearest == torch.tensor([0, 1] * 20)).double().mean() > 0.8


@pytest.mark.parametrize("key", [k for k in SAMPLERS if k not in ("flow",)])
@pytest.mark.parametrize("limit", [{"clip": 0.2}, {"dynamic_threshold": 0.9}])
def test_clipping_acts_on_every_prediction(key, limit):
    """With x_0 clipped to 0.2, a deterministic step to sigma = 0 ends there, and nothing unclipped leaks in."""
    sampler = dataclasses.replace(SAMPLERS[key], denoise="tweedie", **limit)

    class Far:
        schedule = SCHEDULE

        def __call__(self, x_t, t, cond=None):
            return torch.full_like(x_t, 5.0)

    bound = 0.2 if "clip" in limit else 1.0
    assert sampler(Far(), start()).abs().max() <= bound + 1e-12
    assert torch.equal(sampler.limit(torch.tensor([[0.1, -0.1]])), torch.tensor([[0.1, -0.1]]))


@pytest.mark.parametrize("key", [k for k in SAMPLERS if k not in ("annealed_langevin", "flow")])
@pytest.mark.parametrize(
    "schedule", [Rectified(), Cosine(), VP(), EDM(), LinearBeta(T=25)], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_are_finite_on_every_schedule(key, schedule, steps):
    """Infinite log-SNR at either end is never history: alpha(1) = 0 for Rectified, sigma(0) = 0 for all of these."""
    sampler = dataclasses.replace(SAMPLERS[key], steps=steps)
    y = sampler(two_modes(schedule), schedule.prior_std * start() / 10, noise=SampleNoise(0, range(6)))
    assert y.isfinite().all()
    if key.startswith(("ddim", "dpm", "uni", "sde")) or key == "ancestral":  # exact for a constant x_0, however few
        assert y.abs().max() < 2


def test_out_of_alpha_zero_the_step_is_first_order():
    """At alpha = 0 x is noise alone: x_s = alpha_s x_0 + sigma_s x_t for every deterministic solver."""
    schedule, x = Rectified(), start() / 10
    denoiser = two_modes(schedule)
    x_0 = denoiser(x, torch.ones(6, dtype=torch.float64))
    for key in ("ddim", "heun", "dpm_solver_2", "dpm_solver_3", "uni_pc_2", "uni_pc_3"):
        sampler = SAMPLERS[key]
        s = torch.tensor(sampler.path(denoiser).t[1], dtype=torch.float64)
        after = next(sampler.trajectory(denoiser, x))
        torch.testing.assert_close(after, schedule.alpha(s) * x_0 + schedule.sigma(s) * x, rtol=1e-10, atol=1e-12)


def test_the_infinite_start_is_never_history():
    """The second step from alpha = 0 is what it would be were it the first: nothing is extrapolated from t = 1."""
    schedule, x = Rectified(), start() / 10
    times = [1.0, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0]
    for make in (lambda g: DPMSolver(steps=1, order=3, grid=g), lambda g: UniPC(steps=1, order=1, grid=g)):
        _, second, *_ = walked = list(make(times).trajectory(two_modes(schedule), x))
        fresh = list(make(times[1:]).trajectory(two_modes(schedule), walked[0]))
        torch.testing.assert_close(second, fresh[0], rtol=1e-10, atol=1e-12)


def test_start_is_the_prior():
    shape = (20, 300)
    for schedule in (VP(), EDM(), Geometric(10, 0.02, 2.0)):
        x = DDIM(steps=1).start(schedule, shape, SampleNoise(0, range(20)))
        assert x.dtype == torch.float32 and float(x.std()) == pytest.approx(schedule.prior_std, rel=0.03)
        assert torch.equal(x, schedule.prior_std * SampleNoise(0, range(20))(torch.empty(shape)))
    u = AnnealedLangevin().start(Geometric(), shape, SampleNoise(0, range(20)))  # T-S11: U[-1, 1], still by sample
    assert u.abs().max() <= 1 and float(u.std()) == pytest.approx(math.sqrt(1 / 3), rel=0.03)
    quantiles = torch.quantile(u.flatten(), torch.linspace(0.1, 0.9, 9))
    torch.testing.assert_close(quantiles, torch.linspace(-0.8, 0.8, 9), rtol=0, atol=0.05)
    part = AnnealedLangevin().start(Geometric(), (5, 300), SampleNoise(0, range(10, 15)))
    assert torch.equal(part, u[10:15])


def test_langevin_takes_technique_4_for_the_levels_it_visits():
    from triptych.schedule.technique import langevin_step_size

    schedule = Geometric(50, 0.02, 10.0)
    sampler = AnnealedLangevin(steps_per_level=7, pull=None)
    path = sampler.path(two_modes(schedule))
    assert path.sigma == pytest.approx(schedule.sigma(schedule.levels.flip(0)).tolist())
    assert sampler.epsilon(path) == pytest.approx(langevin_step_size(0.02, 500 ** (1 / 49), 7))
    fewer = two_modes(schedule, levels=schedule.levels[::7])  # 8 levels from 0.02 to 10 are known
    path = sampler.path(fewer)
    assert len(path.sigma) == 8
    assert sampler.epsilon(path) == pytest.approx(langevin_step_size(0.02, 500 ** (1 / 7), 7))
    noisy = two_modes(schedule, levels=schedule.levels[10:])  # none cleaner than the eleventh is known
    AnnealedLangevin(steps=9, steps_per_level=2)(noisy, start(2))
    assert min(float(t[0]) for t in noisy.times) == pytest.approx(10 / 49)


def test_langevin_from_given_images_visits_no_noisier_level():
    schedule = Geometric(50, 0.02, 10.0)
    denoiser, sampler = two_modes(schedule), AnnealedLangevin(steps_per_level=1, t_start=0.5)
    sampler(denoiser, sampler.start_from(denoiser, start(2)))
    assert float(denoiser.times[0][0]) == pytest.approx(24 / 49) and len(denoiser.times) == 25 + 1


def test_pairs_that_cannot_work_are_refused_in_words():
    with pytest.raises(ValueError, match=r"alpha = 1 \(geometric, ve, edm\)"):
        AnnealedLangevin(steps=5).check(two_modes(VP()))
    with pytest.raises(ValueError, match=r"sampler.steps=100"):
        AnnealedLangevin().check(two_modes(EDM()))
    AnnealedLangevin().check(two_modes(Geometric()))
    levels = two_modes(Geometric(), levels=Geometric().levels)
    for method, steps in (("rk4", 5), ("dopri5", None)):
        with pytest.raises(ValueError, match="method=euler or heun"):
            ProbabilityFlow(steps=steps, method=method).check(levels)
    for key, sampler in SAMPLERS.items():  # all others run on a network of levels, and only ask for those
        if key not in ("flow", "flow_rk4"):
            assert sampler(levels, start() / 5).isfinite().all()


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: DDIM(steps=0), "at least 1"),
        (lambda: DDIM(steps=2.5), "whole number"),
        (lambda: DDIM(steps=5, eta=1.5), "between 0"),
        (lambda: DDIM(steps=5, clip=-1.0), "clip"),
        (lambda: DDIM(steps=5, clip=1.0, dynamic_threshold=0.9), "not both"),
        (lambda: DDIM(steps=5, t_start=0.0), "t_start"),
        (lambda: DDIM(steps=5, denoise="yes"), "mean, tweedie, none"),
        (lambda: Ancestral(steps=5, variance="small"), "fixed_small"),
        (lambda: AnnealedLangevin(steps_per_level=0), "at least 1"),
        (lambda: AnnealedLangevin(step_size=-1.0), "positive"),
        (lambda: AnnealedLangevin(steps=1, pull=None), "two levels"),
        (lambda: AnnealedLangevin(pull=2.0), "at most 1"),
        (lambda: PredictorCorrector(steps=5, predictor="euler"), "reverse_diffusion"),
        (lambda: PredictorCorrector(steps=5, predictor=Heun(steps=5)), "cannot be the predictor"),
        (lambda: PredictorCorrector(steps=5, predictor=Ancestral(steps=5, variance="learned")), "fixed variance"),
        (lambda: PredictorCorrector(steps=5, snr=0.0), "snr"),
        (lambda: PredictorCorrector(steps=5, norm="sample"), "expected, batch"),
        (lambda: ProbabilityFlow(steps=5, method="dopri5"), "steps=null"),
        (lambda: ProbabilityFlow(method="heun"), "number of steps"),
        (lambda: ProbabilityFlow(rtol=0.0), "rtol"),
        (lambda: StochasticHeun(steps=5, S_churn=-1.0), "S_churn"),
        (lambda: StochasticHeun(steps=5, S_min=2.0, S_max=1.0), "S_min <= S_max"),
        (lambda: DPMSolver(steps=5, order=4), "1, 2 or 3"),
        (lambda: DPMSolver(steps=5, order=3, sde=True), "SDE"),
        (lambda: UniPC(steps=5, order=0), "1, 2 or 3"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(build, said):
    with pytest.raises(ValueError, match=said):
        build()
