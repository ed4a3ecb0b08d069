"""A grid of trainings, from the overrides of each to the last word about them."""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout
from omegaconf import DictConfig

from triptych import status
from triptych.recall import quoted
from triptych.refusal import refuse
from triptych.signals import AGAIN, EXIT_CODES
from triptych.sweep import estimate as estimates
from triptych.sweep import ledger, machine
from triptych.sweep.plan import IRRELEVANT, Compose, plan
from triptych.sweep.pool import Pool, last_lines
from triptych.sweep.screen import Screen, clock
from triptych.sweep.trial import FAILED, FINISHED, IMPOSSIBLE, STOPPED, WAITING, Trial, plural

POLL = 0.2  # seconds
SILENT = 120.0  # seconds after which a run on another machine is taken for lost


def run_grid(
    config: DictConfig,
    jobs: Sequence[Sequence[str]],
    compose: Compose,
    *,
    n_jobs: int | None = None,
    gpus_per_trial: int | None = None,
    estimate: bool = True,
) -> None:
    """Runs every trial of a Hydra multirun; goes on with one that was cut off, and skips one that is finished.

    Args:
        config: of the multirun. jobs: the overrides of each trial. compose: one trial's overrides -> its config.

    Raises:
        SystemExit: some trial failed (1), none can run (2), or the sweep was interrupted (130, 143).
    """
    sweep = Path(config.hydra.sweep.dir)
    for name, value in (("n_jobs", n_jobs), ("gpus_per_trial", gpus_per_trial)):
        if value is not None and (not isinstance(value, int) or value < 1):
            _leave_nothing(sweep)
            refuse(f"hydra.launcher.{name} must be a whole number of at least 1, or null, got {value}.")
    with _locked(sweep):
        gpus = machine.gpus()
        planned = plan(sweep, jobs, compose, len(gpus), gpus_per_trial)
        trials = [p.trial for p in planned]
        ledger.recall(sweep / "ledger.csv", trials)
        for trial in trials:
            _look_back(trial)
        if all(t.state == IMPOSSIBLE for t in trials):
            _list_impossible(trials)
            _leave_nothing(sweep)
            refuse("None of these trials can run.")
        pool = Pool(_command(config), n_jobs or at_a_time(trials, len(gpus)), gpus)
        _announce(sweep, trials, pool.n_jobs)
        waiting = [(p.trial, p.config) for p in planned if p.trial.state == WAITING]
        if estimate and waiting:
            print(estimates.sentence(waiting, pool.n_jobs, gpus, pool.threads), flush=True)
        ledger.write(sweep / "ledger.csv", trials)
        with Screen(trials, pool.seconds, pool.n_jobs) as screen:
            stopped_by = _run(sweep, trials, pool, screen)
    _report(sweep, trials, stopped_by)


def _leave_nothing(sweep: Path) -> None:
    """Takes back what Hydra and the lock have written in a folder where no trial has ever been."""
    if not (sweep / "ledger.csv").exists():
        for name in ("multirun.yaml", ".lock"):
            (sweep / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            sweep.rmdir()


def at_a_time(trials: Sequence[Trial], gpus: int) -> int:
    """As many trials as there are GPUs for; one where none is needed."""
    most = max(t.gpus for t in trials)
    return max(1, gpus // most) if most else 1


def _look_back(trial: Trial) -> None:
    """What an earlier sweep left: the run's own status is surer than a ledger whose process was killed."""
    if trial.state == IMPOSSIBLE:
        return
    trial.state = FINISHED if _finished(trial) else WAITING


def _finished(trial: Trial) -> bool:
    before = status.read(trial.folder)
    return before is not None and before.state == "finished"


def busy(trial: Trial) -> str:
    """Who else runs this trial, e.g. still saves it after its sweep was killed; empty if nobody does."""
    before = status.read(trial.folder)
    if before is None or before.state != "running":
        return ""
    if before.host != socket.gethostname() and time.time() - (trial.folder / status.NAME).stat().st_mtime > SILENT:
        return ""
    return f"process {before.pid} on {before.host}"


def _command(config: DictConfig) -> list[str]:
    """The script of this sweep, and what of its command line is for every trial."""
    command = [sys.executable, str(Path(sys.argv[0]).resolve())]
    for source in config.hydra.runtime.config_sources:
        if source.provider == "command-line":
            command += ["--config-dir", source.path]
    # what follows is the sweep's own business
    ours = ("hydra.mode", "hydra.sweep", "hydra.launcher", "hydra/launcher", "hydra.run.dir")
    return command + [o for o in config.hydra.overrides.hydra if not o.startswith(ours)]


def how(trial: Trial) -> list[str]:
    """Where a trial runs; it goes on from its checkpoint, if it has one."""
    return [f"hydra.run.dir={quoted(str(trial.folder))}", "resume=auto"]


def _run(sweep: Path, trials: list[Trial], pool: Pool, screen: Screen) -> signal.Signals | None:
    """The loop. Returns the signal by which it was interrupted, if it was."""
    with stop_signals() as received:
        asked = 0
        while pool.running or (not received and any(t.state == WAITING for t in trials)):
            for trial in trials if not received else ():
                if trial.state == WAITING and pool.fits(trial) and not _wait_for(trial, screen):
                    pool.start(trial, how(trial))
                    screen.event(trial)
                    ledger.write(sweep / "ledger.csv", trials)
            if len(received) > asked:
                asked = len(received)
                _ask_all(pool, screen, asked)
            for trial in pool.ended():
                if trial.state == STOPPED and _finished(trial):
                    trial.state = FINISHED  # it was asked to stop when it had only its W&B files left to close
                metric = screen.numbers(trial).metric
                trial.result = f"{metric[0]} {metric[1]:.4g}" if metric else ""
                screen.event(trial)
                if trial.state == FAILED:
                    screen.say(
                        *(f"    {line}" for line in last_lines(trial.log)), f"    all of it: {_short(trial.log)}"
                    )
                ledger.write(sweep / "ledger.csv", trials)
            screen.update()
            time.sleep(POLL)
        return received[0] if received else None


def _wait_for(trial: Trial, screen: Screen) -> bool:
    """Whether somebody else still runs this trial; said once."""
    other = busy(trial)
    if other and other != trial.reason:
        screen.say(f"{trial.name} waits for {other}, which is still running it.")
    trial.reason = other
    return bool(other)


def _ask_all(pool: Pool, screen: Screen, times: int) -> None:
    if times == 1:
        screen.say(f"Stopping: {plural(len(pool.running))} to finish a step and save; Ctrl-C ends them at once.")
    for trial in pool.running:
        pool.stop(trial) if times == 1 else pool.kill(trial)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[signal.Signals]]:
    """Collects what asks for a stop, instead of acting on it: the first signal, and every later Ctrl-C.

    Anything else that comes again is an echo and no second wish, as for a trial (`signals.Asked`): `timeout` and batch
    systems signal a process and its group, and would have its trials killed before they have saved.
    """
    received: list[signal.Signals] = []
    since = 0.0

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if not received:
            since = time.monotonic()
        elif number != signal.SIGINT or time.monotonic() - since < AGAIN:
            return
        received.append(signal.Signals(number))

    before = {number: signal.signal(number, receive) for number in EXIT_CODES}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _locked(sweep: Path) -> Iterator[None]:
    """One launcher a sweep folder."""
    sweep.mkdir(parents=True, exist_ok=True)
    lock = FileLock(sweep / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        refuse(f"Another process is running the sweep in {_short(sweep)}.")
    try:
        yield
    finally:
        lock.release()


def _list_impossible(trials: list[Trial]) -> None:
    impossible = [t for t in trials if t.state == IMPOSSIBLE]
    if impossible:
        print(f"{len(impossible)} of {len(trials)} combinations are impossible, and skipped:")
    alike: dict[tuple[str, str], int] = {}
    for trial in impossible:
        what = " ".join(o for o in trial.differs if not o.startswith(IRRELEVANT)) or trial.name
        alike[what, trial.reason] = alike.get((what, trial.reason), 0) + 1
    for (what, reason), count in alike.items():
        print(f"  {what}{f' ({count} trials)' if count > 1 else ''}: {reason}")


def _announce(sweep: Path, trials: list[Trial], n_jobs: int) -> None:
    _list_impossible(trials)
    waiting, finished = (sum(t.state == s for t in trials) for s in (WAITING, FINISHED))
    before = f" ({finished} finished earlier)" if finished else ""
    print(f"{plural(waiting)} to run{before}, {n_jobs} at a time, in {_short(sweep)}", flush=True)


def _report(sweep: Path, trials: list[Trial], stopped_by: signal.Signals | None) -> None:
    names = {s: [t for t in trials if t.state == s] for s in (FINISHED, FAILED, STOPPED, WAITING, IMPOSSIBLE)}
    print()
    print(", ".join(f"{len(found)} {state}" for state, found in names.items() if found) + ".")
    for trial in trials:
        took = clock(trial.seconds) if trial.seconds else ""
        print(f"  {trial.state:<10} {trial.name}  {trial.told}  {took}".rstrip())
    print(f"  ledger     {_short(sweep / 'ledger.csv')}")
    unfinished = [t for t in trials if t.state in (FAILED, STOPPED, WAITING)]
    if unfinished:
        print(f"To go on with {len(unfinished)} of them:  python train.py -m resume={_short(sweep)}")
    if stopped_by is not None:
        raise SystemExit(EXIT_CODES[stopped_by])
    if names[FAILED]:
        raise SystemExit(1)


def _short(path: Path) -> str:
    return os.path.relpath(path)
