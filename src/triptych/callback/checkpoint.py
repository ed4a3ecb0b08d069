"""Checkpoints: written whole or not at all, beside training, often enough, and always before anything that may fail."""

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.tensor import DTensor

from triptych import disk, pieces
from triptych.callback.clock import Agreement, Every, Steps
from triptych.callback.guard import guard_of

LAST, BEST = "last.ckpt", "best.ckpt"
WHAT = "A checkpoint cannot be written"


class AtomicIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file, syncs it to the disk and renames it: a reader never sees half of one.

    If `asynchronous`, the checkpoint is copied to host memory, which the next one reuses, and a thread writes it while
    training goes on. Never are two written at once. A disk that says no is said once, and keeps the old checkpoint.

    A checkpoint with sharded tensors becomes a folder: it is given on every process, and each writes its share.
    """

    def __init__(self, asynchronous: bool = True) -> None:
        self.asynchronous = asynchronous
        self.written: int | None = None  # the optimizer step of the last one that reached the disk
        self.failed = False  # the last one did not
        self.also: list[str] = []  # other names under which the next one is kept as well
        self._thread: threading.Thread | None = None
        self._buffers: dict[tuple[Any, ...], Tensor] = {}
        self._stager = BlockingAsyncStager(cache_staged_state_dict=torch.cuda.is_available())
        self._group: Any = None  # of all processes, for what they tell each other beside training

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        self.join()
        names, self.also = self.also, []
        sharded, checkpoint = pieces.split(checkpoint)
        if sharded and self._group is None:
            self._group = torch.distributed.new_group(backend="gloo")
        if not self.asynchronous:
            self._write(checkpoint, sharded, Path(path), names)
            return
        copy, share = self._copied(checkpoint), self._stager.stage(sharded)  # pyright: ignore[reportArgumentType]
        if torch.cuda.is_initialized():  # a run on the CPU does not begin with a GPU here
            torch.cuda.synchronize()  # this process's: the copies are made after whatever training has asked for
        self._thread = threading.Thread(target=self._write, args=(copy, share, Path(path), names), name="checkpoint")
        self._thread.start()

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if Path(path).is_dir():
            return pieces.read(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)

    def join(self) -> None:
        """Waits until the disk has everything."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def teardown(self) -> None:
        self.join()

    def _write(self, checkpoint: dict[str, Any], share: dict[str, Any], path: Path, names: list[str]) -> None:
        self.failed, first = True, rank_zero_only.rank == 0
        with disk.forgiving(WHAT) if first else contextlib.suppress(OSError):
            if share:
                pieces.write(share, checkpoint, path, self._group)
            else:
                write(checkpoint, path)
            for name in names if first else ():
                keep(path, name)
            self.failed, self.written = False, checkpoint.get("global_step")

    def _copied(self, node: Any, key: tuple[Any, ...] = ()) -> Any:
        """The same with its tensors in host memory of our own."""
        if isinstance(node, dict):
            return {name: self._copied(value, (*key, name)) for name, value in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)(self._copied(value, (*key, i)) for i, value in enumerate(node))
        if not isinstance(node, Tensor):
            return node
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != node.shape or buffer.dtype != node.dtype:
            buffer = torch.empty(node.shape, dtype=node.dtype, pin_memory=node.is_cuda)
            self._buffers[key] = buffer
        return buffer.copy_(node.detach(), non_blocking=True)


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """One file; an OSError where the disk says no."""
    try:
        with disk.replacing(path, "wb", durable=True) as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:  # what torch makes of a full disk
        cause = error.__context__ if isinstance(error.__context__, OSError) else None
        raise cause or OSError(str(error).splitlines()[0]) from error


def keep(path: Path, name: str) -> None:
    """Keeps a checkpoint under another name as well; on most disks without a copy."""
    temporary = disk.temporary_of(path.with_name(name))
    disk.remove(temporary)
    if path.is_dir():
        shutil.copytree(path, temporary, copy_function=_linked)
    else:
        try:
            os.link(path, temporary)
        except OSError:  # no links there
            with disk.replacing(path.with_name(name), "wb", durable=True) as copy, path.open("rb") as file:
                shutil.copyfileobj(file, copy)
            return
    disk.put(temporary, path.with_name(name))
    disk.remove(temporary)  # which a rename onto the same file leaves
    disk.sync(path.parent)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # no links there
        shutil.copy2(source, target)


class Checkpoint(Callback):
    """Keeps `checkpoints/last.ckpt` fresh, the best one by a metric, and milestones.

    Args:
        every_images: images between two saves; null for none but the last.
        every_minutes: the same in minutes of training.
        milestone_images: keep a copy that is never overwritten, every so many images.
        best: keep best.ckpt, the one with the best value of this metric, e.g. fd_digits_500; null for none. Its value
            is in best.json.
        mode: "min" or "max": which value is best.
        asynchronous: write while training goes on.
        sharded: of a network that is shared out over processes each writes its share, into a folder that all of them
            see; false: it is gathered and written into one file; null: true for trainer=fsdp.
    """

    def __init__(
        self,
        every_images: int | None = None,
        every_minutes: float | None = 10.0,
        milestone_images: int | None = None,
        best: str | None = None,
        mode: str = "min",
        asynchronous: bool = True,
        sharded: bool | None = None,
    ) -> None:
        if sharded not in (True, False, None):
            raise ValueError(f"callback.checkpoint.sharded must be true, false or null, got {sharded}.")
        if best is not None and best.startswith(("train/", "val/")):
            raise ValueError(f"callback.checkpoint.best={best}: a loss does not rank samples, name an evaluation's.")
        if mode not in ("min", "max"):
            raise ValueError(f"callback.checkpoint.mode must be min or max, got {mode}.")
        if every_minutes is not None and not (isinstance(every_minutes, (int, float)) and every_minutes > 0):
            raise ValueError(f"callback.checkpoint.every_minutes must be above 0, or null, got {every_minutes}.")
        self.every, self.milestones, self.every_minutes = Every(every_images), Every(milestone_images), every_minutes
        self.best, self.mode, self.asynchronous, self.sharded = best, mode, asynchronous, sharded
        self.steps, self.agreement = Steps(), Agreement()
        self._seen: set[str] = set()  # names of metrics
        self._saved_at, self._saved_step = time.monotonic(), -1

    def check(self, counts: set[str]) -> None:
        """Refuses a metric that will not be measured; counts: of samples, as they end the metrics' names."""
        if self.best is not None and self.best.rpartition("_")[2] not in counts:
            raise ValueError(
                f"callback.checkpoint.best={self.best} is not measured in this run: metrics there end in "
                f"{' or '.join('_' + c for c in sorted(counts)) or 'nothing, since none is'}."
            )

    def io(self) -> CheckpointIO:
        """The plugin that the Trainer needs for atomic saves."""
        return AtomicIO(self.asynchronous)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Launchers other than Lightning's own start each process with a folder of its own: rank 0's is the one."""
        folder = trainer.strategy.broadcast(str(trainer.default_root_dir))
        trainer._default_root_dir = folder  # pyright: ignore[reportAttributeAccessIssue]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps.start(trainer)
        self.agreement.start(trainer)
        self.every.start(trainer)
        self.milestones.start(trainer)
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not self.steps.advanced(trainer):
            return
        late = self.every_minutes is not None and self.agreement(
            trainer, time.monotonic() - self._saved_at > 60 * self.every_minutes
        )
        milestone = self.milestones.due(trainer)
        if not milestone and not late and not self.every.due(trainer):
            return
        guard = guard_of(trainer)
        if guard is not None and guard.in_bad_row(trainer, pl_module):
            return  # what the guard may have to go back to is older; asked again after the next step
        if milestone:
            self.save(trainer, f"step={trainer.global_step}.ckpt")
            self.milestones.done(trainer)
            self.every.done(trainer)
        elif (self.every.due(trainer) or late) and trainer.global_step != trainer.max_steps:
            self.save(trainer)
            self.every.done(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._saved_step != trainer.global_step:
            self.save(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.best is not None and self.best not in self._seen and trainer.is_global_zero and self._seen:
            known = ", ".join(sorted(self._seen))
            print(f"callback.checkpoint.best={self.best} was never measured; measured were {known}.")

    def consider(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """New values: keeps the checkpoint of this step if it is the best so far. Called on every rank."""
        self._seen |= set(metrics)
        if self.best is None or self.best not in metrics:
            return
        better = trainer.strategy.broadcast(self._better(Path(trainer.default_root_dir), metrics[self.best]))
        if not better:
            return
        self.save(trainer, BEST)
        if trainer.is_global_zero:
            join(trainer)
            about = {"metric": self.best, "value": metrics[self.best], "step": trainer.global_step}
            with disk.forgiving("best.json cannot be written"):
                with disk.replacing(Path(trainer.default_root_dir) / "checkpoints" / "best.json") as file:
                    json.dump(about, file)

    def _better(self, folder: Path, value: float) -> bool:
        try:
            before = json.loads((folder / "checkpoints" / "best.json").read_text())
        except (OSError, ValueError):
            before = {}
        if before.get("metric") != self.best:
            return value == value  # not NaN
        return value < before["value"] if self.mode == "min" else value > before["value"]

    def save(self, trainer: Trainer, name: str = LAST) -> None:
        """Writes last.ckpt, and keeps it as `name` as well; never weights that are not finite. Called on every rank."""
        if not finite(trainer.lightning_module):
            if trainer.is_global_zero:
                print(f"The weights of step {trainer.global_step} are not finite, and are not saved.", flush=True)
            return
        for logger in trainer.loggers:
            logger.save()  # the numbers up to here: what comes after is measured again if the run is killed
        path = Path(trainer.default_root_dir) / "checkpoints" / LAST
        io = trainer.strategy.checkpoint_io
        if name != LAST and isinstance(io, AtomicIO):
            io.also = [name]
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero and name != LAST and (not isinstance(io, AtomicIO) or io.also):
            keep(path, name)  # written by a strategy of its own way
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["topology"] = topology(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning counts micro-batches: one that was fetched and not trained on does not count, and with another
        accumulation, all count differently."""
        before, now = checkpoint.get("topology"), topology(trainer)
        before = before or now
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for count in (progress["total"], progress["current"]):
            late = count["processed"] - count["completed"]  # 1 if it was saved before the batch's end
            batches = count["processed"] * now["accumulate"] // before["accumulate"]
            count.update(ready=batches, started=batches, processed=batches, completed=batches - late)
        if before != now and trainer.is_global_zero:
            print(warning(before, now), flush=True)


@torch.no_grad()
def finite(module: LightningModule) -> bool:
    """Whether all weights are; waits for the device. The same answer on every rank."""
    norm = torch.nn.utils.get_total_norm(list(module.parameters()))
    return bool((norm.full_tensor() if isinstance(norm, DTensor) else norm).isfinite())


def topology(trainer: Trainer) -> dict[str, Any]:
    """Upon what the bits of a run depend, beside its config."""
    return {
        "processes": trainer.world_size,
        "accumulate": trainer.accumulate_grad_batches,
        "global_batch_size": trainer.datamodule.global_batch_size,  # pyright: ignore[reportAttributeAccessIssue]
        "precision": str(trainer.precision),
        "device": device_name(trainer.strategy.root_device),
        "torch": str(torch.__version__),
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def warning(before: dict[str, Any], now: dict[str, Any]) -> str:
    """One sentence: what is different from the run that is continued, and what cannot be exact."""
    changed = [
        f"{name.replace('_', ' ')} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]
    ]
    drawn = {"processes", "accumulate", "global_batch_size"} & {n for n in now if before.get(n) != now[n]}
    lost = "noise and times, which are drawn per process and micro-batch, differ" if drawn else "rounding differs"
    return (
        f"This run goes on differently ({', '.join(changed)}): it continues at the same step with the same order of "
        f"images, but not bit for bit, since {lost} from what an uninterrupted run would have had."
    )


def checkpoint_of(trainer: Trainer) -> Checkpoint | None:
    return next((c for c in trainer.callbacks if isinstance(c, Checkpoint)), None)  # pyright: ignore


def join(trainer: Trainer) -> None:
    """Waits for the checkpoint that is being written."""
    plugin = trainer.strategy.checkpoint_io
    if isinstance(plugin, AtomicIO):
        plugin.join()
