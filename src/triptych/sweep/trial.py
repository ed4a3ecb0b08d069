"""One training of a sweep: what it is called, where it lies and how it stands."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych import conf

WAITING, RUNNING = "waiting", "running"
FINISHED, FAILED, STOPPED, IMPOSSIBLE, PRUNED = "finished", "failed", "stopped", "impossible", "pruned"
LONGEST = 80  # characters of a folder's name


@dataclass(eq=False)
class Trial:
    """A training with its own explicit overrides and its own run folder.

    Attributes:
        name: of the folder, the same whenever the overrides are the same.
        gpus: how many it needs. processes: how many ranks it starts on this machine.
        steps: optimizer steps it was asked for; None for no limit.
        differs: the overrides in which it differs from the other trials.
        state: one of the names above; `reason` says more, in a sentence.
        attempts: how often it was started. seconds: that it ran, over all attempts.
    """

    name: str
    overrides: tuple[str, ...]
    folder: Path
    gpus: int = 0
    processes: int = 1
    steps: int | None = None
    state: str = WAITING
    reason: str = ""
    attempts: int = 0
    seconds: float = 0.0
    code: int | None = None
    result: str = ""
    differs: tuple[str, ...] = ()

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def told(self) -> str:
        """What there is to say of it: why it failed, or what it measured."""
        return self.reason or self.result if self.state == FAILED else self.result or self.reason

    @property
    def over(self) -> bool:
        return self.state not in (WAITING, RUNNING)


def plural(count: int) -> str:
    return f"{count} trial{'s' * (count != 1)}"


def digest(overrides: Sequence[str]) -> str:
    """Six letters for a set of overrides, in whatever order they were given."""
    return hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:6]


def readable(overrides: Sequence[str]) -> str:
    """Overrides as a part of a folder's name: `ddpm-seed0`; nothing in it is special to Hydra or to a shell."""
    words = []
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        of_a_group = "/" in key or ("." not in key and value in conf.options(key))
        words.append(value if of_a_group else key.rpartition(".")[2] + value)
    return re.sub(r"[^\w.+-]+", "_", "-".join(words)).strip("_")[:LONGEST]


def shown(overrides: Sequence[str], all_of_them: Sequence[Sequence[str]]) -> list[str]:
    """The overrides in which the trials of a sweep differ."""
    common = set(all_of_them[0]).intersection(*all_of_them[1:]) if len(all_of_them) > 1 else set()
    return [o for o in overrides if o not in common]


def folder_of(sweep: Path, overrides: Sequence[str], jobs: Sequence[Sequence[str]]) -> Path:
    """Where a trial lies, or has lain when its sweep was of other trials."""
    key = digest(overrides)
    before = sorted(sweep.glob(f"*{key}"))
    return before[0] if before else sweep / "-".join(filter(None, [readable(shown(overrides, jobs)), key]))
