"""Networks that do not fit on one device: parameters, gradients, optimizer and averages shared out over all (FSDP2).

A network is sharded block by block, so that only one block is whole at a time while it trains. To sample and to
measure, every process gathers the whole network first (`gathered`): its forward passes then need no other process, and
may differ in number. A checkpoint is a folder into which each process writes its share (`pieces`), or one file of whole
tensors; both load on any number of devices, and in run.load.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, OptimStateKeyType, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, empty

from triptych import pieces


class Sharded(ModelParallelStrategy):
    """Lightning's strategy with every device in one data-parallel group, and checkpoints of our own.

    Attributes:
        in_pieces: each process writes its share of a checkpoint; else the first one writes all of it.
    """

    def __init__(self) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=False)
        self.in_pieces = True

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        if not self.in_pieces:
            return super().lightning_module_state_dict()
        return get_model_state_dict(self._network)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """By the numbers of the parameters, as one process has it."""
        if not self.in_pieces:
            return super().optimizer_state(optimizer)
        state = get_optimizer_state_dict(self._network, getattr(optimizer, "_optimizer", optimizer))
        return FullyShardedDataParallel.rekey_optim_state_dict(state, OptimStateKeyType.PARAM_ID, self._network)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        if self.in_pieces or self.is_global_zero:
            self.checkpoint_io.save_checkpoint(
                checkpoint, self.broadcast(str(filepath)) if self.in_pieces else filepath
            )

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(str(checkpoint_path)))
        if not path.is_dir():
            return super().load_checkpoint(path, weights_only)
        mesh = self.device_mesh["data_parallel"]
        checkpoint = pieces.read(
            path, lambda size, dtype: empty(size, dtype=dtype, device_mesh=mesh, placements=[Shard(0)])
        )
        self._network.load_state_dict(checkpoint["state_dict"])
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            state = FullyShardedDataParallel.rekey_optim_state_dict(stored, OptimStateKeyType.PARAM_NAME, self._network)
            set_optimizer_state_dict(self._network, optimizer, state, options=StateDictOptions())
        return checkpoint

    def teardown(self) -> None:
        self.checkpoint_io.teardown()  # while the processes can still talk
        super().teardown()

    @property
    def _network(self) -> nn.Module:
        assert self.model is not None
        return self.model


def check(trainer: Trainer, module: LightningModule, compiled: bool, in_pieces: bool | None = None) -> None:
    """Refuses, before any process is started, what cannot be sharded. in_pieces: checkpoints, None for as fits."""
    if not isinstance(trainer.strategy, Sharded):
        if in_pieces:
            raise ValueError(
                "callback.checkpoint.sharded=true is for trainer=fsdp, where each process has a share of the network: "
                "leave it out."
            )
        return
    trainer.strategy.in_pieces = in_pieces is not False
    if trainer.world_size == 1:
        raise ValueError(
            "trainer=fsdp shares a network out over several devices, and there is one: set trainer.devices=2 or more, "
            "or use trainer=gpu or trainer=cpu."
        )
    if compiled:
        raise ValueError("compile=true and trainer=fsdp do not go together: leave one of them out.")
    outside = [name for name, p in module.named_parameters() if p.requires_grad and not name.startswith("model.")]
    if outside:
        raise ValueError(
            f"trainer=fsdp shards the network alone, but {outside[0]} is trained too: use trainer=ddp, or another "
            "schedule."
        )


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shards each block of the network's lists of blocks, then what is left; nothing if that has been done."""
    if isinstance(network, FSDPModule):
        return
    for block in [*_blocks(network), network]:
        if any(p.requires_grad for p in block.parameters()):
            fully_shard(block, mesh=mesh["data_parallel"], reshard_after_forward=True)


def _blocks(module: nn.Module, listed: bool = False) -> Iterator[nn.Module]:
    """The members of its lists, and of lists of lists; not those of a list inside a member."""
    for child in module.children():
        if listed and not isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _blocks(child, isinstance(child, nn.ModuleList))


@contextlib.contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Inside, the whole network is on every process and stays there; nothing happens to one that is not sharded."""
    gather(module)
    try:
        yield
    finally:
        scatter(module)


def gather(module: nn.Module) -> None:
    """On every process at the same time."""
    for part in _parts(module):
        part.set_reshard_after_forward(False, recurse=False)
        part.set_reshard_after_backward(False, recurse=False)
        part.unshard()


def scatter(module: nn.Module) -> None:
    """Undoes `gather`."""
    for part in _parts(module):
        part.set_reshard_after_forward(True, recurse=False)
        part.set_reshard_after_backward(True, recurse=False)
        part.reshard()


def _parts(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def local(tensor: Tensor) -> Tensor:
    """This process's share, in the same memory; all of a tensor that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of a sharded one on every process at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def for_checkpoint(tensor: Tensor, trainer: Trainer) -> Tensor:
    """What a checkpoint is to hold: this process's share, if each writes its own; else all of it, in host memory.
    Called on every process at the same time."""
    in_pieces = getattr(getattr(trainer, "strategy", None), "in_pieces", False)
    return tensor if in_pieces and isinstance(tensor, DTensor) else whole(tensor).cpu()


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A float32 copy of a tensor where `like` is: on its device, in its layout, and sharded as it is."""
    if isinstance(like, DTensor) and not isinstance(tensor, DTensor):
        device = like.to_local().device
        return distribute_tensor(tensor.to(device, torch.float32), like.device_mesh, like.placements)
    if isinstance(like, DTensor):
        return tensor.to(like.device, torch.float32).clone()
    return torch.empty_like(like, dtype=torch.float32, requires_grad=False).copy_(tensor)
