from typing import Any

import numpy as np

from triptych.dataset.base import Dataset


def two_moons(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Half circles of radius 1/2 around (-1/4, -1/8) and (1/4, 1/8), with Gaussian noise of std 0.04."""
    moon = rng.integers(0, 2, n)
    angle = np.pi * (rng.random(n) + moon)
    centre = np.where(moon, 0.25, -0.25)[:, None] * np.array([1, 0.5])
    circle = 0.5 * np.stack([np.cos(angle), np.sin(angle)], 1)
    return centre + circle + 0.04 * rng.standard_normal((n, 2)), moon


def eight_gaussians(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Eight Gaussians of std 0.05 at equal weights on a circle of radius 0.8."""
    mode = rng.integers(0, 8, n)
    angle = mode * (2 * np.pi / 8)
    return 0.8 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.05 * rng.standard_normal((n, 2)), mode


def checkerboard(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniform on the eight dark squares of a 4 x 4 board over [-1, 1]^2."""
    square = rng.integers(0, 8, n)
    row, column = square // 2, 2 * (square % 2) + square // 2 % 2
    return -1 + 0.5 * (np.stack([column, row], 1) + rng.random((n, 2))), square


DENSITIES = {f.__name__: f for f in (two_moons, eight_gaussians, checkerboard)}


class Toy(Dataset):
    """Points in the plane from a known density, within about [-1, 1]^2. x_0 is float32 [B, 2].

    Args:
        density: "two_moons", "eight_gaussians" or "checkerboard".
        points: how many, in each of train and test; the same for every seed.
    """

    def __init__(self, density: str = "two_moons", points: int = 100_000, **shared: Any) -> None:
        if density not in DENSITIES:
            raise ValueError(f"dataset.density={density} is not one of {', '.join(DENSITIES)}.")
        super().__init__(**shared)
        self.density, self.points = density, points

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray | None]:
        rng = np.random.default_rng([0, self.splits.index(split)])
        x, label = DENSITIES[self.density](rng, self.points)
        return x.astype(np.float32), label

    def transform(self) -> dict[str, object]:
        return super().transform() | {"density": self.density, "points": self.points}
