"""How long training stands still for a checkpoint: python bench/checkpoint.py [gib=1] [rounds=3] [folder=...]

A checkpoint of that size (weights, two moments of Adam, an average: four equal parts, as a run's) is given to the
checkpoint callback's own plugin, writing at once and by its thread; told are the seconds until it gives training back,
and those until the disk has the file.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from triptych.callback.checkpoint import AtomicIO


def content(gib):
    count = max(1, round(gib * 2**30 / 4 / 2**22))  # tensors of 4 MiB in each part
    parts = ("state_dict", "exp_avg", "exp_avg_sq", "ema")
    return {part: {str(i): torch.rand(2**20) for i in range(count)} for part in parts}


def timed(io, checkpoint, path):
    """(seconds training is held, seconds until it is on the disk)"""
    began = time.perf_counter()
    io.save_checkpoint(checkpoint, path)
    held = time.perf_counter() - began
    io.join()
    return held, time.perf_counter() - began


def main():
    options = {"gib": 1.0, "rounds": 3, "folder": None}
    options |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    checkpoint = content(float(options["gib"]))
    print(f"{options['gib']} GiB, load {os.getloadavg()[0]:.0f}, {torch.get_num_threads()} threads\n")
    print("| | first save s held | later saves s held | on the disk after s |\n| --- | --- | --- | --- |", flush=True)
    held = {}
    with tempfile.TemporaryDirectory(dir=options["folder"]) as folder:
        for name, asynchronous in (("synchronous", False), ("asynchronous", True)):
            io = AtomicIO(asynchronous)
            times = [timed(io, checkpoint, Path(folder) / "last.ckpt") for _ in range(1 + int(options["rounds"]))]
            held[name] = statistics.median(t for t, _ in times[1:])
            disk = statistics.median(t for _, t in times[1:])
            print(f"| {name} | {times[0][0]:.2f} | {held[name]:.2f} | {disk:.2f} |", flush=True)
    print(f"\n{held['synchronous'] / held['asynchronous']:.1f} times shorter.")


if __name__ == "__main__":
    main()
