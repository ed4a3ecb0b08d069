"""An adaptive solver for ordinary differential equations with a step size of its own for each sample (T-K9)."""

from collections.abc import Callable

import torch
from torch import Tensor

NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),  # the fifth-order solution itself
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # fifth order minus fourth


def rms(x: Tensor) -> Tensor:
    """[B, ...] -> the root mean square of each sample, [B]."""
    return x.flatten(1).square().mean(1).sqrt()


def dormand_prince(
    f: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    t_0: float,
    t_1: float,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    norm: Callable[[Tensor], Tensor] = rms,
    max_steps: int = 10_000,
) -> tuple[Tensor, Tensor]:
    """Solves dy/dt = f(t, y) from t_0 to t_1, either way. Dormand & Prince 1980, the 5(4) pair, without dense output.

    Each sample has its own time, step size and error estimate, so that neither its solution nor its number of calls
    depends on what else is in the batch. One scalar is read per step, to know whether all samples have arrived.

    Args:
        f: (t [B] float64, y [B, ...]) -> [B, ...].
        y: the state at t_0, [B, ...]; give it in float64 (T-S18).
        rtol, atol: a step is accepted where norm(error / (atol + rtol max(|y|, |y_new|))) <= 1.
        norm: [B, ...] -> [B].
        max_steps: attempted steps after which the problem is declared too stiff.

    Returns:
        y at t_1, [B, ...], and the number of calls of f that each sample needed, int64 [B].
    """
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"rtol and atol must be positive numbers, such as 1e-5, got {rtol} and {atol}.")
    span, shape = t_1 - t_0, (-1, *[1] * (y.ndim - 1))
    t = torch.full((len(y),), t_0, dtype=torch.float64, device=y.device)
    slope = f(t, y)
    step = _first_step(f, y, t, slope, span, rtol, atol, norm)
    calls = torch.full((len(y),), 2, dtype=torch.int64, device=y.device)
    for _ in range(max_steps):
        rest = t_1 - t
        moving = rest != 0
        arrived, stuck = torch.stack([~moving.any(), (moving & ~(step > 1e-14 * abs(span))).any()]).tolist()
        if arrived:
            return y, calls
        if stuck:  # the step has shrunk to nothing, or is NaN
            break
        last = step >= rest.abs()
        dt = torch.where(last, rest, step.copysign(rest))
        h = dt.to(y.dtype).reshape(shape)
        slopes = [slope]
        for node, weights in zip(NODES, STAGES, strict=True):
            y_new = y + h * _combine(weights, slopes)
            slopes.append(f(t + node * dt, y_new))
        scale = atol + rtol * torch.maximum(y.abs(), y_new.abs())
        error = norm(h * _combine(ERROR, slopes) / scale).double()
        error = torch.where(error.isfinite(), error, torch.inf)
        accepted = moving & (error <= 1)
        calls += 6 * moving
        t = torch.where(accepted, torch.where(last, t_1, t + dt), t)
        y = torch.where(accepted.reshape(shape), y_new, y)
        slope = torch.where(accepted.reshape(shape), slopes[-1], slope)  # first same as last
        step = dt.abs() * (0.9 * error.pow(-0.2)).clamp(0.2, 10)
    raise RuntimeError(
        f"The ODE could not be solved to rtol={rtol} and atol={atol} within {max_steps} steps: loosen both, "
        "or check that the denoiser returns finite numbers."
    )


def _combine(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """sum_i weights_i slopes_i."""
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        if weight:
            total = total.add(slope, alpha=weight)
    return total


def _first_step(
    f: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    t: Tensor,
    slope: Tensor,
    span: float,
    rtol: float,
    atol: float,
    norm: Callable[[Tensor], Tensor],
) -> Tensor:
    """The size of the first step of each sample, [B], by one trial step. Hairer, Norsett, Wanner 1993, Sec. II.4."""
    scale = atol + rtol * y.abs()
    d_0, d_1 = norm(y / scale).double(), norm(slope / scale).double()
    trial = torch.where((d_0 < 1e-5) | (d_1 < 1e-5), 1e-6, 0.01 * d_0 / d_1).clamp(max=abs(span))
    dt = trial if span >= 0 else -trial
    moved = f(t + dt, y + dt.to(y.dtype).reshape(-1, *[1] * (y.ndim - 1)) * slope)
    d_2 = norm((moved - slope) / scale).double() / trial
    largest = torch.maximum(d_1, d_2)
    step = torch.where(largest <= 1e-15, (trial * 1e-3).clamp(min=1e-6), (0.01 / largest).pow(1 / 5))
    return torch.minimum(100 * trial, step).clamp(max=abs(span))


def runge_kutta_4(
    f: Callable[[Tensor, Tensor], Tensor], y: Tensor, t_0: float, t_1: float, steps: int
) -> tuple[Tensor, Tensor]:
    """The classical method with equal steps, to compare models at one and the same cost. As `dormand_prince`."""
    h = (t_1 - t_0) / steps
    for i in range(steps):
        t = torch.full((len(y),), t_0 + i * h, dtype=torch.float64, device=y.device)
        k_1 = f(t, y)
        k_2 = f(t + h / 2, y + h / 2 * k_1)
        k_3 = f(t + h / 2, y + h / 2 * k_2)
        k_4 = f(t + h, y + h * k_3)
        y = y + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
    return y, torch.full((len(y),), 4 * steps, dtype=torch.int64, device=y.device)
