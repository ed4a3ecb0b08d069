"""log p(x_0) of a denoiser, by the instantaneous change of variables along its probability-flow ODE.

In the time u = log(sigma / alpha), and for the state z = c x / alpha with c = 1 / sqrt(1 + e^2u), the velocity

    dx/dt = alpha' x_0 + (sigma' / sigma) (x - alpha x_0)            becomes            dz/du = c^2 z - c x_0

on every schedule: z is x on a variance-preserving one. There is no derivative of alpha or sigma in it, no kink between
the levels of a table, nothing that grows, and sigma > 0 is all it needs.
Song et al. 2021. arXiv:2011.13456, App. D.2, Eqs. 39-40.
"""

import contextlib
import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from triptych.denoiser import Cond, Denoiser, expand, levels
from triptych.noise import Noise
from triptych.ode import dormand_prince, rms, runge_kutta_4

DIVERGENCES = ("hutchinson", "exact")


class Likelihood(NamedTuple):
    """What one solve of the ODE tells.

    Attributes:
        nats: log p(x_0), float64 [B].
        latent: x at t_max, distributed as the prior if the model is right, float64 [B, ...].
        calls: of the denoiser, int64 [B].
    """

    nats: Tensor
    latent: Tensor
    calls: Tensor


def rademacher(like: Tensor) -> Tensor:
    """-1 or 1 with equal chances, the probe with the least variance. Same shape, dtype and device."""
    return torch.randint_like(like, 2) * 2 - 1


def log_likelihood(
    denoiser: Denoiser,
    x_0: Tensor,
    *,
    divergence: str = "hutchinson",
    cond: Cond = None,
    noise: Noise = rademacher,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int | None = None,
) -> Tensor:
    """log p(x_0) in nats. [B, ...] -> float64 [B]; the arguments are those of `flow_likelihood`."""
    return flow_likelihood(
        denoiser, x_0, divergence=divergence, cond=cond, noise=noise, rtol=rtol, atol=atol, steps=steps
    ).nats


def flow_likelihood(
    denoiser: Denoiser,
    x_0: Tensor,
    *,
    divergence: str = "hutchinson",
    cond: Cond = None,
    noise: Noise = rademacher,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int | None = None,
) -> Likelihood:
    """The log-density of x_{t_min} / alpha(t_min) at x_0, with the prior N(0, prior_std^2 I) at t_max (T-K12, T-K16).

    The prior is not quite the marginal at t_max, which keeps the data's mean and width: on VE, where alpha = 1, this is
    0.5 nats of an 8 x 8 image at sigma_max = 10, and 0.05 at 100.

    The state is float64 and each sample has its own step size (T-K9); the denoiser is called in x_0's dtype.

    Args:
        denoiser: valid at any t in [t_min, t_max].
        divergence: "hutchinson", unbiased, one vector-Jacobian product a call; or "exact", as many as there are
            dimensions.
        noise: the probe of Hutchinson's estimator, drawn once and kept for the whole solve (T-K8).
        rtol, atol: of z, and of log p per dimension.
        steps: None is adaptive; else so many steps of the classical Runge-Kutta method, 4 calls each.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}, got {divergence!r}.")
    if levels(denoiser) is not None:
        raise ValueError(
            "A likelihood needs a denoiser that is valid at any noise level; this one knows its own levels only."
        )
    schedule, dimensions = denoiser.schedule, x_0[0].numel()
    dtype = torch.promote_types(x_0.dtype, torch.float32)
    with torch.no_grad():
        ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64, device=x_0.device)
        clean, noisy = (-schedule.log_snr(ends) / 2).tolist()
        alpha_end = float(schedule.alpha(ends)[1])
    probes = noise(x_0.to(dtype)).flatten(1)[None] if divergence == "hutchinson" else _axes(x_0.to(dtype))

    def flow(u: Tensor, state: Tensor) -> Tensor:
        """d/du of (z, log det per dimension). u [B], [B, D + 1] -> [B, D + 1]."""
        with torch.no_grad():
            t = schedule.time(-2 * u)
            alpha, c = expand(schedule.alpha(t), state), expand(_c(u), state)
        z = state[:, :-1]
        x = (alpha / c * z).to(dtype)
        denoised, trace = _trace(lambda x: denoiser(x.view_as(x_0), t, cond).flatten(1), x, probes)
        growth = c.square() - alpha * trace[:, None] / dimensions
        return torch.cat([c.square() * z - c * denoised.double(), growth], dim=1)

    scale = (_c(ends.new_tensor(clean)), alpha_end / _c(ends.new_tensor(noisy)))  # z / x at the start, x / z at the end
    start = torch.cat([scale[0] * x_0.detach().double().flatten(1), ends.new_zeros(len(x_0), 1)], dim=1)
    with torch.no_grad():
        if steps is None:
            end, calls = dormand_prince(flow, start, clean, noisy, rtol=rtol, atol=atol, norm=_norm)
        else:
            end, calls = runge_kutta_4(flow, start, clean, noisy, steps)
    latent = scale[1] * end[:, :-1]
    log_det = dimensions * (end[:, -1] + (scale[0] * scale[1]).log())
    prior = (latent / schedule.prior_std).square().sum(1) + dimensions * math.log(2 * math.pi * schedule.prior_std**2)
    return Likelihood(log_det - prior / 2, latent.view_as(x_0), calls)


def _c(u: Tensor) -> Tensor:
    """1 / sqrt(1 + e^2u), the alpha of a variance-preserving schedule."""
    return torch.sigmoid(-2 * u).sqrt()


def _trace(function: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """function(x), and the sum over probes e of e^T J e in float64. [B, D], [n, B, D] -> [B, D], [B]."""
    with torch.enable_grad(), _eager() if len(probes) > 1 else contextlib.nullcontext():
        x = x.clone().requires_grad_()
        y = function(x)
        if not y.requires_grad:
            raise ValueError("A likelihood needs the denoiser's derivative, but here gradients are off inside it.")
        trace = x.new_zeros(len(x), dtype=torch.float64)
        for i, probe in enumerate(probes):
            (product,) = torch.autograd.grad(y, x, probe, retain_graph=i + 1 < len(probes))
            trace += (product.double() * probe.double()).sum(1)
    return y.detach(), trace


def _eager() -> contextlib.AbstractContextManager:
    """A backward pass that torch.compile has made gives its memory away, and can be run only once."""
    compiling = "torch._dynamo" in sys.modules  # which takes seconds to import
    return torch.compiler.set_stance("force_eager") if compiling else contextlib.nullcontext()


def _axes(x: Tensor) -> Tensor:
    """The unit vectors of x's space, [D, B, D]."""
    d = x[0].numel()
    return torch.eye(d, dtype=x.dtype, device=x.device)[:, None].expand(d, len(x), d)


def _norm(error: Tensor) -> Tensor:
    """The larger of the errors of z and of log p, which would drown among z's dimensions. [B, D + 1] -> [B]."""
    return torch.maximum(rms(error[:, :-1]), error[:, -1].abs())
