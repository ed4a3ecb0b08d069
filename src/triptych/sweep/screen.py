"""What a sweep shows while it runs: a live table on a terminal, plain lines elsewhere."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from triptych.sweep import progress
from triptych.sweep.trial import FAILED, FINISHED, IMPOSSIBLE, PRUNED, RUNNING, STOPPED, WAITING, Trial

COLOURS = {RUNNING: "cyan", FINISHED: "green", FAILED: "red", STOPPED: "yellow", PRUNED: "yellow", WAITING: "dim"}
EVERY = 1.0  # seconds between two looks at the run folders
PLAIN_EVERY = 60.0  # seconds between two lines about running trials where there is no terminal
OTHER_LINES = 12  # of the terminal's height


class Screen:
    """Context manager. `update` is called often, and looks at the run folders once a second.

    Args:
        trials: all of them, as they change; more may be appended.
        seconds: how long a trial has been running this time.
        n_jobs: trials at a time, for the estimate of the time left.
        total: how many there will be; None for as many as there are now.
    """

    def __init__(
        self, trials: Sequence[Trial], seconds: Callable[[Trial], float], n_jobs: int, total: int | None = None
    ) -> None:
        self.trials, self.seconds, self.n_jobs, self.total = trials, seconds, n_jobs, total
        self.console = Console(highlight=False)
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        self._numbers: dict[Trial, progress.Progress] = {}
        self._looked, self._printed = 0.0, time.monotonic()

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def say(self, *lines: str) -> None:
        """Lines that stay, above the table."""
        for line in lines:
            self.console.print(Text(line), soft_wrap=True)
        sys.stdout.flush()

    def event(self, trial: Trial) -> None:
        """One line about a trial that has just started or ended."""
        done = sum(t.over for t in self.trials)
        about = f"  {trial.told}" if trial.told else ""
        took = f" after {clock(trial.seconds)}" if trial.over else ""
        count = self.total or len(self.trials)
        if trial.over or not self.console.is_terminal:
            self.say(f"{time.strftime('%H:%M:%S')}  {trial.state:<9} {trial.name}{took}{about}  [{done}/{count}]")

    def update(self) -> None:
        now = time.monotonic()
        if now - self._looked < EVERY:
            return
        self._looked = now
        running = [t for t in self.trials if t.state == RUNNING]
        for trial in running:
            self._numbers[trial] = progress.read(trial.folder)
        if self.console.is_terminal:
            self._live.update(Group(self._table(), self._summary()), refresh=True)
        elif now - self._printed > PLAIN_EVERY:
            self._printed = now
            for trial in running:
                self.say(f"{time.strftime('%H:%M:%S')}  running   {trial.name}  {' '.join(self._cells(trial))}")
            self.say(self._summary().plain)

    def numbers(self, trial: Trial) -> progress.Progress:
        """The latest numbers of a trial, read again."""
        self._numbers[trial] = progress.read(trial.folder)
        return self._numbers[trial]

    def seconds_left(self) -> float | None:
        """Of the sweep: from what its finished trials took, or from how fast the running ones train."""
        took = [t.seconds for t in self.trials if t.state == FINISHED and t.seconds]
        rest = [self._left(t) for t in self.trials if t.state == RUNNING]
        open_trials = (self.total or len(self.trials)) - sum(t.over for t in self.trials) - len(rest)
        if took:
            mean = sum(took) / len(took)
            rest = [max(0.0, mean - self.seconds(t)) for t in self.trials if t.state == RUNNING]
        elif rest and all(r is not None for r in rest):
            running = [t for t in self.trials if t.state == RUNNING]
            mean = sum(self.seconds(t) + (self._left(t) or 0) for t in running) / len(running)
        else:
            return None
        return (open_trials * mean + sum(r or 0 for r in rest)) / max(1, min(self.n_jobs, open_trials + len(rest)))

    def _left(self, trial: Trial) -> float | None:
        return self._numbers.get(trial, progress.Progress()).seconds_left(trial.steps)

    def _cells(self, trial: Trial) -> list[str]:
        """step, images/s, latest metric, time left."""
        p = self._numbers.get(trial, progress.Progress())
        step = f"{p.step}/{trial.steps}" if trial.steps else str(p.step)
        rate = f"{p.rate:.0f}/s" if p.rate else ""
        metric = f"{p.metric[0]} {p.metric[1]:.4g}" if p.metric else ""
        if trial.state != RUNNING:
            return ["", "", trial.told, clock(trial.seconds) if trial.seconds else ""]
        left = self._left(trial)
        return [step if p.step else "starting", rate, metric, f"{clock(left)} left" if left is not None else ""]

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, expand=True)
        shares = {"trial": 4, "metric": 5}  # of the width that the short columns leave
        for name in ("trial", "state", "step", "images/s", "metric", "time"):
            table.add_column(name, overflow="ellipsis", no_wrap=True, ratio=shares.get(name))
        room = max(self.console.height - OTHER_LINES, 4)
        rank = {RUNNING: 0, FAILED: 1, WAITING: 3}
        by_interest = sorted(self.trials, key=lambda t: rank.get(t.state, 2))
        chosen = set(by_interest[:room])
        for trial in [t for t in self.trials if t in chosen]:
            colour = COLOURS.get(trial.state, "")
            table.add_row(trial.name, Text(trial.state, colour), *self._cells(trial))
        if len(self.trials) > room:
            table.add_row(f"… and {len(self.trials) - room} more")
        return table

    def _summary(self) -> Text:
        count = Counter(t.state for t in self.trials)
        states = (RUNNING, WAITING, FINISHED, PRUNED, STOPPED, FAILED, IMPOSSIBLE)
        text = ", ".join(f"{count[s]} {s}" for s in states if count[s])
        left = self.seconds_left()
        return Text(f"{text}; about {clock(left)} left" if left else text)


def clock(seconds: float) -> str:
    """34 s, 5 min, 2 h 10 min, 3 days 4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"
