"""Bits per dimension by the variational bound of DDPM."""

from torch import Tensor

from triptych.denoiser import Cond, Denoiser
from triptych.image import from_uint8
from triptych.metric.per_image import PerImage
from triptych.noise import Noise


class VLB(PerImage):
    """The variational bound on -log2 P(image) per dimension, T network calls an image, nothing clipped (T-K4).

    Ho, Jain, Abbeel 2020. arXiv:2006.11239, Eq. 5. For denoisers with a `variational_bound`, that is DDPM.
    """

    quantisation = "none: the decoder gives probabilities of 256 levels"

    def score(self, denoiser: Denoiser, images: Tensor, cond: Cond, noise: Noise) -> Tensor:
        if not hasattr(denoiser, "variational_bound"):
            raise ValueError("The metric vlb needs a DDPM; for any other formulation choose bits_per_dim.")
        x_0 = from_uint8(images) if not images.is_floating_point() else images
        return denoiser.variational_bound(x_0, noise, cond).total  # pyright: ignore[reportAttributeAccessIssue]
