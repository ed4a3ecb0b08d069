"""Power-function averages of the weights, and any length of them after training from a few snapshots.

Analyzing and Improving the Training Dynamics of Diffusion Models. Karras et al. 2024. arXiv:2312.02696, section 3 and
appendix C. The average at time t weighs the weights of time tau <= t by the profile

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1)

whose width relative to t, sigma_rel, says it better than gamma. Time is counted in images. Snapshots of two such
averages span others: the coefficients are those of the least-squares fit of the wanted profile by the stored ones.
"""

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = "ema"  # of a run
LONGEST = 0.28  # sigma_rel is 1 / sqrt(12) = 0.289 for the uniform average, the longest there is
MAX_ERROR = 0.15  # of a profile's fit, relative


def exponent(sigma_rel: float) -> float:
    """gamma of a relative width: the positive root of (gamma + 2)^2 (gamma + 3) sigma_rel^2 = gamma + 1."""
    if not isinstance(sigma_rel, (int, float)) or not 0 < sigma_rel <= LONGEST:
        raise ValueError(f"The length of an average, ema=…, must be above 0 and at most {LONGEST}, got {sigma_rel}.")
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def decay(before: float, now: float, gamma: float) -> float:
    """What the average of time `before` weighs in that of time `now`, (before / now)^(gamma + 1)."""
    return (before / now) ** (gamma + 1)


def inner_product(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """The integral of p_a p_b over [0, min(t_a, t_b)], in closed form; the arguments broadcast."""
    t_a, gamma_a, t_b, gamma_b = np.broadcast_arrays(t_a, gamma_a, t_b, gamma_b)
    longer = np.where(t_a < t_b, gamma_b, gamma_a)
    ratio = np.minimum(t_a, t_b) / np.maximum(t_a, t_b)
    return (gamma_a + 1) * (gamma_b + 1) * ratio**longer / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))


def coefficients(
    times: Sequence[float], gammas: Sequence[float], time: float, gamma: float
) -> tuple[np.ndarray, float]:
    """The least-squares combination of stored profiles for that of (time, gamma), and its relative L2 error."""
    t, g = np.asarray(times, float) / time, np.asarray(gammas, float)
    gram = inner_product(t[:, None], g[:, None], t, g)
    wanted = inner_product(t, g, np.asarray(1.0), np.asarray(gamma))
    found = np.linalg.lstsq(gram, wanted, rcond=1e-15)[0]
    norm = (gamma + 1) ** 2 / (2 * gamma + 1)
    return found, math.sqrt(max(0.0, 1 - 2 * found @ wanted / norm + found @ gram @ found / norm))


@dataclass(frozen=True)
class Snapshot:
    """One file: the averages of several lengths at one time."""

    path: Path
    images: int

    @staticmethod
    def write(
        folder: Path, images: int, averages: dict[float, dict[str, Tensor]], dtype: torch.dtype = torch.float16
    ) -> "Snapshot":
        """Written whole or not at all; the values are rounded to `dtype`."""
        from safetensors.torch import save

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"images={images:012d}.safetensors"
        tensors = {
            f"{length}/{name}": value.detach().to(dtype).cpu().contiguous()
            for length, average in averages.items()
            for name, value in average.items()
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(save(tensors))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return Snapshot(path, images)

    @staticmethod
    def of(folder: Path) -> list["Snapshot"]:
        """Those of a run, by time."""
        found = ((path, re.fullmatch(r"images=(\d+)", path.stem)) for path in folder.glob("images=*.safetensors"))
        return sorted((Snapshot(p, int(m[1])) for p, m in found if m), key=lambda snapshot: snapshot.images)

    def lengths(self) -> list[float]:
        with self._open() as file:
            return sorted({float(key.partition("/")[0]) for key in file.keys()})  # noqa: SIM118 (not a dict)

    def tensors(self, length: float) -> Iterator[tuple[str, Tensor]]:
        """(name, value) of the average of one length, read one by one."""
        with self._open() as file:
            for key in file.keys():  # noqa: SIM118
                if float(key.partition("/")[0]) == length:
                    yield key.partition("/")[2], file.get_tensor(key)

    def _open(self):  # noqa: ANN202 (safetensors has no public type for it)
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(self.path, "pt")
        except SafetensorError as error:
            raise ValueError(
                f"The snapshot {self.path} cannot be read ({error}); remove it to go without it."
            ) from error


def rebuild(snapshots: Sequence[Snapshot], sigma_rel: float) -> dict[str, Tensor]:
    """The average of length `sigma_rel` at the time of the last snapshot, in float32; sums are taken in float64."""
    gamma = exponent(sigma_rel)
    stored = [(snapshot, length) for snapshot in snapshots for length in snapshot.lengths()]
    found, error = coefficients(
        [snapshot.images for snapshot, _ in stored],
        [exponent(length) for _, length in stored],
        snapshots[-1].images,
        gamma,
    )
    if error > MAX_ERROR:
        fit = [s for s in (0.02, 0.03, 0.04, 0.05, 0.1, 0.15, 0.2, 0.25) if _error(stored, s) <= MAX_ERROR]
        raise ValueError(
            f"{len(snapshots)} snapshots cannot give an average of length ema={sigma_rel}: its profile would be off by "
            f"{error:.0%}; choose ema between {fit[0]} and {fit[-1]}, or take snapshots more often."
        )
    total: dict[str, Tensor] = {}
    for (snapshot, length), weight in zip(stored, found, strict=True):
        if abs(weight) < 1e-12:
            continue
        for name, value in snapshot.tensors(length):
            if name in total:
                total[name].add_(value.double(), alpha=weight)
            else:
                total[name] = weight * value.double()
    return {name: value.float() for name, value in total.items()}


def _error(stored: Sequence[tuple[Snapshot, float]], sigma_rel: float) -> float:
    times, gammas = [s.images for s, _ in stored], [exponent(length) for _, length in stored]
    return coefficients(times, gammas, max(times), exponent(sigma_rel))[1]
