"""Two processes and one give the same values; a process may have no samples."""

import json
import os
import subprocess
import sys

import pytest
from processes import ports

SCRIPT = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import torch
import torch.distributed as dist
from torch import nn
from triptych.metric import FrechetDistance, FrechetInfinity, InceptionScore, KernelDistance, MMD, PrecisionRecall

rank, world, shares = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), json.loads(sys.argv[1])
if world > 1:
    dist.init_process_group("gloo", rank=rank, world_size=world)

class Pixels(nn.Module):
    num_features = 12
    def forward(self, images):
        return images.flatten(1).float() / 255
    def logits(self, features):
        return 5 * features[:, :4]
    def parameters(self, recurse=True):
        yield torch.zeros(1)

def images(seed):
    return torch.randint(0, 256, (160, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))

metrics = {
    "fd": FrechetDistance(Pixels()),
    "kid": KernelDistance(Pixels(), subset_size=50, subsets=4),
    "pr": PrecisionRecall(Pixels()),
    "score": InceptionScore(Pixels(), splits=3),
    "infinity": FrechetInfinity(Pixels(), points=4),
}
toy = MMD()
first = sum(shares[:rank])
parts = [part for part in torch.arange(160)[first : first + shares[rank]].split(32) if len(part)]
for name, metric in metrics.items():
    for real in (True, False):
        for part in parts:
            metric.update(images(1 if real else 2)[part], real=real, index=part)
for part in parts:
    toy.update(images(1)[part].flatten(1)[:, :2] / 255.0, real=True, index=part)
    toy.update(images(2)[part].flatten(1)[:, :2] / 255.0, real=False, index=part)
values = {"mmd": float(toy.compute())}
for name, metric in metrics.items():
    value = metric.compute()
    values |= {k: float(v) for k, v in value.items()} if isinstance(value, dict) else {name: float(value)}
print("VALUES" + json.dumps(values))
"""


def run(shares: list[int]) -> list[dict[str, float]]:
    """The values each of len(shares) processes computes from its share of 160 samples."""
    (port,) = map(str, ports())
    world = {"WORLD_SIZE": str(len(shares)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, json.dumps(shares)],
            env=os.environ | world | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(len(shares))
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [json.loads(output.split("VALUES")[1]) for output in outputs]


@pytest.mark.slow
def test_values_do_not_depend_on_the_number_of_processes():
    """T-F10, T-F11: uneven shares, and one process with nothing at all."""
    (alone,) = run([160])
    for shares in ([96, 64], [160, 0]):
        for values in run(shares):
            assert values == pytest.approx(alone, rel=1e-6, abs=1e-9)
