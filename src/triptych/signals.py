"""Being asked to stop: which signals, which exit codes, and when they may interrupt. Imports nothing heavy."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: saved, and to be started again by the same command
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: REQUEUE, signal.SIGUSR2: REQUEUE}
AGAIN = 1.0  # seconds after which another Ctrl-C is a second wish, and no echo of the first by a launcher


class Interrupted(BaseException):
    """Asked to stop where nothing has to be finished first."""


class Asked:
    """Whether this process was asked to stop.

    Attributes:
        received: the first signal.
        deferring: a step is under way, after which training stops by itself; else a signal interrupts at once. A
            Ctrl-C that comes again interrupts in any case.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.deferring = False
        self._since = 0.0

    @property
    def exit_code(self) -> int:
        """0 if nobody asked for a stop."""
        return EXIT_CODES[self.received] if self.received else 0

    def leave(self, number: signal.Signals = signal.SIGTERM) -> None:
        """This process is about to exit: the launcher, which ends what is left of a job as soon as one process of it
        has exited, does not interrupt that."""
        self.received = self.received or number

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """The signals' handler."""
        first, now = self.received is None, time.monotonic()
        if first:
            self.received, self._since = signal.Signals(number), now
        elif number != signal.SIGINT or now - self._since < AGAIN:
            return
        if first and self.deferring:
            with contextlib.suppress(RuntimeError, OSError):  # in the middle of another print, or nobody listens
                print(f"\n{self.received.name}: finishing this step, then saving …", flush=True)  # pyright: ignore
            return
        raise Interrupted


@contextlib.contextmanager
def listening() -> Iterator[Asked]:
    """SIGINT, SIGTERM and SIGUSR1 ask for a stop inside the block; what they did before comes back after."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():  # only there can they be heard
        yield asked
        return
    before = {number: signal.signal(number, asked.receive) for number in EXIT_CODES}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def resubmit() -> None:
    """Inside a submitit job, which hears SIGUSR2 before its time is up: lets submitit put it back in the queue."""
    handler = signal.getsignal(signal.SIGUSR2)
    if "SUBMITIT_EXECUTOR" in os.environ and callable(handler):
        handler(signal.SIGUSR2, None)
