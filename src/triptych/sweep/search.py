"""The search: trials are drawn, trained as processes, watched, pruned, and told to the study."""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.pruners import NopPruner
from optuna.trial import TrialState

from triptych import disk
from triptych.refusal import explain, refusals, refuse
from triptych.signals import EXIT_CODES
from triptych.sweep import machine, outcome, wandb_sweep
from triptych.sweep.arguments import OF_A_CALL
from triptych.sweep.feasible import why_not
from triptych.sweep.grid import busy, how, stop_signals
from triptych.sweep.objective import Logged, final_value, values_so_far
from triptych.sweep.pool import Pool, last_lines
from triptych.sweep.screen import Screen
from triptych.sweep.space import distributions, overrides
from triptych.sweep.study import Study, quiet
from triptych.sweep.trial import FAILED, FINISHED, PRUNED, STOPPED, Trial, plural

POLL = 0.3  # seconds
LOOK_FOR_DEAD = 20.0  # seconds
HOPELESS = 3  # trials that fail before any succeeds, after which the search ends


def search(config: DictConfig) -> None:
    """Runs `sweep.py`'s task.

    Raises:
        SystemExit: bad input (2), every trial fails (1), or interrupted (130, 143).
    """
    with refusals():
        quiet()
        plan = Plan(config)
        if config.wandb:
            print(wandb_sweep.write(plan))
            return
        gpus = machine.gpus()
        try:
            needs = machine.needs(plan.composed.trainer, len(gpus), config.gpus_per_trial)
        except ValueError as error:
            raise ValueError(f"A trial cannot run here: {error}.") from error
        study = plan.open()
    Search(plan, study, gpus, needs).run()


class Plan:
    """What is searched, read from the config and refused if it cannot work.

    Attributes:
        base: settings of every trial. space: {setting: range or choices}.
        objectives: {column of metrics.csv: direction}. prune_on: a column, or None.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        sweep: Any = OmegaConf.to_container(config.sweep, resolve=True)
        self.base = [str(o) for o in config.train]
        self.space: dict[str, BaseDistribution] = distributions(sweep["space"])
        twice = [o for o in self.base if o.partition("=")[0].lstrip("+") in self.space]
        if twice:
            raise ValueError(f"{twice[0]} is given, but sweep.space searches it: leave it out.")
        self.sampler = _instantiate("search", sweep["search"])
        self.pruner = _instantiate("pruner", sweep["pruner"])
        self.composed = self._first_that_works()
        self._read_objectives(sweep)
        self._try_out()
        choice = HydraConfig.get().runtime.choices["sweep"]
        stamp = time.strftime("%Y-%m-%d-%H%M%S")
        self.folder = Path(config.study) if config.study else Path("runs/studies") / f"{choice}-{stamp}"

    def _first_that_works(self) -> DictConfig:
        """The config of a first combination of choices that is not impossible."""
        combinations = self._choices()
        refused: dict[str, str] = {}
        found: DictConfig | None = None
        for parameters in combinations:
            config = self.compose(parameters)
            reason = why_not(config)
            if reason is None:
                found = found if found is not None else config
            else:
                refused[" ".join(overrides(parameters)) or "These settings"] = reason
        if found is None:
            raise ValueError(next(iter(refused.values())))
        for what, reason in refused.items():
            print(f"Impossible, and skipped where it is drawn: {what}: {reason}")
        return found

    def _choices(self) -> list[dict[str, Any]]:
        """Combinations of the choices of config groups and other lists, the first 50; ranges at their lower end."""
        combinations: list[dict[str, Any]] = [{}]
        for name, distribution in self.space.items():
            values = list(distribution.choices) if isinstance(distribution, CategoricalDistribution) else None
            values = values or [getattr(distribution, "low", None)]
            combinations = [{**c, name: v} for c in combinations for v in values][:50]
        return combinations

    def compose(self, parameters: Mapping[str, Any]) -> DictConfig:
        """The config of a trial."""
        try:
            return compose("train", [*self.base, *overrides(parameters)], return_hydra_config=True)
        except HydraException as error:
            raise ValueError(explain(error, "train")) from error

    def _read_objectives(self, sweep: dict[str, Any]) -> None:
        objectives, prune_on = sweep["objectives"], sweep["prune_on"]
        asked = [str(o).split() for o in objectives] if isinstance(objectives, list) else []
        for words in asked:
            if len(words) != 2 or words[0] not in ("minimize", "maximize"):
                raise ValueError(f"sweep.objectives: write minimize or maximize, then what; got {' '.join(words)!r}.")
        if not asked:
            raise ValueError("sweep.objectives must be a list of what is wanted, such as [minimize final].")
        prunes = not isinstance(self.pruner, NopPruner)
        if prunes and len(asked) > 1:
            raise ValueError("Trials can be pruned by one objective only: give sweep/pruner=none.")
        if prunes and not prune_on:
            raise ValueError("sweep.prune_on must say on which number trials are pruned, or give sweep/pruner=none.")
        logged = Logged(self.composed)
        self.objectives: dict[str, Any] = {logged.resolve(name): direction for direction, name in asked}
        self.prune_on = logged.resolve(prune_on, meanwhile=True) if prunes else None

    def _try_out(self) -> None:
        """Draws once from a study in memory, so that a sampler that cannot work with this space says so now."""
        trial_run = optuna.create_study(sampler=self.sampler, directions=list(self.objectives.values()))
        try:
            trial_run.ask(self.space)
        except (ValueError, TypeError, ImportError, NotImplementedError) as error:
            raise ValueError(f"sweep/search cannot work with this space: {' '.join(str(error).split())}") from error

    def open(self) -> Study:
        """The study, new or as it is; its folder holds how it was started."""
        sweep = {k: v for k, v in OmegaConf.to_container(self.config.sweep, resolve=True).items()}  # pyright: ignore
        settings = {k: sweep[k] for k in ("space", "objectives", "prune_on")} | {"train": self.base}
        study = Study(
            self.folder, self.config.storage, list(self.objectives.values()), self.sampler, self.pruner, settings
        )
        own = [str(o) for o in HydraConfig.get().overrides.task if not str(o).startswith(("train=", *OF_A_CALL))]
        given = [*own, *self.base, *([f"storage='{self.config.storage}'"] if self.config.storage else [])]
        if not (self.folder / "study.yaml").exists():
            with disk.replacing(self.folder / "study.yaml") as file:
                file.write(OmegaConf.to_yaml({"arguments": [*given, f"n_trials={self.config.n_trials}"], **settings}))
        return study


def _instantiate(name: str, node: Any) -> Any:
    if not isinstance(node, dict) or not str(node.get("_target_", "")).startswith(("optuna.", "triptych.")):
        raise ValueError(f"sweep.{name} must be one of conf/sweep/{name}/*.yaml, or have a _target_ of Optuna's.")
    return instantiate(node)


class Search:
    """One process's share of a study: `workers` trials at a time, each a process group of its own.

    Args:
        gpus: that may be handed out. needs: (GPUs, processes) of a trial.
    """

    def __init__(self, plan: Plan, study: Study, gpus: list[str], needs: tuple[int, int]) -> None:
        self.plan, self.study, self.needs = plan, study, needs
        workers = plan.config.workers or (max(1, len(gpus) // self.needs[0]) if self.needs[0] else 1)
        script = Path(sys.argv[0]).resolve().with_name("train.py")
        self.pool = Pool([sys.executable, str(script), *self._config_dirs()], workers, gpus)
        self.trials: list[Trial] = []
        self.asked: dict[Trial, optuna.trial.Trial] = {}
        self.seen: dict[Trial, int] = {}
        self.pruned: dict[Trial, str] = {}  # and why
        self.waits: list[tuple[Trial, optuna.trial.Trial]] = []
        self._looked = 0.0

    def _config_dirs(self) -> list[str]:
        sources = HydraConfig.get().runtime.config_sources
        return [word for s in sources if s.provider == "command-line" for word in ("--config-dir", s.path)]

    def run(self) -> None:
        n_trials = self.plan.config.n_trials
        done = sum(t.state.is_finished() for t in self.study.trials())
        before = f", of which {done} are done" if done else ""
        pruning = f", pruned on {self.plan.prune_on}" if self.plan.prune_on else ""
        objectives = " and ".join(f"{direction} {name}" for name, direction in self.plan.objectives.items())
        print(f"{objectives} in {plural(n_trials)}{before}, {self.pool.n_jobs} at a time here{pruning}")
        print(f"in {os.path.relpath(self.plan.folder)}; to help from another machine:  {self._join()}", flush=True)
        hopeless = False
        with Screen(self.trials, self.pool.seconds, self.pool.n_jobs, n_trials) as screen, stop_signals() as received:
            signals = 0
            while True:
                if len(received) > signals:
                    signals = len(received)
                    self._stop_all(screen, again=signals > 1)
                self._watch(screen)
                for trial in self.pool.ended():
                    self._ended(trial, screen)
                hopeless = hopeless or self._hopeless()
                if not received and not hopeless:
                    self._fill(n_trials, screen)
                if not self.pool.running and (received or hopeless or not self._more(n_trials)):
                    break
                screen.update()
                time.sleep(POLL)
        for trial, asked in self.waits:
            self.study.again(asked)
            trial.state = STOPPED
        print("\n" + outcome.write(self.plan, self.study))
        if received:
            print(f"To go on:  {self._join()}")
            raise SystemExit(EXIT_CODES[received[0]])
        if hopeless:
            refuse(f"The first {HOPELESS} trials failed, see above; the search has ended.")

    def _join(self) -> str:
        return f"python sweep.py study={os.path.relpath(self.plan.folder)}"

    def _more(self, n_trials: int) -> bool:
        """Whether trials are still to be started, or run elsewhere and may come back to us."""
        trials = self.study.trials()
        open_ones = [t for t in trials if t.state in (TrialState.WAITING, TrialState.RUNNING)]
        return bool(self.waits or open_ones) or (len(trials) < n_trials and not self.study.exhausted)

    def _fill(self, n_trials: int, screen: Screen) -> None:
        if time.monotonic() - self._looked > LOOK_FOR_DEAD:
            self._looked = time.monotonic()
            for number in self.study.retry_dead():
                screen.say(f"{number:04d}: its worker has died; it is tried again.")
        for trial, asked in list(self.waits):
            if self._room(trial) and not busy(trial):
                self.waits.remove((trial, asked))
                self._start(trial, asked, screen)
        while len(self.pool.running) + len(self.waits) < self.pool.n_jobs and self.needs[0] <= len(self.pool.free):
            asked = self.study.ask(self.plan.space, n_trials)
            if asked is None:
                return
            self._take(asked, screen)

    def _room(self, trial: Trial) -> bool:
        return self.pool.fits(trial)

    def _take(self, asked: optuna.trial.Trial, screen: Screen) -> None:
        """A trial that was drawn: refused if it cannot work, else started."""
        given = overrides(asked.params)
        folder = asked.user_attrs.get("folder") or f"trials/{asked.number:04d}"
        asked.set_user_attr("folder", folder)
        name = " ".join([f"{asked.number:04d}", *(_short(o) for o in given)])
        steps = self.plan.composed.trainer.max_steps
        trial = Trial(name, (*self.plan.base, *given), (self.plan.folder / folder).absolute(), *self.needs)
        trial.steps = steps if steps > 0 else None
        self.trials.append(trial)
        reason = why_not(self.plan.compose(asked.params))
        if reason is not None:
            trial.state, trial.reason = PRUNED, reason
            asked.set_user_attr("reason", reason)
            self.study.tell(asked, state=TrialState.PRUNED if len(self.plan.objectives) == 1 else TrialState.FAIL)
            screen.event(trial)
        elif busy(trial):
            self.waits.append((trial, asked))
        else:
            self._start(trial, asked, screen)

    def _start(self, trial: Trial, asked: optuna.trial.Trial, screen: Screen) -> None:
        self.asked[trial], self.seen[trial] = asked, 0
        self.pool.start(trial, how(trial))
        screen.event(trial)

    def _watch(self, screen: Screen) -> None:
        """Signs of life, and what has been measured since; a trial that is pruned is asked to save and end."""
        for trial in self.pool.running:
            asked = self.asked[trial]
            self.study.beat(asked)
            if self.plan.prune_on is None or trial in self.pruned:
                continue
            values = values_so_far(trial.folder, self.plan.prune_on)
            for step in range(self.seen[trial] + 1, len(values) + 1):
                asked.report(values[step - 1], step)
                self.seen[trial] = step
                if asked.should_prune():
                    self.pruned[trial] = f"{self.plan.prune_on} {values[step - 1]:.4g} at measurement {step}"
                    self.pool.stop(trial)
                    break

    def _ended(self, trial: Trial, screen: Screen) -> None:
        asked = self.asked.pop(trial)
        if trial.state == FINISHED:
            values = [final_value(trial.folder, name) for name in self.plan.objectives]
            missing = [name for name, v in zip(self.plan.objectives, values, strict=True) if v is None]
            if missing:
                trial.state, trial.reason = FAILED, f"logged no finite {missing[0]}"
            else:
                named = zip(self.plan.objectives, values, strict=True)
                trial.result = ", ".join(f"{name} {value:.4g}" for name, value in named)
                self.study.tell(asked, [v for v in values if v is not None])
        elif trial in self.pruned and trial.state == STOPPED:
            trial.state, trial.reason = PRUNED, self.pruned[trial]
            self.study.tell(asked, state=TrialState.PRUNED)
        elif trial.state == STOPPED:
            self.study.again(asked)
        if trial.state == FAILED:
            asked.set_user_attr("reason", trial.reason)
            self.study.tell(asked, state=TrialState.FAIL)
        screen.event(trial)
        if trial.state == FAILED:
            screen.say(*(f"    {line}" for line in last_lines(trial.log)), f"    all of it: {trial.log}")
        outcome.write_table(self.plan.folder, self.study, list(self.plan.objectives))

    def _hopeless(self) -> bool:
        """The first trials have all failed: so will the rest."""
        over = [t for t in self.study.trials() if t.state.is_finished()]
        failed = sum(t.state == TrialState.FAIL for t in over)
        return failed >= HOPELESS and failed == len(over)

    def _stop_all(self, screen: Screen, again: bool) -> None:
        if not again:
            count = len(self.pool.running)
            screen.say(f"Stopping: {plural(count)} to finish a step and save; Ctrl-C ends them at once.")
        for trial in self.pool.running:
            self.pool.kill(trial) if again else self.pool.stop(trial)


def _short(override: str) -> str:
    key, _, value = override.partition("=")
    try:
        value = f"{float(value):.3g}" if not value.isdigit() else value
    except ValueError:
        pass
    return f"{key.rpartition('.')[2]}={value}"
