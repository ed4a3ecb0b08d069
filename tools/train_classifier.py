"""Trains the small classifier behind `fd_<dataset>` and writes its safetensors file, on one CPU core in minutes.

    python tools/train_classifier.py dataset=digits
    python tools/train_classifier.py dataset=mnist root=data/mnist epochs=4

`root` holds the official IDX files (`train-images-idx3-ubyte.gz`, ...) or CIFAR-10's binary ones (`data_batch_1.bin`,
..., `test_batch.bin`). Digits come with scikit-learn; a fifth of them, drawn with seed 0, is held out.
"""

import gzip
import hashlib
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from triptych.metric import SmallClassifier, Statistics, frechet_distance

WEIGHTS = Path(__file__).resolve().parents[1] / "src" / "triptych" / "metric" / "weights"
Split = tuple[Tensor, Tensor]  # uint8 [N, C, H, W], int64 [N]

NETWORK: dict[str, dict] = {
    "digits": dict(in_channels=1, resolution=8, num_features=64, widths=(32, 64)),
    "mnist": dict(in_channels=1, resolution=28, num_features=64, widths=(12, 24, 48)),
    "fashion_mnist": dict(in_channels=1, resolution=28, num_features=64, widths=(16, 32, 64)),
    "cifar10": dict(in_channels=3, resolution=32, num_features=96, widths=(16, 48, 104)),
}
TRAINING: dict[str, dict] = {
    "digits": dict(epochs=40, shift=1, flip=False),
    "mnist": dict(epochs=4, shift=2, flip=False),
    "fashion_mnist": dict(epochs=6, shift=2, flip=True),
    "cifar10": dict(epochs=9, shift=4, flip=True),
}
TRACE = 24.0  # of the covariance of the real features: fixes the scale of the distance


def read(dataset: str, root: Path) -> tuple[Split, Split]:
    """The training split and the held-out one."""
    if dataset == "digits":
        images, labels = load_digits(return_X_y=True)
        pixels = np.floor(images.reshape(-1, 1, 8, 8) * (255 / 16) + 0.5).astype(np.uint8)
        order = np.random.default_rng(0).permutation(len(pixels))
        x, y = torch.from_numpy(pixels[order]), torch.from_numpy(labels[order].astype(np.int64))
        held_out = len(x) // 5
        return (x[held_out:], y[held_out:]), (x[:held_out], y[:held_out])
    if dataset == "cifar10":
        train = [read_cifar(root / f"data_batch_{i}.bin") for i in range(1, 6)]
        return (torch.cat([x for x, _ in train]), torch.cat([y for _, y in train])), read_cifar(root / "test_batch.bin")
    return tuple(
        (
            read_idx(root / f"{name}-images-idx3-ubyte.gz")[:, None],
            read_idx(root / f"{name}-labels-idx1-ubyte.gz").long(),
        )
        for name in ("train", "t10k")
    )


def read_idx(path: Path) -> Tensor:
    """LeCun's format: 0, 0, type 8 (uint8), number of dimensions, the dimensions as big-endian int32, the values."""
    raw = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(raw, ">i4", raw[3], 4)
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape).copy())


def read_cifar(path: Path) -> Split:
    """Records of one label byte and 3 x 32 x 32 pixels."""
    records = torch.from_numpy(np.fromfile(path, np.uint8)).view(-1, 1 + 3 * 32 * 32)
    return records[:, 1:].reshape(-1, 3, 32, 32).contiguous(), records[:, 0].long()


def augment(images: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """A random shift by at most `shift` pixels, the edges filled with 0, and a random mirror image."""
    n, _, height, width = images.shape
    padded = F.pad(images, (shift,) * 4)
    move = torch.randint(0, 2 * shift + 1, (2, n, 1), generator=generator)
    rows = move[0] + torch.arange(height)
    columns = move[1] + torch.arange(width)
    if flip:
        mirrored = torch.rand((n, 1), generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    batch = torch.arange(n)[:, None, None]
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train(network: SmallClassifier, split: Split, epochs: int, shift: int, flip: bool, batch_size: int = 128) -> None:
    """AdamW with a one-cycle learning rate and label smoothing, which keeps the features from saturating."""
    x, y = split
    generator = torch.Generator().manual_seed(0)
    steps = epochs * math.ceil(len(x) / batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.2)
    network.train()
    begun = time.perf_counter()
    for epoch in range(epochs):
        for index in torch.randperm(len(x), generator=generator).split(batch_size):
            images = augment(x[index], shift, flip, generator)
            logits = network.logits(network.features(network.prepare(images)))
            loss = F.cross_entropy(logits, y[index], label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        print(
            f"epoch {epoch + 1}/{epochs}: loss {loss.item():.3f}, {time.perf_counter() - begun:.0f} s",
            flush=True,
        )
    network.eval()


@torch.no_grad()
def extract(network: SmallClassifier, images: Tensor) -> Tensor:
    return torch.cat([network(part) for part in images.split(500)])


def distance(features_1: Tensor, features_2: Tensor) -> float:
    one, two = Statistics.from_features(features_1), Statistics.from_features(features_2)
    return float(frechet_distance(one.mean, one.cov, two.mean, two.cov))


def main(dataset: str, root: str = "", out: str = "", **training: int) -> None:
    if dataset not in NETWORK:
        raise SystemExit(f"dataset={dataset}: choose one of {', '.join(NETWORK)}.")
    torch.manual_seed(0)
    split, held_out = read(dataset, Path(root))
    network = SmallClassifier(dataset, **NETWORK[dataset])
    train(network, split, **TRAINING[dataset] | training)
    features = extract(network, split[0])
    network.scale.copy_((TRACE / features.double().var(0).sum()).sqrt())
    features, others = extract(network, split[0]), extract(network, held_out[0])
    with torch.no_grad():
        accuracy = (network.logits(others).argmax(1) == held_out[1]).double().mean().item()
    meta = dict(name=dataset, accuracy=f"{accuracy:.4f}", num_classes="10", blocks="1")
    meta |= {key: str(value) for key, value in NETWORK[dataset].items() if key != "widths"}
    meta["widths"] = ",".join(map(str, NETWORK[dataset]["widths"]))
    raw = save({key: value.contiguous() for key, value in network.state_dict().items()}, meta)
    path = Path(out) if out else WEIGHTS / f"{dataset}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    noise = torch.randint(0, 256, split[0][:2000].shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(2))
    halves = distance(features[order[::2]], features[order[1::2]])
    print(
        f"{path}: {len(raw) / 1e3:.0f} kB, sha256 {hashlib.sha256(raw).hexdigest()[:16]}..., "
        f"held-out accuracy {100 * accuracy:.2f} %. Distance between two halves of the training images {halves:.3f}, "
        f"to the held-out ones {distance(features, others):.3f}, "
        f"to noise {distance(features, extract(network, noise)):.1f}."
    )


if __name__ == "__main__":
    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if "dataset" not in arguments:
        raise SystemExit(__doc__)
    numbers = {key: int(arguments.pop(key)) for key in ("epochs", "batch_size") if key in arguments}
    main(**arguments, **numbers)
