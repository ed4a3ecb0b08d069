import numpy as np

from triptych.dataset.base import Dataset


class Digits(Dataset):
    """1,797 handwritten digits, 8 x 8, ten classes. Alpaydin, Kaynak 1998 (UCI). Comes with scikit-learn.

    Their 17 grey levels 0, ..., 16 are spread over 0, ..., 255.
    """

    splits = ("train",)

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray | None]:
        from sklearn.datasets import load_digits  # slow to import, so only here

        pixels, labels = load_digits(return_X_y=True)
        return np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8), labels
