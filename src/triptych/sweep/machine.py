"""What this machine has for trials: GPUs to be handed out, and cores."""

import os
from typing import Any

# Of a process group or an allocation that the sweep itself may be part of; a trial's ranks are its own (T-D12).
INHERITED = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
INHERITED += ("MASTER_PORT", "PL_GLOBAL_SEED", "HYDRA_FULL_ERROR", "WANDB_RUN_ID")
INHERITED_PREFIXES = ("SLURM_", "TORCHELASTIC_", "PMI_", "PMIX_", "OMPI_")


def gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def needs(trainer: Any, available: int, gpus_per_trial: int | None) -> tuple[int, int]:
    """(GPUs, processes) of a trial.

    Args:
        trainer: its `trainer` node. available: GPUs of this machine.

    Raises:
        ValueError: what is asked for cannot be had on this machine.
    """
    accelerator, devices = str(trainer.get("accelerator", "auto")), trainer.get("devices", 1)
    if (trainer.get("num_nodes") or 1) > 1:
        raise ValueError("several nodes: use train.py -m with hydra/launcher=slurm")
    on_gpus = accelerator not in ("cpu", "mps", "tpu") and (available > 0 or accelerator in ("gpu", "cuda"))
    if isinstance(devices, str) and devices.lstrip("-").isdigit():
        devices = int(devices)
    if not isinstance(devices, int) and devices != "auto":
        raise ValueError(f"trainer.devices={devices} picks devices by hand: give a number, the launcher picks them")
    if not on_gpus:
        return 0, devices if isinstance(devices, int) and devices > 0 else 1
    everything = devices in ("auto", -1)
    wanted = gpus_per_trial or (max(1, available) if everything else int(devices))
    if wanted > available:
        raise ValueError(f"it needs {wanted} GPUs, and this machine has {available}")
    if not everything and int(devices) > wanted:
        raise ValueError(f"trainer.devices={devices} is more than hydra.launcher.gpus_per_trial={wanted}")
    return wanted, wanted if everything else int(devices)


def environment(names: list[str], threads: int) -> dict[str, str]:
    """The environment of a trial: its own GPUs, its share of the cores, and no rank of anybody else."""
    inherited = {k: v for k, v in os.environ.items() if k not in INHERITED and not k.startswith(INHERITED_PREFIXES)}
    inherited.setdefault("OMP_NUM_THREADS", str(threads))
    return {**inherited, "CUDA_VISIBLE_DEVICES": ",".join(names), "PYTHONUNBUFFERED": "1"}
