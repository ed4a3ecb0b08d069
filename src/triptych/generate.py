"""Many samples from a denoiser and a sampler: fixed blocks, shared out over ranks, one progress bar, counted calls.

Sample number i depends on (seed, i) alone. Samples are made in blocks of consecutive indices, and a rank takes whole
blocks, so that the network sees the same batches, and gives the same bits, at any number of devices.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed
from torch import Tensor, nn

from triptych.denoiser import Cond, Denoiser
from triptych.image import to_uint8
from triptych.noise import SampleNoise, labels
from triptych.sampler import Sampler
from triptych.schedule import Schedule


class Counted:
    """A denoiser that counts its network calls, and is otherwise the one it wraps (T-S2)."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self.calls = 0
        if hasattr(denoiser, "moments"):
            self.moments = self._moments

    @property
    def schedule(self) -> Schedule:
        return self._denoiser.schedule

    @property
    def levels(self) -> Tensor | None:
        return getattr(self._denoiser, "levels", None)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        self.calls += 1
        return self._denoiser(x_t, t, cond)

    def _moments(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return self._denoiser.moments(x_t, t, cond)  # pyright: ignore[reportAttributeAccessIssue]


class Watcher(Protocol):
    """Is told how far a job is."""

    def call(self, size: int, calls: int) -> None:
        """`calls` network calls have been made in the current block of `size` samples."""

    def block(self, size: int, calls: int) -> None:
        """A block of `size` samples is finished, on all devices together, with `calls` network calls each."""


@dataclass
class Job:
    """What is to be sampled. `nfe` and `images_per_second` (of one device) are known once samples have been made.

    Attributes:
        shape: of one sample, e.g. (C, H, W).
        count: number of samples; exactly as many are made (T-F12).
        seed: of the whole set.
        first: index of the first sample, so that disjoint sets have disjoint indices.
        block: samples a network call; the last block is smaller.
        labels: one label for all, a list of them that is repeated, "random", "balanced" (each equally often), or
            None for unconditional.
        num_classes: needed for random labels.
        init: images in [-1, 1] to begin with, [n, ...] (SDEdit): sample i begins with number i mod n, at the sampler's
            t_start; None begins with noise, at t = 1.
        device: where to compute.
    """

    denoiser: Denoiser
    sampler: Sampler
    shape: tuple[int, ...]
    count: int
    seed: int = 0
    first: int = 0
    block: int = 250
    labels: int | Sequence[int] | str | None = None
    num_classes: int = 0
    init: Tensor | None = None
    device: torch.device | str = "cpu"
    nfe: int = field(default=0, init=False)
    images_per_second: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        for name in ("count", "block"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                said = {"count": "num_samples", "block": "batch_size"}[name]
                raise ValueError(f"{said} must be a whole number of at least 1, got {value}.")
        self.sampler.check(self.denoiser)
        self.sampler.check_start(given=self.init is not None)
        self._check_labels()

    def _check_labels(self) -> None:
        if self.labels is None:
            if getattr(self.denoiser, "needs_labels", False):
                raise ValueError(
                    f"{type(self.denoiser).__name__} guides towards a label: give labels=0, a list of them, or random."
                    if self.num_classes
                    else f"{type(self.denoiser).__name__} guides towards a label, but this model was trained without "
                    "them: drop guidance=…, or train with dataset.conditional=true model.num_classes=<how many> "
                    "formulation.label_dropout=0.1."
                )
            return
        if not self.num_classes:
            raise ValueError("labels were asked for, but this model was trained without them: drop labels=….")
        if self.labels in ("random", "balanced"):
            return
        chosen = [self.labels] if isinstance(self.labels, int) else list(self.labels)
        if any(not isinstance(k, int) or not -1 <= k < self.num_classes for k in chosen):
            raise ValueError(f"labels must be 0 to {self.num_classes - 1}, balanced or random, got {self.labels}.")

    def cond(self, indices: range) -> Tensor | None:
        """The labels of these samples, a function of (seed, index). int64 [B], or None."""
        if self.labels is None:
            return None
        if self.labels == "balanced":
            return torch.tensor([i % self.num_classes for i in indices], device=self.device)
        if isinstance(self.labels, str):
            return labels(self.seed, indices, self.num_classes).to(self.device)
        chosen = [self.labels] if isinstance(self.labels, int) else list(self.labels)
        return torch.tensor([chosen[i % len(chosen)] for i in indices], device=self.device)

    def blocks(self, rank: int = 0, world: int = 1) -> list[range]:
        """The index ranges of this rank's blocks."""
        edges = range(self.first, self.first + self.count, self.block)
        return [range(i, min(i + self.block, self.first + self.count)) for i in edges][rank::world]

    def run(self, progress: Watcher | None = None, rank: int = 0, world: int = 1) -> Iterator[tuple[range, Tensor]]:
        """Makes this rank's share, block by block: (indices, x in [-1, 1] [B, ...])."""
        counted = Counted(self.denoiser)
        spent, made = 0.0, 0
        self.nfe = 0
        with evaluating(self.denoiser):
            for indices in self.blocks(rank, world):
                began = time.perf_counter()  # what the caller does with a block is not the sampler's time
                counted.calls = 0
                for x in self.trajectory(indices, counted):  # noqa: B007 (the last one is the sample)
                    if progress is not None:
                        progress.call(len(indices), counted.calls)
                self.nfe = max(self.nfe, counted.calls)
                made += len(indices)
                if torch.device(self.device).type == "cuda":
                    torch.cuda.synchronize(self.device)
                spent += time.perf_counter() - began
                self.images_per_second = made / spent
                if progress is not None:
                    progress.block(len(indices) * world, counted.calls)
                yield indices, x  # pyright: ignore[reportPossiblyUnboundVariable]

    @torch.no_grad()
    def trajectory(self, indices: range, denoiser: Denoiser | None = None) -> Iterator[Tensor]:
        """The states of one block: what it starts from, then every step, the last one the samples."""
        noise = SampleNoise(self.seed, indices, self.device)
        if self.init is None:
            x = self.sampler.start(self.denoiser.schedule, (len(indices), *self.shape), noise)
        else:
            x_0 = self.init[torch.tensor(indices) % len(self.init)].to(self.device)
            x = self.sampler.start_from(self.denoiser, x_0, noise)
        yield x
        yield from self.sampler.trajectory(denoiser or self.denoiser, x, self.cond(indices), noise)

    def collect(self, progress: Watcher | None = None, rank: int = 0, world: int = 1) -> Tensor:
        """All samples on every rank, on the CPU in the order of their index: images as uint8, points as float32."""
        mine = [(indices, storable(x).cpu()) for indices, x in self.run(progress, rank, world)]
        if world > 1:
            shares: list[list[tuple[range, Tensor]]] = [[] for _ in range(world)]
            torch.distributed.all_gather_object(shares, mine)
            mine = sorted((pair for share in shares for pair in share), key=lambda pair: pair[0].start)
            self.nfe = _largest(self.nfe)
        return torch.cat([x for _, x in mine])


def _largest(value: int) -> int:
    values: list[int] = [0] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return max(values)


def storable(x: Tensor) -> Tensor:
    """What is kept of samples: images [B, C, H, W] as uint8, points [B, 2] as float32."""
    return to_uint8(x) if x.ndim == 4 else x.float()


class evaluating:
    """A context in which the denoiser, if it is a module, is in eval mode; its mode is restored after (T-S19)."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.module = denoiser if isinstance(denoiser, nn.Module) else None

    def __enter__(self) -> None:
        if self.module is not None:
            self.was_training = self.module.training
            self.module.eval()

    def __exit__(self, *_: object) -> None:
        if self.module is not None:
            self.module.train(self.was_training)


class Progress:
    """A rich progress bar for sampling: images done, images/s, time left; moves within a block, too.

    The number of calls a block takes is known after the first one; until then the bar goes by the sampler's steps.
    """

    def __init__(self, count: int, steps: int | None, title: str = "sampling", shown: bool = True) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            disable=not shown,
        )
        self._task = self._bar.add_task(title, total=count, rate="")
        self._count, self._calls_a_block = count, steps or 0
        self._done, self._began = 0.0, time.perf_counter()

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def call(self, size: int, calls: int) -> None:
        share = min(1.0, calls / self._calls_a_block) if self._calls_a_block else 0.0
        self._show(self._done + share * size)

    def block(self, size: int, calls: int) -> None:
        self._done += size
        self._calls_a_block = calls
        self._show(self._done)

    def _show(self, done: float) -> None:
        done = min(done, self._count)  # several processes may have fewer blocks than they are
        rate = done / max(1e-9, time.perf_counter() - self._began)
        self._bar.update(self._task, completed=int(done), rate=f"{rate:.1f} images/s" if done else "")


def computing(
    precision: str, network: nn.Module, device: torch.device | str, block: int | None = None
) -> dict[str, Any]:
    """How sums are rounded, for the record of what was computed; in half precision it moves a number."""
    device = torch.device(device)
    return {
        "precision": precision,
        "compile": network._compiled_call_impl is not None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "batch_size": block,
    }


def devices(trainer: Any) -> Any:
    """The Fabric of a trainer config: on which devices to compute, in which precision, in how many processes."""
    from lightning.fabric import Fabric

    chosen = {key: trainer[key] for key in ("accelerator", "devices", "num_nodes", "precision")}
    strategy = trainer.get("strategy", "auto")
    chosen["strategy"] = strategy if isinstance(strategy, str) and strategy.startswith("ddp") else "auto"
    return Fabric(**chosen)
