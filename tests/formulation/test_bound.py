"""DDPM's variational bound against a naive loop, and its parts against what they must satisfy."""

import math

import pytest
import torch
from networks import Speaker, ddpm, eps
from oracles import finite
from torch import nn
from torch.distributions import Normal

from triptych.formulation import DDPM
from triptych.formulation.bound import discretized_gaussian
from triptych.schedule import Cosine, LinearBeta


class Wrong(nn.Module):
    """A network that is neither right nor constant; with a variance, v is a function of the input, too."""

    def __init__(self, learned, prediction="eps"):
        super().__init__()
        self.learned, self.prediction = learned, prediction

    def forward(self, x, c_noise, cond=None):
        c = c_noise.reshape(-1, *[1] * (x.ndim - 1)) / 50
        output = torch.tanh(x) + 0.3 * torch.cos(c)
        if self.prediction == "x_0":  # close enough at k = 1 for the naive difference of distribution functions
            output = x + 0.02 * output
        return torch.cat([output, torch.sin(3 * x + c)], dim=1) if self.learned else output


def images(n=3, shape=(2, 3, 3), dtype=torch.float64):
    source = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (n, *shape), generator=source)
    levels[:, :, 0, 0], levels[:, :, 0, 1] = 0, 255
    return (levels.double() / 127.5 - 1).to(dtype)


def naive(network, beta, x_0, noises, variance, prediction):
    """The bound as Ho et al. (2020) and Nichol & Dhariwal (2021) write it: 0-based tables, one image at a time."""
    T = len(beta)
    abar = [math.prod(1 - b for b in beta[: i + 1]) for i in range(T)]
    previous = [1.0, *abar[:-1]]
    posterior_variance = [beta[i] * (1 - previous[i]) / (1 - abar[i]) for i in range(T)]
    clipped = [math.log(posterior_variance[max(i, 1)]) for i in range(T)]  # T-K2
    terms = torch.zeros(len(x_0), T, dtype=torch.float64)
    for row, i in enumerate(range(T - 1, -1, -1)):
        for b in range(len(x_0)):
            x = x_0[b]
            x_t = math.sqrt(abar[i]) * x + math.sqrt(1 - abar[i]) * noises[row][b]
            said = network(x_t[None], torch.tensor([float(i)]).double())[0]
            if variance == "learned":
                said, frac = said[: len(x)], (said[len(x) :] + 1) / 2
                log_variance = frac * math.log(beta[i]) + (1 - frac) * clipped[i]
            elif variance == "fixed_small":
                log_variance = torch.full_like(x, clipped[i])
            else:
                log_variance = torch.full_like(x, math.log([posterior_variance[1], *beta[1:]][i]))
            guess = {
                "eps": lambda: (x_t - math.sqrt(1 - abar[i]) * said) / math.sqrt(abar[i]),  # noqa: B023
                "x_0": lambda: said,  # noqa: B023
                "v": lambda: math.sqrt(abar[i]) * x_t - math.sqrt(1 - abar[i]) * said,  # noqa: B023
            }[prediction]()
            coef_x_0 = beta[i] * math.sqrt(previous[i]) / (1 - abar[i])
            coef_x_t = (1 - previous[i]) * math.sqrt(1 - beta[i]) / (1 - abar[i])
            true_mean, mean = coef_x_0 * x + coef_x_t * x_t, coef_x_0 * guess + coef_x_t * x_t
            if i > 0:
                kl = 0.5 * (
                    -1
                    + log_variance
                    - clipped[i]
                    + torch.exp(clipped[i] - log_variance)
                    + (true_mean - mean) ** 2 * torch.exp(-log_variance)
                )
                terms[b, row] = kl.mean() / math.log(2)
            else:
                normal = Normal(mean, torch.exp(log_variance / 2))
                above = torch.where(x > 0.999, torch.ones_like(x), normal.cdf(x + 1 / 255))
                below = torch.where(x < -0.999, torch.zeros_like(x), normal.cdf(x - 1 / 255))
                terms[b, row] = -torch.log(above - below).mean() / math.log(2)
    mean, var = math.sqrt(abar[-1]) * x_0, 1 - abar[-1]
    prior = (0.5 * (mean**2 + var - 1 - math.log(var))).flatten(1).mean(1) / math.log(2)
    return prior, terms


def beta_table(T, beta_min=1e-4, beta_max=0.02):
    low, high = beta_min * 1000 / T, beta_max * 1000 / T
    return [low + (high - low) * i / (T - 1) for i in range(T)]


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_every_term_against_a_naive_loop(variance, prediction):
    """T-K1, T-K2, T-L1. The noise is asked for once a level, from T down to 1."""
    T, x_0 = 60, images()
    network = Wrong(variance == "learned", prediction)
    formulation = DDPM(model=network, schedule=LinearBeta(T=T), variance=variance, prediction=prediction)
    source = torch.Generator().manual_seed(1)
    noises = [torch.randn(x_0.shape, generator=source, dtype=torch.float64) for _ in range(T)]
    calls = iter(noises)
    found = formulation.variational_bound(x_0, lambda like: next(calls))
    assert next(calls, None) is None
    prior, terms = naive(network, beta_table(T), x_0, noises, variance, prediction)
    torch.testing.assert_close(found.prior, prior, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(found.terms, terms, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(found.total, prior + terms.sum(1), rtol=1e-8, atol=1e-12)


def test_float32_agrees_with_float64():
    x_0, formulation = images(), DDPM(model=Wrong(False), schedule=LinearBeta(T=100))
    z = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    double, single = (formulation.variational_bound(x.clone(), lambda like: z.to(like)) for x in (x_0, x_0.float()))
    assert single.total.dtype == torch.float32
    torch.testing.assert_close(single.terms.double(), double.terms, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(single.prior.double(), double.prior, rtol=1e-4, atol=0)


def test_discretised_decoder_is_a_distribution():
    """T-K1: over the 256 levels, with open outer bins, the probabilities sum to 1, wherever the mean is."""
    k = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean in (-1.7, -1.0, -0.31, 0.0, 0.98, 1.2):
        for log_std in (-6.0, -4.0, -2.0, 0.5):
            log_p = discretized_gaussian(k, torch.full_like(k, mean), torch.tensor(2 * log_std).double())
            assert abs(float(log_p.exp().sum()) - 1) < 1e-12


def test_discretised_decoder_far_from_the_mean():
    """30 standard deviations off, a difference of distribution functions is 0 - 0; the tail is still a number."""
    x, mean, std = torch.tensor([0.5], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64), 0.01
    near = (x - mean - 1 / 255) / std  # P(z > a) ~ phi(a) / a (1 - 1 / a^2)
    expected = -(near**2) / 2 - math.log(math.sqrt(2 * math.pi)) - near.log() + torch.log1p(-1 / near**2)
    mean.requires_grad_()
    found = discretized_gaussian(x, mean, torch.tensor(2 * math.log(std)).double())
    torch.testing.assert_close(found.detach(), expected, rtol=1e-6, atol=0)
    found.sum().backward()
    assert mean.grad.isfinite().all() and mean.grad > 0


@pytest.mark.parametrize("x", [-1.0, 1.0])
def test_open_bins_have_finite_gradients(x):
    mean, log_variance = torch.tensor([0.3], requires_grad=True), torch.tensor([-9.0], requires_grad=True)
    discretized_gaussian(torch.tensor([x]), mean, log_variance).sum().backward()
    assert mean.grad.isfinite().all() and log_variance.grad.isfinite().all()
    assert mean.grad.sign() == math.copysign(1, x)


def test_the_oracle_reaches_the_entropy():
    """The steps cost what it takes to name one of n equally likely images; the decoder what its fixed width costs."""
    levels = torch.tensor([[10, 200], [60, 60], [250, 5], [128, 220]])
    points, schedule = levels.double() / 127.5 - 1, LinearBeta(T=250)
    formulation = DDPM(model=Speaker(finite(schedule, points), lambda c: (c + 1) / schedule.T, eps), schedule=schedule)
    torch.manual_seed(0)
    found = formulation.variational_bound(points.repeat(50, 1))
    steps, decoder = float((found.total - found.terms[:, -1]).mean()), found.terms[:, -1]
    assert math.log2(4) / 2 < steps < math.log2(4) / 2 + 0.1
    b_1, b_2 = 4e-4, 4e-4 + (0.08 - 4e-4) / 249
    std = math.sqrt(b_2 * b_1 / (1 - (1 - b_1) * (1 - b_2)))  # of beta-tilde_2, T-K2
    bin_ = Normal(0.0, std).cdf(torch.tensor(1 / 255)) * 2 - 1
    torch.testing.assert_close(decoder, torch.full_like(decoder, -math.log2(bin_)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_vlb_loss_is_an_unbiased_estimate(variance):
    """T-K5: over uniform levels the mean of the loss is the bound without its prior."""
    schedule, x_0 = Cosine(T=50), images(1)
    formulation = DDPM(model=Wrong(variance == "learned"), schedule=schedule, variance=variance, objective="vlb")
    z = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = formulation.variational_bound(x_0, lambda like: z)
    loss = formulation.loss(x_0.expand(50, -1, -1, -1), schedule.levels, noise=lambda like: z.expand_as(like))
    torch.testing.assert_close(loss.mean(), found.terms.sum(), rtol=1e-9, atol=0)
    torch.testing.assert_close(loss.flip(0) / 50, found.terms[0], rtol=1e-9, atol=0)


def test_hybrid_teaches_the_variance_only_by_the_bound():
    """T-K3: L_simple + 0.001 T L_vlb, and the mean learns nothing from the second."""

    class Free(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean, self.v = nn.Parameter(torch.zeros(2, 3, 3)), nn.Parameter(torch.zeros(2, 3, 3))

        def forward(self, x, c_noise, cond=None):
            return torch.cat([self.mean.double() + 0 * x, self.v.double() + 0 * x], dim=1)

    schedule, x_0 = LinearBeta(T=50), images(4)
    t = schedule.levels[[0, 10, 30, 49]]
    z = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients, losses = {}, {}
    for objective in ("hybrid", "vlb"):
        formulation = DDPM(model=Free(), schedule=schedule, variance="learned", objective=objective)
        losses[objective] = formulation.loss(x_0, t, noise=lambda like: z)
        losses[objective].sum().backward()
        gradients[objective] = (formulation.model.mean.grad, formulation.model.v.grad)
    simple = z.square().flatten(1).mean(1)  # the network says 0
    torch.testing.assert_close(losses["hybrid"], simple + 0.001 * losses["vlb"])
    torch.testing.assert_close(gradients["hybrid"][1], 0.001 * gradients["vlb"][1])
    torch.testing.assert_close(gradients["hybrid"][0].double(), -2 * z.sum(0) / z[0].numel(), rtol=1e-5, atol=1e-7)


def test_moments_exist_only_where_the_variance_is_learned():
    schedule = LinearBeta(T=50)
    fixed, learned = (
        DDPM(model=Wrong(v == "learned"), schedule=schedule, variance=v) for v in ("fixed_small", "learned")
    )
    assert not hasattr(fixed, "moments") and hasattr(learned, "moments")
    x, t = images(2), torch.full((2,), 0.5, dtype=torch.float64)
    x_0, v = learned.moments(x, t)
    assert torch.equal(x_0, learned(x, t))
    torch.testing.assert_close(v, (torch.sin(3 * x + 24 / 50) + 1) / 2)


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
def test_min_snr_weight(prediction):
    """Hang et al. 2023: whatever is predicted, the loss is min(SNR, gamma) times the squared error of x_0."""
    schedule, gamma = Cosine(T=40), 5.0
    plain, weighted = (ddpm(schedule, 0.7, prediction, gamma=g) for g in (None, gamma))
    x_0 = torch.tensor([[0.3, -0.2]], dtype=torch.float64).expand(40, 2)
    z = torch.randn(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alpha, sigma = schedule.alpha(schedule.levels)[:, None], schedule.sigma(schedule.levels)[:, None]
    with torch.no_grad():
        error = (plain(alpha * x_0 + sigma * z, schedule.levels) - x_0).square().mean(1)
        loss = weighted.loss(x_0, schedule.levels, noise=lambda like: z)
    snr = (alpha / sigma).square()[:, 0]
    torch.testing.assert_close(loss, torch.clamp(snr, max=gamma) * error, rtol=1e-6, atol=0)
