"""Being asked to stop: finish the step, save, and leave so that the run can go on."""

import signal
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

from triptych.callback.clock import Steps, agreed

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Stop(Callback):
    """Turns the first SIGINT or SIGTERM into a graceful stop after the current step; a second one acts at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.steps = Steps()
        self._previous: dict[signal.Signals, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps.start(trainer)
        for number in EXIT_CODES:
            self._previous[number] = signal.signal(number, self._receive)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not self.steps.advanced(trainer):
            return
        if agreed(trainer, self.received is not None):
            self.received = self.received or signal.SIGTERM
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    @property
    def exit_code(self) -> int:
        """0 if nobody asked for a stop."""
        return EXIT_CODES[self.received] if self.received else 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        print(f"\n{self.received.name}: finishing this step, then saving …", flush=True)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def stopping(trainer: Trainer) -> bool:
    """Whether the run is being stopped from outside, so that nothing long should begin."""
    return any(isinstance(c, Stop) and c.received is not None for c in trainer.callbacks)  # pyright: ignore
