"""Networks in closed form: each says, in its formulation's language, what the posterior mean of a mixture says.

Every row of the table "what the network says, and what it is told" is written out here once more, from the papers: the
time is read from c_noise, the answer worked out from E[x_0 | x_t].

`awake` is for real ones, some of whose weights are zero at first.
"""

import math

import torch
from oracles import two_modes
from torch import nn

from triptych.formulation import DDPM, EDM, NCSN, FlowMatching, ScoreSDE
from triptych.schedule import EDM as EDMSchedule
from triptych.schedule import VE, VP, Cosine, Geometric, Learned, LinearBeta, QuadraticBeta, Rectified, SubVP


def awake(network, scale=0.1):
    """With no weight left at zero, so that everything acts on the output."""
    with torch.no_grad():
        for p in network.parameters():
            p.add_(scale * torch.randn_like(p))
    return network


class Speaker(nn.Module):
    """Says scale * say(x_t, x_0, alpha, sigma) at the time that `hear` makes of c_noise; notes what it was told.

    `c_in` undoes the scaling of the input: sigma -> the factor that x_t came with.
    """

    def __init__(self, denoiser, hear, say, scale=1.0, c_in=None):
        super().__init__()
        self.denoiser, self.hear, self.say, self.scale, self.c_in = denoiser, hear, say, scale, c_in
        self.told = []

    def forward(self, x, c_noise, cond=None):
        self.told.append(c_noise)
        t = self.hear(c_noise.double())
        schedule = self.denoiser.schedule
        alpha, sigma = (c.to(x.dtype)[:, None] for c in (schedule.alpha(t), schedule.sigma(t)))
        x_t = x if self.c_in is None else x / self.c_in(sigma)
        return self.scale * self.say(x_t, self.denoiser(x_t, t), alpha, sigma)


def eps(x_t, x_0, alpha, sigma):
    return (x_t - alpha * x_0) / sigma


def v(x_t, x_0, alpha, sigma):
    return alpha * eps(x_t, x_0, alpha, sigma) - sigma * x_0


def score(x_t, x_0, alpha, sigma):
    return -(x_t - alpha * x_0) / sigma**2


def ddpm(schedule, scale=1.0, prediction="eps", **options):
    say = {"eps": eps, "x_0": lambda x_t, x_0, alpha, sigma: x_0, "v": v}[prediction]
    network = Speaker(two_modes(schedule), lambda c: (c + 1) / schedule.T, say, scale)
    return DDPM(network, schedule, prediction=prediction, **options)


def ncsn(schedule, scale=1.0, version=2):
    log_min, log_max, L = math.log(schedule.sigma_min), math.log(schedule.sigma_max), schedule.L
    if version == 1:
        return NCSN(Speaker(two_modes(schedule), lambda c: 1 - c / (L - 1), score, scale), schedule, version=1)
    say = lambda x_t, x_0, alpha, sigma: sigma * score(x_t, x_0, alpha, sigma)  # noqa: E731
    network = Speaker(two_modes(schedule), lambda c: (c - log_min) / (log_max - log_min), say, scale)
    return NCSN(network, schedule)


def score_sde(schedule, scale=1.0, **options):
    say = lambda x_t, x_0, alpha, sigma: -sigma * score(x_t, x_0, alpha, sigma)  # noqa: E731
    if isinstance(schedule, VE):
        log_min, log_max = math.log(schedule.sigma_min), math.log(schedule.sigma_max)
        hear = lambda c: (c - log_min) / (log_max - log_min)  # noqa: E731
    elif isinstance(schedule, Learned):
        range_ = schedule.log_snr_max - schedule.log_snr_min
        hear = lambda c: schedule.time(schedule.log_snr_max - c / 999 * range_)  # noqa: E731
    else:
        hear = lambda c: c / 999  # noqa: E731
    return ScoreSDE(Speaker(two_modes(schedule), hear, say, scale), schedule, **options)


def edm(schedule, scale=1.0, sigma_data=0.5):
    def say(x_t, x_0, alpha, sigma):
        c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
        c_out = sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()
        return (x_0 - c_skip * x_t) / c_out

    c_in = lambda sigma: 1 / (sigma**2 + sigma_data**2).sqrt()  # noqa: E731
    hear = lambda c: (4 * c).exp() / schedule.sigma_max  # noqa: E731
    return EDM(Speaker(two_modes(schedule), hear, say, scale, c_in), schedule, sigma_data=sigma_data)


def flow_matching(schedule, scale=1.0):
    say = lambda x_t, x_0, alpha, sigma: eps(x_t, x_0, alpha, sigma) - x_0  # noqa: E731
    return FlowMatching(Speaker(two_modes(schedule), lambda c: c, say, scale), schedule)


# name -> (scale of the network's answer -> formulation). One line for a new formulation.
ROWS = {
    "ddpm eps": lambda scale=1.0: ddpm(LinearBeta(), scale),
    "ddpm x_0": lambda scale=1.0: ddpm(QuadraticBeta(), scale, "x_0"),
    "ddpm v": lambda scale=1.0: ddpm(Cosine(T=200), scale, "v"),
    "ddpm v, min-SNR": lambda scale=1.0: ddpm(Cosine(T=200), scale, "v", gamma=5.0),
    "ddpm vlb": lambda scale=1.0: ddpm(LinearBeta(T=100), scale, objective="vlb"),
    "ncsn 1": lambda scale=1.0: ncsn(Geometric(L=12, sigma_max=5.0), scale, version=1),
    "ncsn 2": lambda scale=1.0: ncsn(Geometric(L=12, sigma_max=5.0), scale),
    "score_sde vp": lambda scale=1.0: score_sde(VP(), scale),
    "score_sde sub_vp": lambda scale=1.0: score_sde(SubVP(), scale),
    "score_sde ve": lambda scale=1.0: score_sde(VE(0.02, 10.0), scale),
    "score_sde likelihood": lambda scale=1.0: score_sde(VP(), scale, weighting="likelihood"),
    "score_sde learned": lambda scale=1.0: score_sde(Learned(hidden=6), scale, weighting="likelihood"),
    "edm": lambda scale=1.0: edm(EDMSchedule(), scale),
    "flow_matching": lambda scale=1.0: flow_matching(Rectified(), scale),
}
