"""A few training steps of each config on standard input (JSON), seconds a step of each on standard output.

A program of its own, so that whatever it takes on a GPU is given back before the sweep begins.
"""

import json
import sys
import time
from typing import Any

import torch
from hydra.utils import instantiate

from triptych.cli import quiet
from triptych.noise import Step

STEPS, SECONDS = 20, 3.0  # whichever is reached first
WARM = 2  # steps that are not counted


def seconds_per_step(config: dict[str, Any]) -> float:
    """Of forward, backward and optimizer on random images; without data loading and logging."""
    trainer = config["trainer"]
    gpu = torch.cuda.is_available() and trainer["accelerator"] != "cpu"
    device = torch.device("cuda" if gpu else "cpu")
    dataset = instantiate(config["dataset"])
    formulation = instantiate(config["formulation"]).to(device)
    optimizer = formulation.configure_optimizers()["optimizer"]
    devices = trainer["devices"] if isinstance(trainer["devices"], int) and trainer["devices"] > 0 else 1
    accumulate = trainer.get("accumulate_grad_batches") or 1
    batch = max(1, dataset.global_batch_size // (devices * accumulate))
    x_0 = torch.rand(batch, *dataset.shape, device=device) * 2 - 1
    cond = torch.zeros(batch, dtype=torch.long, device=device) if dataset.conditional else None
    half = torch.autocast(device.type, torch.bfloat16, enabled="16" in str(trainer.get("precision")))
    began = last = time.perf_counter()
    for done in range(WARM + STEPS):
        if done == WARM:
            began = last
        elif done > WARM and last - began > SECONDS:
            break
        for micro in range(accumulate):
            with half:
                t, weight = formulation.times.draw(formulation.schedule, batch, Step(0, (done, micro), device=device))
                (weight * formulation.loss(x_0, t, cond)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if gpu:
            torch.cuda.synchronize()
        last = time.perf_counter()
    else:
        done += 1
    return (last - began) / (done - WARM)


def main() -> None:
    quiet()
    times: list[float | None] = []
    for config in json.load(sys.stdin):
        try:
            times.append(seconds_per_step(config))
        except (RuntimeError, ValueError, TypeError) as error:  # out of memory, or a network that needs more than x_0
            print(error, file=sys.stderr)
            times.append(None)
    print(json.dumps(times))


if __name__ == "__main__":
    main()
