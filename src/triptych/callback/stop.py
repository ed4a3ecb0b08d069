"""Being asked to stop: finish the step, save, and leave so that the run can go on."""

import contextlib
from collections.abc import Iterator
from typing import Any

from lightning import Callback, LightningModule, Trainer

from triptych.callback.clock import Agreement, Steps
from triptych.signals import Asked, Interrupted


class Stop(Callback):
    """Ends training after the current step when this process, or another of the run, is asked to.

    It must come first in the list of callbacks. Lightning's own handlers, which communicate inside of a signal handler,
    and its question to rank 0 at every step are switched off.

    Attributes:
        asked: who hears the signals.
        stopping: all processes know that the run is to stop.
    """

    def __init__(self) -> None:
        self.asked = Asked()
        self.stopping = False
        self._between = False  # two optimizer steps
        self.steps, self.agreement = Steps(), Agreement()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer._signal_connector.register_signal_handlers = lambda: None
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps.start(trainer)
        self.agreement.start(trainer)
        self.asked.deferring = self._between = True

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self._between and stopping(trainer):  # everything that belongs to the last step is done
            trainer.should_stop = True
            raise StopIteration
        self._between = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._between = self.steps.advanced(trainer)  # and not in the middle of an accumulation
        if self._between and self.agreement(trainer, self.asked.received is not None):
            self.stopping = True

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if cut(trainer):
            raise StopIteration  # ends the validation, which is made up for when the run goes on

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stopping = self.agreement(trainer, self.stopping or self.asked.received is not None, now=True)
        self.asked.deferring = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.asked.deferring = False


def stop_of(trainer: Trainer) -> Stop | None:
    return next((c for c in trainer.callbacks if isinstance(c, Stop)), None)  # pyright: ignore


def stopping(trainer: Trainer) -> bool:
    """Whether the run is being stopped, so that nothing long should begin; the same answer on every process."""
    stop = stop_of(trainer)
    alone = trainer.world_size == 1
    return stop is not None and (stop.stopping or (alone and stop.asked.received is not None))


def cut(trainer: Trainer) -> bool:
    """Whether what belongs to this step is left for later: not at the last step, after which there is no training."""
    return stopping(trainer) and trainer.global_step != trainer.max_steps


@contextlib.contextmanager
def interruptible(trainer: Trainer) -> Iterator[None]:
    """Something long beside training, which a signal ends at once; of several processes, which would lose each other,
    each finishes its share."""
    stop = stop_of(trainer)
    if stop is None or not stop.asked.deferring or trainer.world_size > 1:
        yield
        return
    stop.asked.deferring = False
    try:
        yield
    except Interrupted:
        print(f"\n{stop.asked.received.name}: saving …", flush=True)  # pyright: ignore[reportOptionalMemberAccess]
        stop.stopping = True
    finally:
        stop.asked.deferring = True
