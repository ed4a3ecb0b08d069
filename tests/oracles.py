"""Denoisers in closed form: what a perfectly trained network would say. Plain objects, as an outsider writes them."""

import math

import torch


class Mixture:
    """E[x_0 | x_t] for x_0 ~ sum_k weight_k N(point_k, std^2 I), on any schedule.

    One point: a Gaussian. std = 0: a finite dataset. With `levels`, a network that knows no other times: asked for one,
    it fails.
    """

    def __init__(self, schedule, points, weights=None, std=0.0, levels=None):
        self.schedule, self.std = schedule, std
        self.points = torch.as_tensor(points, dtype=torch.float64)
        weights = torch.ones(len(self.points)) if weights is None else torch.as_tensor(weights)
        self.log_weights = (weights.double() / weights.sum()).log()
        self.calls, self.times = 0, []
        if levels is not None:
            self.levels = levels

    def __call__(self, x_t, t, cond=None):
        self.calls += 1
        self.times.append(t)
        if hasattr(self, "levels"):
            assert torch.isclose(t[:1, None].double(), self.levels, rtol=1e-6, atol=1e-7).any(), f"{t[0]} is no level"
        t = t[:1] if t.stride() == (0,) else t  # one time for all
        flat = x_t.flatten(1).double()
        alpha, sigma = (c.double().detach()[:, None] for c in (self.schedule.alpha(t), self.schedule.sigma(t)))
        points = self.points.flatten(1)
        variance = (alpha * self.std) ** 2 + sigma**2
        fit = (alpha * flat) @ points.T - alpha**2 * points.square().sum(
            1
        ) / 2  # -|x - alpha point|^2 / 2 + ..., [B, K]
        share = torch.softmax(self.log_weights + fit / variance, dim=1)
        mean = share @ points
        gain = alpha * self.std**2 / variance
        return (mean + gain * (flat - alpha * mean)).reshape(x_t.shape).to(x_t.dtype)

    def sample(self, n, seed=0):
        """x_0 itself, [n, ...]."""
        source = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=source)
        shape = (n, *self.points.shape[1:])
        return self.points[k] + self.std * torch.randn(shape, generator=source, dtype=torch.float64)


def gaussian(schedule, mean=0.3, std=0.5, shape=(1,)):
    """x_0 ~ N(mean, std^2 I)."""
    return Mixture(schedule, torch.full((1, *shape), mean), std=std)


MODES, WEIGHTS, WIDTH = ((-0.6, 0.2), (0.5, -0.3)), (0.3, 0.7), 0.1


def two_modes(schedule, levels=None):
    """Two modes in the plane, of unequal weight."""
    return Mixture(schedule, MODES, torch.tensor(WEIGHTS), WIDTH, levels)


def finite(schedule, points=((-0.8, 0.1), (0.1, 0.9), (0.7, -0.5))):
    """A dataset of three points."""
    return Mixture(schedule, points)


def gaussian_flow(schedule, x, t, s, mean, std):
    """The exact solution at s of the probability flow of x_0 ~ N(mean, std^2) that is at x at t."""
    times = torch.tensor([t, s], dtype=torch.float64)
    (alpha_t, alpha_s), (sigma_t, sigma_s) = schedule.alpha(times).tolist(), schedule.sigma(times).tolist()
    scale = math.sqrt(((alpha_s * std) ** 2 + sigma_s**2) / ((alpha_t * std) ** 2 + sigma_t**2))
    return alpha_s * mean + scale * (x - alpha_t * mean)
