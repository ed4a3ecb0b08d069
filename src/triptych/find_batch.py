"""`find_batch=true`: how many images a step one GPU holds, found by trying, and what to type for the global batch."""

import copy
import gc
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from triptych import cli, compilation, conf, refusal
from triptych.signals import Asked
from triptych.training import Job

HOLDING = ("ema", "power_ema", "guard")  # callbacks that keep memory, or look at every gradient, while a step is done
STEPS = 3  # the optimizer allocates its state in the first, and a compiled network may be compiled twice


def find(config: DictConfig, asked: Asked) -> None:
    """Prints how many images fit with forward, backward, optimizer step and averages; trains and keeps nothing."""
    cli.quiet()
    folder = Path(HydraConfig.get().runtime.output_dir)
    with refusal.refusals():
        job = Job.of(config, folder, asked)
        world_size, device = job.trainer.world_size, job.trainer.strategy.root_device
        check(device, conf.choices().get("trainer"))
        job.dataset.prepare_data()
        limit = len(job.dataset.images("train"))
    torch.cuda.set_device(device)
    total = torch.cuda.get_device_properties(device).total_memory
    name = torch.cuda.get_device_name(device)
    print(f"{STEPS} steps each on {name}, {total / 2**30:.1f} GiB: forward, backward, optimizer, averages.", flush=True)

    def fits(images: int) -> bool:
        torch.cuda.reset_peak_memory_stats(device)
        held = trial(config, asked, images)
        gc.collect()
        torch.cuda.empty_cache()
        peak = torch.cuda.max_memory_allocated(device) / 2**30
        print(f"{images:8,} images  " + (f"{peak:6.1f} GiB" if held else "do not fit"), flush=True)
        return held

    most = largest(fits, max(1, config.global_batch_size // world_size), limit)
    print(advice(most, config.global_batch_size, world_size, most == limit))


def check(device: torch.device, trainer: str | None) -> None:
    if device.type != "cuda":
        raise ValueError("find_batch=true fills a GPU's memory, and this run is on a CPU: leave it out.")
    if trainer == "fsdp":
        raise ValueError(
            "find_batch=true tries one GPU, and trainer=fsdp needs them all for its network: try global_batch_size "
            "by hand, with trainer.max_steps=5."
        )


def trial(config: DictConfig, asked: Asked, images: int) -> bool:
    """Whether a few steps of so many images, on one device, go through."""
    config = copy.deepcopy(config)
    with open_dict(config):
        config.global_batch_size = images
        config.trainer.update(devices=1, num_nodes=1, strategy="auto", accumulate_grad_batches=1)
        config.trainer.update(max_steps=STEPS, limit_val_batches=0)
        for name in config.callback:
            if name not in HOLDING:
                config.callback[name] = None
    with tempfile.TemporaryDirectory() as folder:
        job = Job.of(config, Path(folder), asked)
        compilation.compiled(job.formulation.model, config.compile, job.trainer.strategy.root_device)
        try:
            job.trainer.fit(job.formulation, datamodule=job.dataset)
        except torch.OutOfMemoryError:
            return False
    return True


def largest(fits: Callable[[int], bool], start: int, limit: int) -> int:
    """The most that fits, at most `limit`, to an eighth; 0 if not even one does. Doubles or halves, then bisects."""
    low, high, n = 0, limit + 1, min(start, limit)
    while n:
        if fits(n):
            low, n = n, min(2 * n, limit)
            if n == low or n >= high:
                break
        else:
            high, n = n, n // 2
            if n <= low:
                break
    while low and high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def advice(most: int, global_batch_size: int, world_size: int, everything: bool) -> str:
    if not most:
        return (
            "Not one image fits. Lower precision (trainer.precision=bf16-mixed), recompute activations "
            "(model.checkpointing=true), or share the network out (trainer=fsdp)."
        )
    held = f"{most:,} images a device fit" + (" (the whole data set)." if everything else ".")
    each = global_batch_size // world_size
    splits = (a for a in range(1, each + 1) if global_batch_size % (world_size * a) == 0 and each // a <= most)
    accumulate = next(splits, None)
    devices = f"{world_size} device{'s' if world_size > 1 else ''}"
    if accumulate is None:
        return f"{held} global_batch_size={global_batch_size} cannot be split evenly over {devices} within that."
    return (
        f"{held} For global_batch_size={global_batch_size} on {devices}:  trainer.accumulate_grad_batches={accumulate}"
    )
