"""`compile=`: the whole network through torch.compile, refused in words where that cannot be."""

import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._triton import has_triton

GRAPHS = "reduce-overhead", "max-autotune"  # torch's modes that replay CUDA graphs
MODES = (*GRAPHS, "max-autotune-no-cudagraphs")


def check(compile: bool | str, precision: str, device: torch.device | str, accumulate: int = 1) -> None:
    """Raises a ValueError for what would fail in the middle of the first step.

    Args:
        compile: false, true, or a mode of torch.compile.
        precision: of the trainer.
        accumulate: micro-batches whose gradients are added up.
    """
    device = torch.device(device)
    if device.type == "mps":
        raise ValueError(
            "Apple's GPUs have no float64, in which noise schedules are computed: set trainer.accelerator=cpu."
        )
    if device.type == "cpu" and str(precision).startswith("16"):
        raise ValueError(
            f"trainer.precision={precision} needs a GPU: on a CPU choose trainer.precision=bf16-mixed, or 32-true."
        )
    if compile not in (False, True, *MODES):
        raise ValueError(f"compile must be false, true, or one of {', '.join(MODES)}, got {compile!r}.")
    if not compile:
        return
    compiler = os.environ.get("CXX") or next((c for c in ("g++", "clang++", "c++") if shutil.which(c)), None)
    if compiler is None or shutil.which(compiler.split()[0]) is None:
        raise ValueError(
            f"compile={str(compile).lower()} needs a C++ compiler, and there is "
            + (f"no {compiler}, which CXX names" if compiler else "none")
            + ": install g++, or set compile=false."
        )
    if device.type == "cuda" and compile in GRAPHS and accumulate > 1:
        raise ValueError(
            f"compile={compile} replays CUDA graphs, each of which overwrites the gradients that "
            f"trainer.accumulate_grad_batches={accumulate} would add up: choose compile=true."
        )
    if device.type == "cuda" and not has_triton():
        raise ValueError(f"compile={str(compile).lower()} on a GPU needs triton: pip install triton, or compile=false.")


def compiled(network: nn.Module, compile: bool | str, device: torch.device | str) -> None:
    """Compiles in place, so that the names of parameters stay (T-E9); on a GPU with channels_last.

    Compiled at the first call. The layout is that which convolutions in half precision want; norms keep it when they
    are compiled, and convert to and fro when they are not, so that without compiling it is left as it is.
    """
    if not compile:
        return
    if torch.device(device).type == "cuda":
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    network.compile(mode=compile if isinstance(compile, str) else None)
    replay = network._compiled_call_impl
    if compile in GRAPHS and replay is not None:
        network._compiled_call_impl = _kept(replay)


def _kept(replay: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A graph writes each output to the memory of the one before, which a multistep sampler may still need."""
    return lambda *inputs, **named: replay(*inputs, **named).clone()
