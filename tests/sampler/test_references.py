"""Every sampler against its paper's box, written out naively: one line of the paper, one line here, no shared code."""

import math

import pytest
import torch
from oracles import two_modes
from torch import randn

from triptych.noise import from_generator
from triptych.sampler import (
    DDIM,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ReverseDiffusion,
    StochasticHeun,
)
from triptych.sampler.dpm_solver import extrapolation
from triptych.schedule import EDM, VE, VP, Cosine, Geometric, LinearBeta, Rectified


def stream(seed=0):
    return from_generator(torch.Generator().manual_seed(seed))


def start(n=4, scale=1.0):
    return scale * randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def same(ours, theirs, rtol=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-12)


def fill(t, x):
    return torch.full((len(x),), t, dtype=torch.float64)


class Eps:
    """The same oracle as the papers' networks: eps of (x, t) with t = 1, ..., T; score of (x, sigma)."""

    def __init__(self, schedule):
        self.denoiser, self.schedule = two_modes(schedule), schedule

    def eps(self, x, t):
        t = fill(t, x)
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        return (x - alpha * self.denoiser(x, t)) / sigma

    def score(self, x, t):
        return -self.eps(x, t) / self.schedule.sigma(fill(t, x))[:, None]


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(T=200)], ids=["linear", "cosine"])
def test_ancestral_over_all_levels_is_ddpm_algorithm_2(schedule, variance):
    """Ho et al. 2020, Algorithm 2: all T steps, with its own tables of beta, alpha = 1 - beta and alpha-bar."""
    net, beta, T = Eps(schedule), schedule.beta.numpy(), schedule.T
    alpha, alpha_bar = 1 - beta, (1 - beta).cumprod()
    z, x = stream(), start()
    ours = Ancestral(steps=T, grid="uniform", variance=variance)(two_modes(schedule), x, noise=stream())
    for t in range(T, 0, -1):
        eps = net.eps(x, t / T)
        mean = (x - beta[t - 1] / math.sqrt(1 - alpha_bar[t - 1]) * eps) / math.sqrt(alpha[t - 1])
        if t > 1:  # T-L2
            posterior = (1 - alpha_bar[t - 2]) / (1 - alpha_bar[t - 1]) * beta[t - 1]
            mean = mean + math.sqrt(beta[t - 1] if variance == "fixed_large" else posterior) * z(x)
        x = mean
    same(ours, x, rtol=1e-8)


def test_learned_variance_interpolates_between_the_two():
    """Nichol & Dhariwal 2021, Eq. 15, on a respaced sampler: both ends are those of its own steps."""
    schedule, v = LinearBeta(), torch.tensor([[0.0], [0.3], [0.8], [1.0]], dtype=torch.float64)

    class Learned:
        def __init__(self):
            self.denoiser, self.schedule = two_modes(schedule), schedule

        def __call__(self, x_t, t, cond=None):
            return self.denoiser(x_t, t)

        def moments(self, x_t, t, cond=None):
            return self.denoiser(x_t, t), v.expand(-1, 2)

    z, x, bar = stream(), start(), schedule.alpha(torch.linspace(1, 0, 51, dtype=torch.float64)) ** 2
    ours = Ancestral(steps=50, grid="uniform", variance="learned")(Learned(), x, noise=stream())
    for i in range(50):
        beta = 1 - bar[i] / bar[i + 1]
        x_0 = two_modes(schedule)(x, fill(1 - i / 50, x))
        mean = (bar[i + 1].sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - bar[i + 1]) * x) / (1 - bar[i])
        posterior = (1 - bar[i + 1]) / (1 - bar[i]) * beta
        x = mean + (((v * beta.log() + (1 - v) * posterior.log()) / 2).exp() * z(x) if i < 49 else 0)
    same(ours, x, rtol=1e-8)
    with pytest.raises(ValueError, match="formulation.variance=learned"):
        Ancestral(steps=5, variance="learned")(two_modes(schedule), x)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_ddim_equation_12(eta, clip):
    """Song et al. 2021, Eqs. 12 and 16; with clipping, eps is recomputed from the clipped x_0."""
    schedule, x, z = LinearBeta(), start(), stream()
    bar = (schedule.alpha(torch.linspace(1, 0, 31, dtype=torch.float64)) ** 2).tolist()
    ours = DDIM(steps=30, eta=eta, clip=clip, grid="uniform")(two_modes(schedule), x, noise=stream())
    for i in range(30):
        x_0 = two_modes(schedule)(x, fill(1 - i / 30, x))
        x_0 = x_0 if clip is None else x_0.clamp(-clip, clip)
        eps = (x - math.sqrt(bar[i]) * x_0) / math.sqrt(1 - bar[i])
        std = eta * math.sqrt((1 - bar[i + 1]) / (1 - bar[i]) * (1 - bar[i] / bar[i + 1]))
        x = math.sqrt(bar[i + 1]) * x_0 + math.sqrt(1 - bar[i + 1] - std**2) * eps
        if std > 0:
            x = x + std * z(x)
    same(ours, x)


def test_ddim_with_eta_one_is_ancestral_with_the_small_variance():
    for schedule in (VP(), Rectified(), VE(0.02, 10.0)):
        x = start(scale=schedule.prior_std)
        ddim = DDIM(steps=40, eta=1.0)(two_modes(schedule), x, noise=stream())
        same(ddim, Ancestral(steps=40)(two_modes(schedule), x, noise=stream()), rtol=1e-8)


def test_euler_maruyama():
    """Song et al. 2021, Eq. 6: dx = (f x - g^2 score) dt + g dw, backwards from t_max to t_min."""
    schedule, z, x = VP(), stream(), start()
    net, times = Eps(schedule), torch.linspace(1, 1e-5, 61, dtype=torch.float64).tolist()
    ours = EulerMaruyama(steps=60, grid="uniform", denoise="none")(two_modes(schedule), x, noise=stream())
    for t, s in zip(times[:-1], times[1:], strict=True):
        beta = 0.1 + t * 19.9
        drift = -beta / 2 * x - beta * net.score(x, t)
        x = x + drift * (s - t) + math.sqrt(beta) * math.sqrt(t - s) * z(x)
    same(ours, x)


def test_reverse_diffusion_of_vp():
    """score_sde's predictor with its VP discretisation: f = sqrt(1 - beta) x - x, G = sqrt(beta)."""
    schedule, z, x = LinearBeta(T=100), stream(), start()
    net, beta = Eps(schedule), schedule.beta.tolist()
    grid = [*schedule.levels.flip(0).tolist(), 1e-5]
    ours = ReverseDiffusion(steps=100, grid=grid[:-1])(two_modes(schedule), x, noise=stream())
    for t in range(100, 1, -1):
        f, G = math.sqrt(1 - beta[t - 1]) * x - x, math.sqrt(beta[t - 1])
        mean = x - (f - G**2 * net.score(x, t / 100))
        x = mean + G * z(x) if t > 2 else mean  # noise removal: the mean of the last step
    same(ours, x, rtol=1e-8)


def test_reverse_diffusion_of_ve():
    """score_sde's predictor with its VE discretisation: f = 0, G = sqrt(sigma_i^2 - sigma_(i-1)^2)."""
    schedule, z = Geometric(40, 0.02, 10.0), stream()
    net, x = Eps(schedule), start(scale=10.0)
    sigma = torch.logspace(math.log10(0.02), 1, 40, dtype=torch.float64).tolist()
    ours = ReverseDiffusion(steps=39, grid="uniform", denoise="none")(two_modes(schedule), x, noise=stream())
    for i in range(39, 0, -1):
        G = math.sqrt(sigma[i] ** 2 - sigma[i - 1] ** 2)
        x = x + G**2 * net.score(x, i / 39) + G * z(x)
    same(ours, x, rtol=1e-8)


@pytest.mark.parametrize("norm", ["expected", "batch"])
def test_predictor_corrector_of_ve(norm):
    """Song et al. 2021, Algorithm 4 in the order of its code (T-S9), with VE's ancestral predictor."""
    schedule, z, snr = Geometric(20, 0.02, 10.0), stream(), 0.16
    net, x = Eps(schedule), start(scale=10.0)
    sigma = torch.logspace(math.log10(0.02), 1, 20, dtype=torch.float64).tolist()
    sampler = PredictorCorrector(steps=19, grid="uniform", snr=snr, corrector_steps=2, norm=norm)
    ours = sampler(two_modes(schedule), x, noise=stream())
    for i in range(19, 0, -1):
        for _ in range(2):
            score, noise = net.score(x, i / 19), z(x)
            if norm == "batch":
                ratio = noise.norm(dim=1).mean() / score.norm(dim=1).mean()
                step = (snr * ratio) ** 2 * 2
            else:
                step = torch.tensor(2 * (snr * sigma[i]) ** 2)
            x = x + step * score + (2 * step).sqrt() * noise
        gap = sigma[i] ** 2 - sigma[i - 1] ** 2
        mean = x + gap * net.score(x, i / 19)
        x = mean + math.sqrt(sigma[i - 1] ** 2 * gap / sigma[i] ** 2) * z(x) if i > 1 else mean
    same(ours, x, rtol=1e-7)


@pytest.mark.parametrize("norm", ["expected", "batch"])
def test_predictor_corrector_of_vp(norm):
    """The same of VP, by batch: alpha_i = 1 - beta_i enters the corrector's step, beta is the predictor's variance."""
    schedule, z, snr, x = LinearBeta(T=60), stream(), 0.2, start()
    net, beta = Eps(schedule), schedule.beta.tolist()
    sigma_sq = (1 - (1 - schedule.beta).cumprod(0)).tolist()
    predictor = Ancestral(steps=60, variance="fixed_large")
    sampler = PredictorCorrector(steps=60, grid="uniform", snr=snr, norm=norm, predictor=predictor)
    ours = sampler(two_modes(schedule), x, noise=stream())
    for t in range(60, 0, -1):
        score, noise = net.score(x, t / 60), z(x)
        if norm == "batch":
            step = (snr * noise.norm(dim=1).mean() / score.norm(dim=1).mean()) ** 2 * 2 * (1 - beta[t - 1])
        else:
            step = torch.tensor(2 * snr**2 * sigma_sq[t - 1])
        x = x + step * score + (2 * step).sqrt() * noise
        mean = (x + beta[t - 1] * net.score(x, t / 60)) / math.sqrt(1 - beta[t - 1])
        x = mean + math.sqrt(beta[t - 1]) * z(x) if t > 1 else mean
    same(ours, x, rtol=1e-7)


@pytest.mark.parametrize("denoise", ["tweedie", "mean", "none"])
def test_annealed_langevin_algorithm_1(denoise):
    """Song & Ermon 2020, Algorithm 1: a_i = eps sigma_i^2 / sigma_L^2; at the end x + sigma_L^2 score (T-S12)."""
    schedule, z, eps, T = Geometric(12, 0.02, 5.0), stream(), 3e-5, 4
    net, x = Eps(schedule), start()
    sampler = AnnealedLangevin(steps_per_level=T, step_size=eps, denoise=denoise)
    ours = sampler(two_modes(schedule), x, noise=stream())
    sigma = torch.logspace(math.log10(5.0), math.log10(0.02), 12, dtype=torch.float64).tolist()
    for i in range(12):
        a = eps * sigma[i] ** 2 / sigma[-1] ** 2
        for k in range(T):
            x = x + a * net.score(x, 1 - i / 11)
            if not (denoise == "mean" and i == 11 and k == T - 1):
                x = x + math.sqrt(2 * a) * z(x)
    if denoise == "tweedie":
        x = x + sigma[-1] ** 2 * net.score(x, 0.0)
    same(ours, x, rtol=1e-8)


def edm_sampler(denoise, x, sigmas, z=None, S_churn=0.0, S_min=0.0, S_max=math.inf, S_noise=1.0):
    """Karras et al. 2022, Algorithm 2 with s(t) = 1, sigma(t) = t; Algorithm 1 if S_churn = 0. denoise: D(x; s)."""
    N = len(sigmas) - 1
    for i in range(N):
        t, t_next = sigmas[i], sigmas[i + 1]
        gamma = min(S_churn / N, math.sqrt(2) - 1) if S_min <= t <= S_max else 0.0
        t_hat = t + gamma * t
        if gamma > 0:
            x = x + math.sqrt(t_hat**2 - t**2) * S_noise * z(x)
        d = (x - denoise(x, t_hat)) / t_hat
        x_next = x + (t_next - t_hat) * d
        if t_next != 0:
            d_prime = (x_next - denoise(x_next, t_next)) / t_next
            x_next = x + (t_next - t_hat) * (d + d_prime) / 2
        x = x_next
    return x


def karras_sigmas(N, low=0.002, high=80.0, rho=7):
    """Karras et al. 2022, Eq. 5."""
    step = (low ** (1 / rho) - high ** (1 / rho)) / (N - 1)
    return [*((high ** (1 / rho) + i * step) ** rho for i in range(N)), 0.0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"S_churn": 40.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003},
        {"S_churn": 5.0, "S_min": 0.01, "S_max": 1.0, "S_noise": 1.007},
        {"S_churn": 3.0},  # noise from the first step on, at 80 and beyond
    ],
)
def test_edm_algorithms_1_and_2(options):
    schedule = EDM()
    x, D = start(scale=80.0), lambda x, sigma: two_modes(schedule)(x, fill(sigma / 80, x))
    theirs = edm_sampler(D, x, karras_sigmas(18), stream(), **options)
    ours = StochasticHeun(steps=18, grid="karras", **{"S_churn": 0.0, **options})(
        two_modes(schedule), x, noise=stream()
    )
    same(ours, theirs, rtol=1e-8)
    if not options:
        same(Heun(steps=18, grid="karras")(two_modes(schedule), x), theirs, rtol=1e-8)


@pytest.mark.parametrize("schedule", [VP(), LinearBeta(), Rectified()], ids=["vp", "linear", "rectified"])
def test_edm_algorithm_2_in_sigma_over_alpha(schedule):
    """On a schedule with alpha, EDM's x and sigma are x / alpha and sigma / alpha."""

    def D(y, sigma):
        t = schedule.time(fill(-2 * math.log(sigma), y))
        return two_modes(schedule)(schedule.alpha(t)[:, None] * y, t)

    options = {"S_churn": 10.0, "S_min": 0.05, "S_max": 3.0, "S_noise": 1.01}
    sampler = StochasticHeun(steps=25, t_start=0.9, **options)
    times = torch.tensor(sampler.path(two_modes(schedule)).t, dtype=torch.float64)
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    x = start()
    theirs = edm_sampler(D, x / alpha[0], (sigma / alpha).tolist(), stream(), **options)
    same(sampler(two_modes(schedule), x, noise=stream()), theirs * alpha[-1], rtol=1e-7)


def test_third_order_weights_integrate_parabolas_exactly():
    """int_0^h e^(u - h) P(u) du for P = 1, u, u^2, by quadrature: what makes order 3, and half a term would miss."""
    half, i, h = [-0.9, -0.5, 0.2, 0.75], 2, 0.55
    weights = extrapolation(3, half, i, h, -math.expm1(-h))
    u = torch.linspace(0, h, 100_001, dtype=torch.float64)
    for power in range(3):
        exact = float(torch.trapezoid((u - h).exp() * u**power, u))
        nodes = [0.0, half[1] - half[2], half[0] - half[2]]
        ours = sum(w * node**power for w, node in zip(weights, nodes, strict=True))
        assert ours == pytest.approx(exact, rel=1e-8)


def test_dynamic_threshold():
    """Saharia et al. 2022, Sec. 2.3: s = max(1, percentile of |x_0|), x_0 = clip(x_0, -s, s) / s, per sample."""
    x_0 = (
        torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        * torch.tensor([0.1, 1.0, 3.0])[:, None, None, None]
    )
    ours = DPMSolver(steps=1, dynamic_threshold=0.9).limit(x_0)
    for k in range(3):
        s = max(1.0, float(torch.quantile(x_0[k].abs(), 0.9)))
        torch.testing.assert_close(ours[k], x_0[k].clamp(-s, s) / s)
    assert torch.equal(ours[0], x_0[0])
