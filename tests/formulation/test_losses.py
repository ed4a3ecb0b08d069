"""Every loss against its paper's training box, in numbers: what being lowest at the truth does not show, its scale.

One line of the paper, one line here; the network is neither right nor constant. And each paper's own training times.
"""

import math

import pytest
import torch
from torch import nn

from triptych.formulation import DDPM, EDM, NCSN, FlowMatching, ScoreSDE
from triptych.formulation.times import LogitNormal
from triptych.schedule import EDM as EDMSchedule
from triptych.schedule import VE, VP, Cosine, Geometric, Learned, LinearBeta, Rectified, SubVP


def F(x, c):
    return torch.tanh(x) + 0.1 * torch.cos(c)[:, None]


class Network(nn.Module):
    def forward(self, x, c_noise, cond=None):
        return F(x, c_noise)


def draws():
    source = torch.Generator().manual_seed(0)
    return (torch.randn(4, 3, generator=source, dtype=torch.float64) for _ in range(2))


def check(formulation, t, expected):
    x, eps = draws()
    loss = formulation.loss(x, t, noise=lambda like: eps)
    torch.testing.assert_close(loss, expected.mean(1), rtol=1e-9, atol=1e-12)


def test_ddpm():
    """Ho et al. 2020, Algorithm 1: |eps - eps_theta(sqrt(abar) x_0 + sqrt(1 - abar) eps, t)|^2."""
    x, eps = draws()
    k, beta = torch.tensor([1, 40, 77, 100]), torch.linspace(1e-3, 0.2, 100, dtype=torch.float64)
    abar = (1 - beta).cumprod(0)[k - 1][:, None]
    x_t = abar.sqrt() * x + (1 - abar).sqrt() * eps
    check(DDPM(Network(), LinearBeta(T=100)), k.double() / 100, (eps - F(x_t, k.double() - 1)) ** 2)


@pytest.mark.parametrize("version", [1, 2])
def test_ncsn(version):
    """Song & Ermon 2019, Eqs. 5-6: sigma^2 / 2 |s(x + sigma z, sigma) + z / sigma|^2; version 2: s = F / sigma."""
    x, z = draws()
    i = torch.tensor([0, 3, 7, 9])  # from sigma_max down, as the paper counts
    sigma = (2.0 * 0.01 ** (i.double() / 9))[:, None]
    score = F(x + sigma * z, i.double()) if version == 1 else F(x + sigma * z, sigma[:, 0].log()) / sigma
    formulation = NCSN(Network(), Geometric(10, 0.02, 2.0), version=version)
    check(formulation, 1 - i.double() / 9, sigma**2 / 2 * (score + z / sigma) ** 2)


@pytest.mark.parametrize("schedule", [VP(), SubVP(), VE(0.02, 50.0)], ids=lambda s: type(s).__name__)
def test_score_sde(schedule):
    """Song et al. 2021, Eq. 7 with lambda = sigma^2, score = -F / sigma; their kernels by hand (App. C)."""
    x, z = draws()
    t = torch.tensor([0.01, 0.3, 0.6, 1.0], dtype=torch.float64)
    if isinstance(schedule, VE):
        mean, std = x, (0.02 * 2500**t)[:, None]
        c = std[:, 0].log()
    else:
        B = (0.1 * t + 19.9 * t**2 / 2)[:, None]
        variance = 1 - torch.exp(-B)
        mean, std, c = torch.exp(-B / 2) * x, variance if isinstance(schedule, SubVP) else variance.sqrt(), 999 * t
    score = -F(mean + std * z, c) / std
    check(ScoreSDE(Network(), schedule), t, std**2 * (score + z / std) ** 2)


def test_edm():
    """Karras et al. 2022, Eqs. 2 and 7, Table 1: lambda |c_skip (y + n) + c_out F(c_in (y + n); c_noise) - y|^2."""
    y, z = draws()
    sigma, s = torch.tensor([0.002, 0.4, 3.0, 120.0], dtype=torch.float64)[:, None], 0.7
    root = (sigma**2 + s**2).sqrt()
    noisy = y + sigma * z
    D = s**2 / root**2 * noisy + sigma * s / root * F(noisy / root, sigma[:, 0].log() / 4)
    formulation = EDM(Network(), EDMSchedule(), sigma_data=s)
    check(formulation, sigma[:, 0] / 80, root**2 / (sigma * s) ** 2 * (D - y) ** 2)


def test_flow_matching():
    """Liu et al. 2022: |v((1 - t) x_0 + t eps, t) - (eps - x_0)|^2."""
    x, eps = draws()
    t = torch.tensor([0.0, 0.2, 0.7, 0.999], dtype=torch.float64)
    v = F((1 - t)[:, None] * x + t[:, None] * eps, t)
    check(FlowMatching(Network(), Rectified()), t, (v - (eps - x)) ** 2)


LIKELIHOOD = {"weighting": "likelihood"}
TIMES = {  # t at u = 0, 1/2 and (nearly) 1
    "ddpm": (lambda: DDPM(Network(), LinearBeta(T=100)), [0.01, 0.51, 1.0]),
    "ncsn": (lambda: NCSN(Network(), Geometric(10)), [0.0, 5 / 9, 1.0]),
    "score_sde": (lambda: ScoreSDE(Network(), VP()), [1e-5, 0.500005, 1.0]),
    "score_sde learned": (lambda: ScoreSDE(Network(), Learned(), **LIKELIHOOD), [0.0, 0.5, 1.0]),
    "edm": (lambda: EDM(Network(), EDMSchedule()), [None, math.exp(-1.2) / 80, None]),
    "flow_matching": (lambda: FlowMatching(Network(), Rectified()), [0.0, 0.4995, 0.999]),
}


@pytest.mark.parametrize("key", TIMES)
def test_each_papers_times(key):
    build, expected = TIMES[key]
    formulation = build()
    t, weight = formulation.times(formulation.schedule, torch.tensor([0.0, 0.5, 1 - 1e-12], dtype=torch.float64))
    for found, wanted in zip(t.tolist(), expected, strict=True):
        assert wanted is None or found == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert weight.tolist() == [1, 1, 1]


def test_likelihood_weighting_draws_log_snr_uniformly():
    """T-K13: half of all times are below the middle of the log-SNRs, t = 0.11 on VP, instead of t = 1/2."""
    formulation = ScoreSDE(Network(), VP(), **LIKELIHOOD)
    t, weight = formulation.times(formulation.schedule, torch.tensor([0.5], dtype=torch.float64))
    snr = [-math.log(math.expm1(0.1 * s + 9.95 * s**2)) for s in (1e-5, float(t), 1.0)]
    assert snr[1] == pytest.approx((snr[0] + snr[2]) / 2) and float(weight) != 1


def test_logit_normal_times_stay_where_the_schedule_is_finite():
    t, _ = LogitNormal(mean=9.0)(Rectified(), torch.linspace(0.01, 0.99, 9))
    assert float(t.max()) == Rectified().t_max


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_a_number_does_not_poison_the_levels(bad):
    """T-D7: importance sampling goes on where the guard lets training go on."""
    formulation = DDPM(Network(), Cosine(T=4), objective="vlb")
    levels = formulation.schedule.levels
    for k in range(12):
        loss = torch.full((4,), bad) if k == 5 else torch.tensor([1.0, 1.0, 1.0, 9.0])
        formulation.times.update(formulation.schedule, levels.float(), loss)
    t, weight = formulation.times(formulation.schedule, torch.linspace(0, 0.99, 100))
    assert weight.isfinite().all() and float((t == 1).double().mean()) == pytest.approx(9 / 12, abs=0.02)
