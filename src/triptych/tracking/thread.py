"""A thread of its own for loggers that answer when they like."""

import queue
import threading
import time
from collections.abc import Callable

from lightning.pytorch.loggers import Logger

PATIENCE = 60  # seconds that the end of a run waits for a logger to take what it has been given


class Aside:
    """Calls loggers in a thread of its own, in order: a slow one delays nobody, a failing one is left out from then on.

    On several processes rank 0 alone logs, while the others go on to the next step and wait for it there: whatever its
    logger does, it must come (T-F10).
    """

    def __init__(self) -> None:
        self._calls: queue.Queue[tuple[Logger, Callable[[], object]]] = queue.Queue()
        self._failed: list[Logger] = []
        self._thread: threading.Thread | None = None

    def call(self, logger: Logger, function: Callable[[], object]) -> None:
        """Returns at once; `function` is called later, or never if the logger has failed before."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="loggers", daemon=True)
            self._thread.start()
        self._calls.put((logger, function))

    def wait(self, seconds: float = PATIENCE) -> bool:
        """Whether everything has been called, after so many seconds at most."""
        end = time.monotonic() + seconds
        while self._calls.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.01)
        return not self._calls.unfinished_tasks

    def _work(self) -> None:
        while True:
            logger, function = self._calls.get()
            try:
                if not any(logger is failed for failed in self._failed):
                    function()
            except Exception as error:  # whatever it is, training matters more
                self._failed.append(logger)
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                print(f"{type(logger).__name__} failed ({reason}) and is left out; every number is in metrics.csv.")
            finally:
                self._calls.task_done()


aside = Aside()
