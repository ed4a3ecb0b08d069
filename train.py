"""Trains a diffusion model: python train.py [group=option] [key=value], see --help."""

from omegaconf import DictConfig

from triptych import cli


def train(config: DictConfig) -> None:
    import os
    import time
    from pathlib import Path

    import torch
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import instantiate

    from triptych import run, tracking
    from triptych.callback import Checkpoint, Evaluate, Samples, Stop
    from triptych.callback.clock import images_seen
    from triptych.dataset import per_device_batch_size
    from triptych.noise import seed_of
    from triptych.record import code_version

    cli.quiet()
    folder = Path(HydraConfig.get().runtime.output_dir)
    with cli.refusals():  # everything is built, and refused if it cannot work, before anything is written
        plain = run.plain(config)
        plain["choices"] = cli.choices()
        torch.manual_seed(seed_of("initialisation", config.seed))
        dataset = instantiate(config.dataset)
        formulation = instantiate(config.formulation)
        callbacks = [instantiate(c) for c in config.callback.values() if c is not None]
        for callback in callbacks:
            if isinstance(callback, (Samples, Evaluate)):
                callback.check(formulation, dataset)
        formulation.configure_optimizers()
        trainer = instantiate(
            config.trainer, callbacks=callbacks, logger=False, plugins=[Checkpoint.io()], default_root_dir=folder
        )
        per_device_batch_size(dataset.global_batch_size, trainer.world_size, trainer.accumulate_grad_batches)
        if not config.resume and trainer.is_global_zero:
            run.refuse_used(folder)
        last = run.checkpoint_of(folder) if config.resume else None
        resumed = run.read_checkpoint(last) if last else None
        dataset.prepare_data()

    stored = run.read_config(folder) if resumed and (folder / "config.yaml").exists() else {}
    plain["run_id"] = stored.get("run_id") or cli.run_id()
    formulation.hparams.update(plain)  # into the checkpoint
    if trainer.is_global_zero:
        run.write_config(folder, plain, list(HydraConfig.get().overrides.task))
    metrics = tracking.MetricsCSV(folder / "metrics.csv")
    wandb = None
    if config.logger:
        described = {**plain, "code": code_version()}
        wandb = tracking.connect(run.plain(config.logger), folder, plain["run_id"], described)
    trainer.loggers = [logger for logger in (metrics, wandb) if logger is not None]
    if resumed:
        metrics.cut(resumed["global_step"])
    if config.compile:
        formulation.model.compile()

    began = time.monotonic()
    look = tracking.how_to_look(wandb, folder) if trainer.is_global_zero else ""
    try:
        trainer.fit(formulation, datamodule=dataset, ckpt_path=last, weights_only=True)
    finally:
        tracking.finish(wandb)
    if not trainer.is_global_zero:
        return
    stop = next((c for c in callbacks if isinstance(c, Stop)), None)
    exit_code = stop.exit_code if stop else 0
    where = os.path.relpath(folder)
    print()
    if exit_code:
        print(f"Stopped at step {trainer.global_step}; saved. To go on:  python train.py resume={where}")
        raise SystemExit(exit_code)
    print(f"Trained {images_seen(trainer):,} images in {time.monotonic() - began:.0f} s, evaluation included.")
    print(f"  run       {where}")
    for callback in callbacks:
        for line in getattr(callback, "summary", lambda: [])():
            print(f"  {line}")
    print(f"  W&B       {look}")
    print("Next:")
    print(f"  python sample.py run={where} num_samples=100 out=samples/first")
    print(f"  python evaluate.py run={where} sampler=ddim sampler.steps=20")
    print(f"  python train.py resume={where} trainer.max_steps={2 * trainer.global_step}")


if __name__ == "__main__":
    cli.command("train", train, prepare=cli.resume_arguments)
