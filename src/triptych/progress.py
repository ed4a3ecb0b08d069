"""One look for the progress bars of reading and counting: on a terminal, nothing elsewhere."""

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bar(title: str, total: int, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar with the time left, which goes away at the end; gives a function that advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    hidden = not (shown and sys.stderr.isatty())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as progress:
        task = progress.add_task(title, total=total)
        yield lambda amount: progress.advance(task, amount)


@contextlib.contextmanager
def busy(title: str, shown: bool = True) -> Iterator[None]:
    """For what takes long and cannot say how far it is: its name, and that something moves."""
    from rich.console import Console

    if not (shown and sys.stderr.isatty()):
        yield
        return
    with Console(stderr=True).status(f"{title} …"):
        yield
