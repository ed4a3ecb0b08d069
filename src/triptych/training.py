"""The main job: everything is built, and refused if it cannot work; then it is trained, saved and measured.

Whatever happens on the way is said in a sentence, written to the run's status.json, and told by the exit code.
"""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler
from omegaconf import DictConfig

from triptych import cli, compilation, conf, disk, refusal, run, shard, status, tracking
from triptych.callback import Checkpoint, Evaluate, Likelihood, Samples, Status, Stop
from triptych.callback.clock import images_seen
from triptych.callback.guard import NotFinite
from triptych.callback.hooks import lighten, without_empty
from triptych.dataset import per_device_batch_size
from triptych.formulation import Formulation
from triptych.noise import seed_of
from triptych.record import code_version, short_count
from triptych.signals import Asked, Interrupted

FAILED, NOT_FINITE = 1, 3  # exit codes, beside those of cli and signals
PROFILE = "profile"  # in a run's folder: what trainer.profiler=… reports


@dataclass
class Job:
    """What the config builds."""

    folder: Path
    dataset: Any
    formulation: Formulation
    callbacks: list[Callback]
    status: Status
    trainer: Trainer
    asked: Asked

    @classmethod
    def of(cls, config: DictConfig, folder: Path, asked: Asked) -> "Job":
        torch.manual_seed(seed_of("initialisation", config.seed))
        dataset = instantiate(config.dataset)
        formulation = instantiate(config.formulation)
        if dataset.conditional and getattr(formulation.model, "num_classes", None) == 0:
            raise ValueError(
                "dataset.conditional=true gives labels to the network, and this one takes none: choose another model, "
                "or dataset.conditional=false."
            )
        callbacks = [instantiate(c) for c in config.callback.values() if c is not None]
        for callback in callbacks:
            if isinstance(callback, (Samples, Evaluate)):
                callback.check(formulation, dataset)
            if isinstance(callback, Stop):
                callback.asked = asked
        checkpoint = next((c for c in callbacks if isinstance(c, Checkpoint)), None)
        if checkpoint is not None:
            checkpoint.check(_counts(callbacks))
        formulation.configure_optimizers()
        if conf.choices().get("trainer") == "multinode" and config.trainer.num_nodes == 1:
            raise ValueError(
                "trainer=multinode is for several machines: start it by torchrun --nnodes=…, by srun, or with "
                "trainer.num_nodes=… and MASTER_ADDR, MASTER_PORT and NODE_RANK set on each of them."
            )
        status = Status()
        trainer = instantiate(
            config.trainer,
            callbacks=without_empty([*callbacks, status]),
            logger=False,
            plugins=[(checkpoint or Checkpoint()).io(), *_environment()],
            default_root_dir=folder,
        )
        lighten(trainer, formulation)
        _keep_report(trainer.profiler, folder)
        shard.check(trainer, formulation, bool(config.compile), checkpoint.sharded if checkpoint else None)
        compilation.check(
            config.compile,
            config.trainer.precision,
            trainer.strategy.root_device,
            trainer.accumulate_grad_batches,
        )
        return cls(folder, dataset, formulation, callbacks, status, trainer, asked)

    def callback(self, kind: type) -> Any:
        """The callback of a class, or None."""
        return next((c for c in self.callbacks if isinstance(c, kind)), None)

    def split(self) -> str:
        """How the global batch comes about, in words; a ValueError if it cannot be split."""
        trainer, batch = self.trainer, self.dataset.global_batch_size
        accumulate = trainer.accumulate_grad_batches
        each = per_device_batch_size(batch, trainer.world_size, accumulate)
        nodes = f" on {trainer.num_nodes} nodes" if trainer.num_nodes > 1 else ""
        processes = f"{trainer.world_size} process{'es' if trainer.world_size > 1 else ''}{nodes}"
        return f"{batch} images a step = {processes} x {accumulate} accumulated x {each}"


def train(config: DictConfig, asked: Asked) -> None:
    """Called in `signals.listening`."""
    cli.quiet()
    began = time.monotonic()
    folder = Path(HydraConfig.get().runtime.output_dir)
    with refusal.refusals():
        plain = run.plain(config)
        plain["choices"] = conf.choices()
        job = Job.of(config, folder, asked)
        split = job.split()
        if job.trainer.is_global_zero:
            status.refuse_running(folder)
            if not config.resume:
                run.refuse_used(folder)
        last, resumed = run.newest(folder) if config.resume else (None, None)
        if resumed is None and config.resume not in (None, "auto"):
            where = os.path.relpath(folder)
            raise ValueError(
                f"The run folder {where} has no checkpoint to go on from. To begin anew in it:  "
                f"python train.py resume=auto hydra.run.dir={where}"
            )
        if resumed is not None:
            _refuse_finished(job, resumed, config.resume == "auto")
        job.dataset.prepare_data()

    stored = run.read_config(folder) if (folder / "config.yaml").exists() else {}
    given = os.environ.get("WANDB_RUN_ID")  # by an agent of a W&B sweep, which knows its run by it
    plain["run_id"] = stored.get("run_id") or given or conf.run_id()
    job.formulation.hparams.update(plain)  # into the checkpoint
    where, main = os.path.relpath(folder), job.trainer.is_global_zero
    if main:
        disk.remove_stale(folder, folder / "checkpoints")
        run.write_config(folder, plain, list(HydraConfig.get().overrides.task))
        job.status.start(folder, job.trainer)
        print(f"{split}; in {where}" + (f", from step {resumed}" if resumed is not None else ""), flush=True)
    loggers = _loggers(config, plain, folder, resumed or 0)
    wandb = next((logger for logger in loggers if not isinstance(logger, tracking.MetricsCSV)), None)
    look = tracking.how_to_look(wandb, folder) if main else ""  # pyright: ignore[reportArgumentType]
    compilation.compiled(job.formulation.model, config.compile, job.trainer.strategy.root_device)
    try:
        job = _fit(job, config, loggers, last)
    except Interrupted:
        _leave(job, asked.exit_code, _interrupted(job, where))
    except NotFinite as error:
        asked.leave()
        job.status.end("failed", str(error), NOT_FINITE)
        if main:
            print(f"\n{error} The run is stopped; what it was before:  python sample.py run={where}", flush=True)
        raise SystemExit(NOT_FINITE) from None
    except BaseException as error:
        job.status.end("failed", f"{type(error).__name__}: {error}".splitlines()[0], FAILED)
        raise
    else:
        _look_back(job, where)
        job.status.end("finished", "", 0)
    finally:
        tracking.finish(wandb)  # pyright: ignore[reportArgumentType]
    if not main:
        return
    print(f"\nTrained {images_seen(job.trainer):,} images in {time.monotonic() - began:.0f} s, evaluation included.")
    print(f"  run       {where}")
    for report in sorted(folder.glob(f"*{PROFILE}*.txt")):
        print(f"  profile   {os.path.relpath(report)}")
    for callback in job.callbacks:
        for line in getattr(callback, "summary", lambda: [])():
            print(f"  {line}")
    print(f"  W&B       {look}")
    print("Next:")
    print(f"  python sample.py run={where} num_samples=100 out=samples/first")
    print(f"  python evaluate.py run={where} sampler=ddim sampler.steps=20")
    print(f"  python train.py resume={where} trainer.max_steps={2 * job.trainer.global_step}")


def _keep_report(profiler: Any, folder: Path) -> None:
    """What a profiler reports goes to Lightning's log, which we silence, unless it is told of a file."""
    if not isinstance(profiler, PassThroughProfiler) and profiler.filename is None:
        profiler.dirpath, profiler.filename = folder, PROFILE


def _environment() -> list[ClusterEnvironment]:
    """SLURM's, if srun started this. What is done on a signal is ours (callback.stop): Lightning does not requeue."""
    return [SLURMEnvironment(auto_requeue=False)] if "SLURM_STEP_NUM_TASKS" in os.environ else []


def _counts(callbacks: list[Callback]) -> set[str]:
    """Of the samples that will be measured, as they end the metrics' names."""
    counts = {c.num_images for c in callbacks if isinstance(c, Likelihood)}
    for callback in callbacks:
        if isinstance(callback, Evaluate):
            counts |= {callback.num_samples, callback.fast_num_samples if callback.every.images else 0}
    return {short_count(n) for n in counts if n}


def _fit(job: Job, config: DictConfig, loggers: list[Logger], last: Path | None) -> Job:
    """Trains, goes back to the last checkpoint where the guard gives up, and passes on what it cannot help.

    Training is a function of its seed, so what happens again at the same step would happen for ever.
    """
    before: NotFinite | None = None
    while True:
        job.trainer.loggers = loggers
        try:
            job.trainer.fit(job.formulation, datamodule=job.dataset, ckpt_path=last, weights_only=True)
            return job
        except NotFinite as error:
            last, step = _newest(job)
            if step is None or (before is not None and error.first <= before.first):
                raise
            before = error
            if job.trainer.is_global_zero:
                print(f"\n{error} Going back to the checkpoint of step {step}.", flush=True)
        hparams, reporter, asked = dict(job.formulation.hparams), job.status.reporter, job.asked
        job = Job.of(config, job.folder, asked)
        job.formulation.hparams.update(hparams)
        job.status.reporter = reporter
        compilation.compiled(job.formulation.model, config.compile, job.trainer.strategy.root_device)
        for logger in loggers:
            if isinstance(logger, tracking.MetricsCSV):
                logger.cut(step)


def _newest(job: Job) -> tuple[Path | None, int | None]:
    """The newest checkpoint and its step, or nothing: as rank 0 finds it, which has written it by now, and whose folder
    is the run's. Called on every rank."""
    found: tuple[Path | None, int | None] = (None, None)
    if job.trainer.is_global_zero:
        with contextlib.suppress(ValueError):
            found = run.newest(job.folder)
    return job.trainer.strategy.broadcast(found)


def _look_back(job: Job, where: str) -> None:
    """Leaves if training was stopped, or if its end could not be saved."""
    stop, io, step = job.callback(Stop), job.trainer.strategy.checkpoint_io, job.trainer.global_step
    if getattr(io, "failed", False):
        saved = run.newest_step(job.folder)
        reason = f"The checkpoint of step {step} could not be written; the newest one is of step {saved}."
        job.status.end("failed", reason, FAILED)
        if job.trainer.is_global_zero:
            print(f"\n{reason} To go on when there is room:  python train.py resume={where}", flush=True)
        raise SystemExit(FAILED)
    if stop is not None and stop.stopping:
        stop.asked.leave(SIGTERM)  # if it was another process that was asked
        _leave(job, stop.asked.exit_code, f"Stopped at step {step}; saved. To go on:  python train.py resume={where}")


def _refuse_finished(job: Job, step: int, auto: bool) -> None:
    """A run that has all its steps is not trained again; its evaluation is made up for if it was interrupted."""
    most, folder = job.trainer.max_steps, os.path.relpath(job.folder)
    unfinished = step == most and not run.finished(job.folder)
    if most < 0 or step < most or unfinished:
        return
    reason = (
        f"Nothing is left to train: {folder} is at step {step}, and trainer.max_steps={most}. "
        f"To train longer:  python train.py resume={folder} trainer.max_steps={2 * step}"
    )
    if auto:  # a resubmission
        print(reason)
        raise SystemExit(0)
    raise ValueError(reason)


def _loggers(config: DictConfig, plain: dict[str, Any], folder: Path, step: int) -> list[Logger]:
    metrics = tracking.MetricsCSV(folder / "metrics.csv")
    metrics.cut(step)
    if not config.logger:
        return [metrics]
    described = {**plain, "code": code_version()}
    wandb = tracking.connect(run.plain(config.logger), folder, plain["run_id"], described)
    return [metrics] if wandb is None else [metrics, wandb]


def _interrupted(job: Job, where: str) -> str:
    """What was lost and how to go on, when a signal did not wait for a step to end."""
    if job.status.phase == "evaluating":
        return (
            f"Interrupted in the final evaluation; the training is complete and saved, at step "
            f"{job.trainer.global_step}. To evaluate:  python train.py resume={where}"
        )
    saved = run.newest_step(job.folder)
    if saved is None:
        return "Interrupted before the first checkpoint: nothing was saved."
    return f"Interrupted; the newest checkpoint is of step {saved}. To go on:  python train.py resume={where}"


def _leave(job: Job, code: int, reason: str) -> None:
    job.status.end("interrupted", reason.partition(" To ")[0], code)
    if job.trainer.is_global_zero:
        print(f"\n{reason}", flush=True)
    raise SystemExit(code)
