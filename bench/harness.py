"""What the benchmarks share: rounds that take turns, the machine they ran on, a table and one line of JSON."""

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

PACKAGES = ("torch", "lightning", "torchmetrics", "diffusers", "denoising-diffusion-pytorch", "azula", "numpy", "scipy")


def seconds(step: Callable[[], object], device: str = "cpu") -> float:
    """CPU seconds of this process, which other processes do not take part in; on a GPU, seconds between its events."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    began = time.process_time()
    step()
    return time.process_time() - began


def take_turns(
    ways: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each way, A B C A B C ...: a machine that is busy for a while disturbs all alike."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(warmup + rounds):
        for name, way in ways.items():
            t = seconds(way, device)
            if i >= warmup:
                took[name].append(t)
    return took


def ratio(theirs: list[float], ours: list[float]) -> float:
    """How many times as fast we are: the median of the ratios of one turn."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, object]:
    """The processor, and how busy it was with others when this was asked."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    said = {
        "cpu": names[0].partition(": ")[2] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
    }
    if torch.cuda.is_available():
        said["gpu"] = torch.cuda.get_device_name()
    return said


def table(head: list[str], rows: list[list[object]]) -> None:
    """Columns as wide as they need, the first to the left; a number is formatted by who gives it."""
    cells = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))))


def finish(name: str, **results: object) -> None:
    """The line of JSON that ends a benchmark."""
    date = time.strftime("%Y-%m-%d")
    said = {"bench": name, "date": date, "machine": machine(), "versions": versions(), **results}
    print(json.dumps(_rounded(said)))


def _rounded(value: object) -> object:
    """Four digits are more than a benchmark knows."""
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
