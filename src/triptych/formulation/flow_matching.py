"""Flow matching."""

import torch
from torch import Tensor

from triptych import denoiser
from triptych.denoiser import Cond
from triptych.formulation.base import Formulation
from triptych.formulation.times import TimeSampler, Uniform
from triptych.noise import Noise
from triptych.schedule import Rectified


class FlowMatching(Formulation):
    """Flow Matching for Generative Modeling. Lipman et al. 2022. arXiv:2210.02747; Liu et al. 2022. arXiv:2209.03003.

    The network says the velocity eps - x_0 of the straight path x_t = (1 - t) x_0 + t eps. In the papers t = 1 is data.
    """

    schedules = (Rectified,)
    noise_range = (0.0, 1.0)

    def loss(self, x_0: Tensor, t: Tensor, cond: Cond = None, noise: Noise = torch.randn_like) -> Tensor:
        """Conditional flow matching along the straight path, a mean over dimensions. [B, C, H, W], [B] -> [B]."""
        alpha, sigma = self.coefficients(t, x_0)  # 1 - t, t
        eps = noise(x_0)
        x_t = alpha * x_0 + sigma * eps
        return (self.network(x_t, t, cond) - (eps - x_0)).square().flatten(1).mean(1)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        return denoiser.x_0_from_velocity(x_t, self.network(x_t, t, cond), *self.coefficients(t, x_t))

    def default_times(self) -> TimeSampler:
        return Uniform(t_min=0.0)
