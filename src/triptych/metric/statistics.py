"""Mean and covariance of features: summed in float64, merged by adding, kept as npz."""

# pyright: reportAttributeAccessIssue=false
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg.blas import dsyrk
from torch import Tensor

from triptych import disk


class Statistics(NamedTuple):
    """n features' mean [D] and unbiased covariance [D, D], float64; `extractor`: the identity of whose they are."""

    n: int
    mean: Tensor
    cov: Tensor
    extractor: str = ""

    @classmethod
    def from_sums(cls, n: Tensor, total: Tensor, outer: Tensor, extractor: str = "") -> "Statistics":
        """From n, sum f [D] and the lower triangle of sum f f^T [D, D]."""
        count = int(n)
        if count < 2:
            raise ValueError(f"A covariance needs at least 2 samples, but there are {count}.")
        mean = total / count
        full = outer.tril() + outer.tril(-1).mT
        return cls(count, mean, (full - count * torch.outer(mean, mean)) / (count - 1), extractor)

    @classmethod
    def from_features(cls, features: Tensor, extractor: str = "") -> "Statistics":
        """[N, D] -> their statistics, by centring first (two passes)."""
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"A covariance needs features [N, D] with N >= 2, but they are {list(features.shape)}.")
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        return cls(len(features), mean, centred.mT @ centred / (len(features) - 1), extractor)

    def check(self, extractor: str, num_features: int) -> None:
        """Refuses to be compared with the features of another extractor."""
        if self.mean.shape != (num_features,) or self.cov.shape != (num_features, num_features):
            raise ValueError(
                f"The reference has {self.mean.numel()} features, but {extractor} has {num_features}: "
                "it was built with another extractor."
            )
        if self.extractor not in ("", extractor):
            raise ValueError(f"The reference was built with {self.extractor}, but this metric reads {extractor}.")

    def save(self, path: str | Path) -> None:
        """Writes `mu` and `sigma`, as the ADM evaluator and EDM read them, with `n` and `extractor` beside them.

        Two processes may write the same file at once: each writes its own and renames it.
        """
        with disk.replacing(path, "wb") as file:
            np.savez(
                file,
                mu=self.mean.cpu().numpy(),
                sigma=self.cov.cpu().numpy(),
                n=np.int64(self.n),
                extractor=np.str_(self.extractor),
            )

    @classmethod
    def load(cls, path: str | Path) -> "Statistics":
        """Reads `mu` and `sigma`; a file of the ADM evaluator or of EDM has no `n`, which is then 0 (unknown)."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"There are no reference statistics at {path}.")
        with np.load(path, allow_pickle=False) as file:
            if not {"mu", "sigma"} <= set(file.files):
                raise ValueError(f"{path} holds {sorted(file.files)}, but reference statistics need mu and sigma.")
            mean, cov = (torch.from_numpy(np.asarray(file[key], dtype=np.float64)) for key in ("mu", "sigma"))
            n = int(file["n"]) if "n" in file.files else 0
            extractor = str(file["extractor"]) if "extractor" in file.files else ""
        if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
            raise ValueError(f"{path} has mu {list(mean.shape)} and sigma {list(cov.shape)}, not [D] and [D, D].")
        if not (bool(mean.isfinite().all()) and bool(cov.isfinite().all())):
            raise ValueError(f"{path} holds NaN or Inf in mu or sigma, so no distance from it is defined.")
        return cls(n, mean, cov, extractor)


def add_outer(outer: Tensor, features: Tensor) -> None:
    """outer += sum f f^T in place, [D, D] += [N, D]; only the lower triangle of `outer` is sure to be right.

    float64. BLAS's symmetric update does half the work of a product; it sees the memory of `outer` as a
    column-major matrix, hence the transposed triangle. It writes in place only into column-major float64.
    """
    if outer.device.type == "cpu":
        dsyrk(1.0, features.numpy().T, beta=1.0, c=outer.numpy().T, overwrite_c=True, lower=False)
    else:
        outer.addmm_(features.mT, features)
