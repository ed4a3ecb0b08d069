"""The probability-flow ODE in t, by Runge-Kutta methods."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.denoiser import Cond, Denoiser, expand, levels
from triptych.noise import Noise
from triptych.ode import dormand_prince
from triptych.sampler.base import Path, Sampler, batches, combine
from triptych.schedule import Schedule

# The nodes c and, below each other, the weights of the stages' slopes: for each later stage, and for the step itself.
TABLEAUS: dict[str, tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]] = {
    "euler": ((0.0,), ((1.0,),)),
    "heun": ((0.0, 1.0), ((1.0,), (1 / 2, 1 / 2))),
    "rk4": ((0.0, 1 / 2, 1 / 2, 1.0), ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6))),
}
METHODS = (*TABLEAUS, "dopri5")

Stage = tuple[int, list[float]]  # the time to call at, then the weights of x_t and of all x_0 so far


@dataclass(frozen=True, kw_only=True)
class ProbabilityFlow(Sampler):
    """Score-Based Generative Modeling through SDEs. Song et al. 2021. arXiv:2011.13456, Eq. 13, solved in t:

        dx/dt = alpha' x_0 + (sigma' / sigma) (x - alpha x_0),

    their f x - g^2 score / 2, in a form that is finite wherever sigma > 0.

    Adaptive, the step size is each sample's own (T-K9), the state is float64 (T-S18), and the end is t_min. With steps,
    the grid ends at 0, where sigma = 0 is reached by one call, which lands on x_0.

    Attributes:
        steps: None for the adaptive method.
        method: "euler", "heun" or "rk4" with steps; "dopri5", Dormand-Prince 5(4), without. None takes heun or dopri5.
        rtol, atol: tolerances of the adaptive method.
    """

    steps: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    method: str | None = None
    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method is None:
            object.__setattr__(self, "method", "dopri5" if self.steps is None else "heun")
        if self.method not in METHODS:
            raise ValueError(f"ProbabilityFlow: method must be one of {', '.join(METHODS)}, got {self.method!r}.")
        if (self.steps is None) != (self.method == "dopri5"):
            raise ValueError(
                "ProbabilityFlow: method=dopri5 chooses its own steps and needs steps=null; "
                f"{', '.join(TABLEAUS)} need a number of steps, got method={self.method}, steps={self.steps}."
            )
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"ProbabilityFlow: rtol and atol must be positive, got {self.rtol} and {self.atol}.")

    def check(self, denoiser: Denoiser) -> None:
        if levels(denoiser) is not None and self.method in ("rk4", "dopri5"):
            raise ValueError(
                f"ProbabilityFlow: method={self.method} asks for times between the levels, which this model does not "
                "know: choose method=euler or heun with a number of steps, or another sampler."
            )

    def path(self, denoiser: Denoiser) -> Path:
        """The grid; of the adaptive method, its two ends."""
        if self.steps is not None:
            return super().path(denoiser)
        ends = torch.tensor([self.t_start, denoiser.schedule.t_min], dtype=torch.float64)
        return Path.of(denoiser.schedule, ends)

    def trajectory(
        self, denoiser: Denoiser, x: Tensor, cond: Cond = None, noise: Noise = torch.randn_like
    ) -> Iterator[Tensor]:
        if self.method == "dopri5":
            yield from self.adaptive(denoiser, x, cond)
            return
        path = self.path(denoiser)
        nodes, _ = TABLEAUS[self.method or ""]
        stage_times = [t + c * (s - t) for t, s in zip(path.t[:-1], path.t[1:], strict=True) for c in nodes]
        times = batches(stage_times, x)
        for stages in self.coefficients(denoiser.schedule, path, stage_times):
            x_t, denoised = x, []
            for time, (a, *weights) in stages:
                denoised.append(self.predict(denoiser, x, times[time], cond))
                x = combine(a, x_t, weights, denoised)
            yield x
        yield from self.finish(denoiser, x, path, cond)

    def coefficients(self, schedule: Schedule, path: Path, stage_times: list[float]) -> list[list[Stage]]:
        """For each step and each of its stages: the time to call at, and the state after it in x_t and the x_0 so far.

        All slopes are linear in x and x_0, v = p x + q x_0, so every stage is a weighted sum, worked out here.
        """
        nodes, tableau = TABLEAUS[self.method or ""]
        times = torch.tensor(stage_times, dtype=torch.float64, device=schedule.device)
        alpha_slope, p = schedule.slopes(times)
        p, q = p.tolist(), (alpha_slope - p * schedule.alpha(times)).tolist()
        rows = []
        for i in range(len(path)):
            first = i * len(nodes)
            if path.sigma[i + 1] == 0:
                rows.append([(first, [0.0, path.alpha[i + 1]])])
                continue
            h = path.t[i + 1] - path.t[i]
            state, slopes, stages = [1.0], [], []
            for j, weights in enumerate(tableau, start=first):
                slopes.append([p[j] * w for w in state] + [q[j]])  # of x_t, x_0(1), ..., x_0(j)
                state = [1.0] + [0.0] * len(slopes)
                for weight, slope in zip(weights, slopes, strict=True):
                    for k, value in enumerate(slope):
                        state[k] += h * weight * value
                stages.append((j, state))
            rows.append(stages)
        return rows

    def adaptive(self, denoiser: Denoiser, x: Tensor, cond: Cond) -> Iterator[Tensor]:
        """Dormand-Prince in float64 from t_start to t_min; the denoiser is called in x's own dtype."""
        schedule, dtype = denoiser.schedule, x.dtype

        def velocity(t: Tensor, y: Tensor) -> Tensor:
            x_0 = self.predict(denoiser, y.to(dtype), t.to(torch.promote_types(dtype, torch.float32)), cond).double()
            alpha_slope, p = (expand(c, y) for c in schedule.slopes(t))
            return p * y + (alpha_slope - p * expand(schedule.alpha(t), y)) * x_0

        path = self.path(denoiser)
        y, _ = dormand_prince(velocity, x.double(), *path.t, rtol=self.rtol, atol=self.atol)
        x = y.to(dtype)
        yield x
        yield from self.finish(denoiser, x, path, cond)
