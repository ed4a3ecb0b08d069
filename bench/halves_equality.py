"""Two halves of the real digits, measured by numpy and scipy alone: the value that our own distance is tested against.

    python bench/halves_equality.py

Nothing of Triptych or torch takes part: the weights are read from their file, the convolutions are sums over nine
shifted images, the distance has scipy's sqrtm, all in float64. tests/metric/test_classifier.py holds the number.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from scipy.linalg import sqrtm
from scipy.special import expit
from sklearn.datasets import load_digits

WEIGHTS = Path(__file__).resolve().parents[1] / "src" / "triptych" / "metric" / "weights" / "digits.safetensors"


def convolve(x: np.ndarray, weight: np.ndarray, stride: int = 1) -> np.ndarray:
    """[N, C, H, W] with [D, C, k, k], zeros around."""
    k, (height, width) = weight.shape[-1], x.shape[2:]
    edge = k // 2
    x = np.pad(x, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    out = 0
    for i in range(k):
        for j in range(k):
            shifted = x[:, :, i : i + height : stride, j : j + width : stride]
            out = out + np.einsum("nchw,dc->ndhw", shifted, weight[:, :, i, j], optimize=True)
    return np.asarray(out)


def features(images: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    """uint8 [N, 8, 8] -> [N, D]."""

    def silu(x: np.ndarray) -> np.ndarray:
        return x * expit(x)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        scale = w[f"{name}.weight"] / np.sqrt(w[f"{name}.running_var"] + 1e-5)
        return (x - w[f"{name}.running_mean"][:, None, None]) * scale[:, None, None] + w[f"{name}.bias"][:, None, None]

    x = convolve(images[:, None] / 127.5 - 1, w["body.0.weight"])
    last = max(int(name.split(".")[1]) for name in w if name.startswith("body."))
    for i in range(1, last):
        if f"body.{i}.conv_1.weight" not in w:
            continue
        stride = 2 if f"body.{i}.skip.weight" in w else 1  # in the digits' network whoever halves has a skip
        h = convolve(silu(norm(x, f"body.{i}.norm_1")), w[f"body.{i}.conv_1.weight"], stride)
        h = convolve(silu(norm(h, f"body.{i}.norm_2")), w[f"body.{i}.conv_2.weight"])
        x = h + (convolve(x, w[f"body.{i}.skip.weight"], stride) if stride == 2 else x)
    x = silu(norm(x, f"body.{last}"))
    n, channels, side, _ = x.shape
    pooled = x.reshape(n, channels, 2, side // 2, 2, side // 2).mean((3, 5))
    return w["scale"] * (pooled.reshape(n, -1) @ w["project.weight"].T + w["project.bias"])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Equation 6 of arXiv:1706.08500."""
    s, t = np.cov(a.T), np.cov(b.T)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * np.real(sqrtm(s @ t))))


def main() -> None:
    w = {name: value.astype(np.float64) for name, value in load_file(WEIGHTS).items()}
    images = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    print(
        f"fd_digits of the even and the odd digits: {distance(features(images[::2], w), features(images[1::2], w)):.6f}"
    )


if __name__ == "__main__":
    main()
