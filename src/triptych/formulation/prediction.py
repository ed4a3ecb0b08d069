"""What a network may be asked to predict, and what each says about x_0."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from triptych import denoiser


class Prediction(NamedTuple):
    """One way of asking.

    Attributes:
        target: (x_0, eps, alpha, sigma) -> what the network should say.
        x_0: (x_t, output, alpha, sigma) -> the x_0 that the output stands for.
        x_0_error: SNR -> squared error of x_0 for each squared error of the output, where alpha^2 + sigma^2 = 1.
    """

    target: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    x_0: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    x_0_error: Callable[[Tensor], Tensor]


PREDICTIONS = {
    "eps": Prediction(lambda x_0, eps, alpha, sigma: eps, denoiser.x_0_from_eps, lambda snr: 1 / snr),
    "x_0": Prediction(lambda x_0, eps, alpha, sigma: x_0, lambda x_t, x_0, alpha, sigma: x_0, torch.ones_like),
    "v": Prediction(
        lambda x_0, eps, alpha, sigma: alpha * eps - sigma * x_0, denoiser.x_0_from_v, lambda snr: 1 / (1 + snr)
    ),
}
