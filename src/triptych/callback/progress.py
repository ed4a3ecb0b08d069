"""The progress bar of training: steps, loss, images/s, time left."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from triptych.callback.monitor import Monitor


def progress(console: Console | None = None) -> Progress:
    """The bar, all of whose numbers can be read on a terminal of 80 columns."""
    whole = Column(no_wrap=True)  # only the bar gives way
    return Progress(
        MofNCompleteColumn(table_column=whole),
        BarColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(table_column=whole),
        TextColumn("left"),
        TimeRemainingColumn(compact=True, table_column=whole),
        auto_refresh=False,
        console=console,
    )


class ProgressBar(Callback):
    """A rich bar on rank 0, refreshed every few steps; a plain line now and then where there is no terminal.

    Args:
        every_n_steps: optimizer steps between two refreshes.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps
        self._bar: Progress | None = None
        self._monitor: Monitor | None = None
        self._printed = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._monitor = next((c for c in trainer.callbacks if isinstance(c, Monitor)), None)  # pyright: ignore
        self._bar = progress()
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self._task = self._bar.add_task("training", total=total, completed=trainer.global_step, numbers="")
        if self._bar.console.is_terminal:
            self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._bar is None or trainer.global_step % self.every_n_steps:
            return
        numbers = self.numbers()
        self._bar.update(self._task, completed=trainer.global_step, numbers=numbers)
        if self._bar.console.is_terminal:
            self._bar.refresh()
        elif trainer.global_step >= self._printed + max(1, trainer.max_steps // 10):
            self._printed = trainer.global_step
            print(f"step {trainer.global_step}/{trainer.max_steps} {numbers}", flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def numbers(self) -> str:
        """The latest logged numbers, in a few words."""
        latest = self._monitor.latest if self._monitor else {}
        shown = {"loss": "train/loss", "val": "val/loss"}
        words = [f"{name} {latest[key]:.3g}" for name, key in shown.items() if key in latest]
        rate = latest.get("train/images_per_second")
        return "  ".join(words + ([] if rate is None else [f"{rate:.{0 if rate >= 10 else 1}f} images/s"]))

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
