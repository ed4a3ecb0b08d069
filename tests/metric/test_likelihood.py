"""log p(x_0) by the probability-flow ODE, where it is known."""

import math

import pytest
import torch
from networks import Speaker
from oracles import Mixture, gaussian, two_modes
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

from triptych.formulation import NCSN, ScoreSDE
from triptych.metric import log_likelihood
from triptych.metric.likelihood import _norm, flow_likelihood
from triptych.model import MLP
from triptych.schedule import EDM, VE, VP, Cosine, Geometric, Learned, LinearBeta, QuadraticBeta, Rectified, SubVP

SCHEDULES = [
    LinearBeta(),
    QuadraticBeta(),
    Cosine(),
    VP(),
    SubVP(),
    VE(),
    Geometric(L=50, sigma_max=100.0),
    EDM(),
    Rectified(),
    Learned(log_snr_min=-9.0, hidden=4),
]
STD = torch.tensor([0.2, 0.5, 0.9, 0.6], dtype=torch.float64)


class Gaussian:
    """x_0 ~ N(0, diag(std^2)), with a frozen bit of the world: how often and in what dtype it was called."""

    def __init__(self, schedule, std=STD):
        self.schedule, self.std, self.dtypes, self.batches = schedule, std, set(), 0

    def __call__(self, x_t, t, cond=None):
        self.dtypes.add(x_t.dtype)
        self.batches += 1
        alpha, sigma = (c.detach()[:, None] for c in (self.schedule.alpha(t.double()), self.schedule.sigma(t.double())))
        gain = alpha * self.std**2 / ((alpha * self.std) ** 2 + sigma**2)
        return gain.to(x_t.dtype) * x_t


def samples(n=6, seed=0):
    return STD * torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_flow(schedule, x_0):
    """The probability flow of a Gaussian is linear: the model's log-density at x_0 in closed form, prior included."""
    ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
    ratio = (-schedule.log_snr(ends).detach()).exp()  # (sigma / alpha)^2
    stretch = ((STD**2 + ratio[1]) / (STD**2 + ratio[0])).sqrt() * schedule.alpha(ends)[1].detach()
    return (Normal(0.0, schedule.prior_std).log_prob(stretch * x_0) + stretch.log()).sum(1)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_gaussian(schedule):
    """The data's density to 2e-2 nats, smoothed by sigma(t_min) (T-K12, T-K16); the flow's own to the tolerance."""
    x_0 = samples()
    found = log_likelihood(Gaussian(schedule), x_0, divergence="exact")
    assert found.shape == (6,) and found.dtype == torch.float64 and not found.requires_grad
    smoothing = (-schedule.log_snr(torch.tensor(schedule.t_min).double()).detach()).exp()  # (sigma / alpha)^2
    smoothed = Normal(0.0, (STD**2 + smoothing).sqrt()).log_prob(x_0).sum(1)
    torch.testing.assert_close(found, smoothed, rtol=0, atol=2e-2)
    torch.testing.assert_close(found, exact_flow(schedule, x_0), rtol=0, atol=1e-3)


@pytest.mark.parametrize("schedule", [VP(), LinearBeta(), EDM()], ids=lambda s: type(s).__name__)
def test_gaussian_with_a_tight_tolerance(schedule):
    x_0 = samples()
    found = log_likelihood(Gaussian(schedule), x_0, divergence="exact", rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, exact_flow(schedule, x_0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "schedule", [VE(0.02, 10.0), Geometric(50, 0.02, 10.0), VP(), EDM()], ids=lambda s: type(s).__name__
)
def test_what_is_missing_to_the_data_is_the_priors_gap(schedule):
    """64 dimensions of mean 0.3: N(0, prior_std^2) is not the marginal at t_max. On VE up to 10 that is 0.1 to 0.5 nats
    an image, in closed form to 1e-4; no solver's error."""
    mean, std = 0.3, 0.5
    x_0 = mean + std * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
    alpha, sigma = schedule.alpha(ends), schedule.sigma(ends)
    clean, noisy = (alpha**2 * std**2 + sigma**2).sqrt()
    data = Normal(mean, clean / alpha[0]).log_prob(x_0)
    latent = alpha[1] * mean + noisy / clean * alpha[0] * (x_0 - mean)
    gap = Normal(0.0, schedule.prior_std).log_prob(latent) - Normal(alpha[1] * mean, noisy).log_prob(latent)
    found = log_likelihood(gaussian(schedule, mean, std, (1, 8, 8)), x_0, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found, (data + gap).flatten(1).sum(1), rtol=0, atol=1e-4)
    assert (gap.flatten(1).sum(1).abs().max() > 0.1) == (schedule.prior_std == 10)


def test_mixture():
    """Not Gaussian, hence a trace that depends on x; against the mixture's density, smoothed by sigma(t_min)."""
    schedule, x_0 = VP(), two_modes(VP()).sample(40)
    found = log_likelihood(two_modes(schedule), x_0, divergence="exact")
    oracle = two_modes(schedule)
    parts = MultivariateNormal(oracle.points, torch.eye(2).double() * oracle.std**2)
    expected = MixtureSameFamily(Categorical(logits=oracle.log_weights), parts).log_prob(x_0)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-2)


def test_hutchinson_is_unbiased():
    """The mean over probes is the exact trace's answer; a single probe is not."""
    schedule = VP()
    x_0 = two_modes(schedule).sample(1).expand(400, 2)
    torch.manual_seed(0)
    found = log_likelihood(two_modes(schedule), x_0, rtol=1e-4, atol=1e-4)
    exact = log_likelihood(two_modes(schedule), x_0[:1], divergence="exact", rtol=1e-4, atol=1e-4)
    error = found - exact
    assert error.std() > 0.02
    assert error.mean().abs() < 4 * error.std() / math.sqrt(400)


def test_probe_is_frozen():
    """T-K8: drawn once for the whole solve."""
    calls = []

    def noise(like):
        calls.append(like.shape)
        return torch.ones_like(like)

    log_likelihood(Gaussian(VP()), samples(), noise=noise)
    assert calls == [(6, 4)]


def test_a_sample_does_not_know_its_batch():
    """T-K9: value and number of calls are the same alone and in a batch, also beside an outlier."""
    x_0 = torch.cat([samples(), 30 * samples(1, seed=1)])
    probe = torch.randint(0, 2, x_0.shape, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    whole = flow_likelihood(two_modes(VP()), x_0[:, :2], noise=lambda like: probe[:, :2])
    for i in range(len(x_0)):
        one = flow_likelihood(two_modes(VP()), x_0[i : i + 1, :2], noise=lambda like, i=i: probe[i : i + 1, :2])
        torch.testing.assert_close(one.nats[0], whole.nats[i], rtol=1e-9, atol=1e-9)
        assert int(one.calls) == int(whole.calls[i])


def test_the_latent_is_the_end_of_the_flow():
    """Data of the model arrive at the prior: for a Gaussian, stretched exactly."""
    schedule, x_0 = VP(), samples()
    found = flow_likelihood(Gaussian(schedule), x_0, rtol=1e-9, atol=1e-9)
    one = torch.ones(1, dtype=torch.float64)
    stretch = ((schedule.alpha(one) * STD) ** 2 + schedule.sigma(one) ** 2).sqrt() / STD
    torch.testing.assert_close(found.latent, stretch * x_0, rtol=1e-4, atol=0)


def test_float32_network_float64_state():
    """T-S18: the network sees x_0's dtype; the answer is float64 and near that of a float64 network."""
    denoiser, x_0 = Gaussian(LinearBeta()), samples()
    single = log_likelihood(denoiser, x_0.float(), divergence="exact")
    assert denoiser.dtypes == {torch.float32} and single.dtype == torch.float64
    torch.testing.assert_close(single, log_likelihood(denoiser, x_0, divergence="exact"), rtol=0, atol=1e-3)


def test_fixed_steps_converge():
    denoiser, x_0 = Gaussian(VP()), samples()
    reference = exact_flow(VP(), x_0)
    errors = []
    for steps in (30, 60, 120):
        found = flow_likelihood(denoiser, x_0, divergence="exact", steps=steps)
        assert (found.calls == 4 * steps).all()
        errors.append(float((found.nats - reference).abs().max()))
    assert errors[0] > 12 * errors[1] > 100 * errors[2]


def test_the_tolerance_is_that_of_log_p_however_many_dimensions():
    """Its error is one number beside D of the state: in their common mean square it would drown."""
    error = torch.zeros(2, 1025)
    error[0, -1], error[1, :-1] = -0.5, 0.25
    assert _norm(error).tolist() == [0.5, 0.25]


def test_images_conditions_and_no_grad():
    """Any shape; cond reaches the denoiser; gradients are the metric's own affair, whatever surrounds it."""
    seen = set()

    class Conditional(Gaussian):
        def __call__(self, x_t, t, cond=None):
            assert x_t.shape == (3, 1, 2, 2) and t.shape == (3,)
            seen.add(tuple(cond.tolist()))
            return super().__call__(x_t.flatten(1), t).view_as(x_t)

    x_0 = samples(3).view(3, 1, 2, 2)
    with torch.no_grad():
        found = log_likelihood(Conditional(VP()), x_0, cond=torch.tensor([1, 2, 0]), divergence="exact")
    assert seen == {(1, 2, 0)}
    torch.testing.assert_close(found, exact_flow(VP(), samples(3)), rtol=0, atol=1e-3)


def test_refusals():
    schedule = Geometric(L=10)
    score = lambda x_t, x_0, alpha, sigma: (alpha * x_0 - x_t) / sigma**2  # noqa: E731
    network = Speaker(Mixture(schedule, [[0.0, 0.0]], std=0.5), lambda c: 1 - c / 9, score)
    with pytest.raises(ValueError, match="valid at any noise level"):
        log_likelihood(NCSN(network, schedule, version=1), samples()[:, :2])
    with pytest.raises(ValueError, match="hutchinson, exact"):
        log_likelihood(Gaussian(VP()), samples(), divergence="skilling")

    class Closed(Gaussian):
        __call__ = torch.no_grad()(Gaussian.__call__)

    with pytest.raises(ValueError, match="gradients are off"):
        log_likelihood(Closed(VP()), samples())


@pytest.mark.filterwarnings("ignore")
def test_the_exact_divergence_leaves_a_compiled_network_alone():
    """Its backward pass, which torch.compile has given its memory away to, is run once a dimension."""
    calls = []

    def backend(graph, inputs):
        return lambda *inputs: calls.append(1) or graph.forward(*inputs)

    formulation, x_0 = ScoreSDE(MLP(2, 2, 16, 1), VP()).eval(), torch.rand(3, 2) - 0.5
    plain = log_likelihood(formulation, x_0, divergence="exact", steps=1)
    formulation.model.compile(backend=backend)
    log_likelihood(formulation, x_0, steps=1)
    seen = len(calls)
    again = log_likelihood(formulation, x_0, divergence="exact", steps=1)
    assert seen and len(calls) == seen and torch.equal(plain, again)
