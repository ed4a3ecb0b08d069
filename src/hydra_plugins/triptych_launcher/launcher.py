"""What runs the trials of `python train.py -m …`. Imports nothing heavy: every script's start reads this file."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class ProcessLauncher(Launcher):
    """Runs every trial as `python train.py <its overrides>`, in a process group of its own (T-D12).

    Args:
        n_jobs: trials at a time; None is as many as there are GPUs for, one without GPUs.
        gpus_per_trial: None is what each trial's `trainer.devices` asks for.
        estimate: measure a few training steps first, where no earlier trial tells how long one takes.
    """

    def __init__(self, n_jobs: int | None = None, gpus_per_trial: int | None = None, estimate: bool = True) -> None:
        self.n_jobs, self.gpus_per_trial, self.estimate = n_jobs, gpus_per_trial, estimate

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from triptych.sweep.grid import run_grid

        loader = self.hydra_context.config_loader
        run_grid(
            self.config,
            job_overrides,
            lambda overrides: loader.load_sweep_config(self.config, list(overrides)),
            n_jobs=self.n_jobs,
            gpus_per_trial=self.gpus_per_trial,
            estimate=self.estimate,
        )
        return []
