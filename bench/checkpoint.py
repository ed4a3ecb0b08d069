"""How long training stands still for a checkpoint: python bench/checkpoint.py [gib=1] [rounds=5] [folder=...]

A checkpoint of that size (weights, two moments of Adam, an average: four equal parts, as a run's) is given to the
checkpoint callback's own plugin, writing at once and by its thread; told are the seconds until it gives training back,
and those until the disk has the file. The two take turns; told are medians, and the smallest and the largest. The
first save of each, which also finds memory for its copy, is told apart.
"""

import os
import platform
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


def spread(values, digits=2):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main():
    options = {"gib": 1.0, "rounds": 5, "folder": None}
    if {"-h", "--help"} & {*sys.argv[1:]}:
        raise SystemExit(__doc__)
    options |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    checkpoint, names = content(float(options["gib"])), ("synchronous", "asynchronous")
    print(f"{platform.node()}: {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {options['gib']} GiB", flush=True)
    with tempfile.TemporaryDirectory(dir=options["folder"]) as folder:
        saves = {name: (AtomicIO(name == "asynchronous"), []) for name in names}
        for _ in range(1 + int(options["rounds"])):
            for name, (io, times) in saves.items():
                times.append(timed(io, checkpoint, Path(folder) / f"{name}.ckpt"))
    print("\n| | first save s held | later saves s held | on the disk after s |\n| --- | --- | --- | --- |")
    for name, (_, times) in saves.items():
        held, disk = zip(*times[1:], strict=True)
        print(f"| {name} | {times[0][0]:.2f} | {spread(held)} | {spread(disk)} |")
    ratios = [a[0] / b[0] for a, b in zip(*(saves[name][1][1:] for name in names), strict=True)]
    print(f"\nHeld {spread(ratios, 1)} times shorter. Load at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
