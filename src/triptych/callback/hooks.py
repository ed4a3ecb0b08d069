"""What a step costs beside its work: Lightning times each call of each hook, empty or not."""

import contextlib
from collections.abc import Iterable
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler

EACH_STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


class Unprofiled(PassThroughProfiler):
    """Lightning's own stand-in makes a context anew, by a generator, for each of thirty calls a step; this has one."""

    _nothing = contextlib.nullcontext()

    def profile(self, action_name: str) -> Any:
        return self._nothing


def without_empty(callbacks: Iterable[Callback]) -> list[Callback]:
    """The same callbacks, whose empty hooks of a step Lightning passes over: twelve callbacks have sixty of them."""
    kept = list(callbacks)
    for callback in kept:
        _pass_over(callback, Callback)
    return kept


def lighten(trainer: Trainer, module: LightningModule) -> None:
    """Takes from each step what serves nobody: the module's empty hooks, and timing where no profiler was chosen."""
    _pass_over(module, LightningModule)
    if type(trainer.profiler) is PassThroughProfiler:  # pyright: ignore[reportAttributeAccessIssue]
        trainer.profiler = Unprofiled()  # pyright: ignore[reportAttributeAccessIssue]


def _pass_over(owner: Callback | LightningModule, base: type) -> None:
    for hook in EACH_STEP:
        empty = getattr(type(owner), hook) is getattr(base, hook)
        if empty and hook not in vars(owner):  # where Lightning's LambdaCallback has its own
            setattr(owner, hook, None)  # not callable
