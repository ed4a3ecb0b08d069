"""How long one waits for an answer: seconds on the clock of whole processes, beside the imports that peers begin with.

    python bench/startup.py [--rounds 7]

`--help` and a mistyped word must answer within 1.5 s (Hydra's part of that, without Python's own start, in 0.4 s of
imports); the imports are what a training script of each library does before its first step. Rounds take turns, so that
all are disturbed alike; the smallest of all rounds is the one least disturbed.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from pathlib import Path

from harness import finish, table

ROOT = Path(__file__).resolve().parents[1]
OURS = {
    "python itself": ["-c", "pass"],
    "import triptych.cli, hydra": ["-c", "import triptych.cli, hydra"],
    "train.py --help": ["train.py", "--help"],
    "train.py modle=unet (a mistyped word)": ["train.py", "modle=unet"],
    "train.py --cfg job": ["train.py", "--cfg", "job"],
    "import torch": ["-c", "import torch"],
    "import triptych.training": ["-c", "import triptych.training"],
}
PEERS = {
    "diffusers": "import diffusers; diffusers.UNet2DModel, diffusers.DDPMScheduler",
    "lightning": "import lightning",
    "azula": "import azula.denoise, azula.sample",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    ways = dict(OURS)
    ways |= {f"import {name}": ["-c", code] for name, code in PEERS.items() if importlib.util.find_spec(name)}
    took: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(arguments.rounds + 1):
        for name, command in ways.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True)
            if i:  # the first round reads the files into memory
                took[name].append(time.perf_counter() - began)
    rows = [[name, f"{statistics.median(t):.2f}", f"{min(t):.2f}"] for name, t in took.items()]
    table(["seconds", "median", "best"], rows)
    finish("startup", rounds=arguments.rounds, seconds={n: [statistics.median(t), min(t)] for n, t in took.items()})


if __name__ == "__main__":
    main()
