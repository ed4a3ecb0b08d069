"""Draws images from a trained model: python sample.py run=<run folder or .ckpt> [key=value], see --help."""

from omegaconf import DictConfig, OmegaConf

from triptych import cli, recall, refusal

RUN_NODES = ("sampler",)  # what the run's own config answers for, unless the command line says otherwise


def sample(config: DictConfig) -> None:
    import os

    import numpy as np
    import torch
    from hydra.utils import instantiate

    from triptych import compilation, run
    from triptych.dataset.given import given
    from triptych.generate import Job, Progress, computing, devices, storable
    from triptych.image import enlarge, filmstrip, from_uint8, grid, picture, save, save_animation
    from triptych.record import of_samples, write_json

    cli.quiet()
    with refusal.refusals():
        refusal.need(config, "run")
        if OmegaConf.select(config, "sampler") is None:
            raise ValueError("The run does not say which sampler to use: give sampler=…, e.g. sampler=ddim.")
        sampler = run.build(run.plain(config.sampler))
        weights = run.chosen_weights(config)
        checkpoint = run.read_checkpoint(config.run)
        stored = run.read_config(config.run, checkpoint)
        formulation = run.restore(checkpoint, config.run, weights)
        dataset = run.build(stored["dataset"])
        init = None
        if config.init is not None:
            init = torch.from_numpy(given(config.init, dataset.shape))
            init = from_uint8(init) if init.dtype == torch.uint8 else init
        guidance = OmegaConf.select(config, "guidance")
        denoiser = instantiate(guidance, formulation) if guidance else formulation
        job = Job(
            denoiser,
            sampler,
            dataset.shape,
            config.num_samples,
            seed=config.seed,
            first=config.first,
            block=config.batch_size,
            labels=run.plain(config)["labels"],
            num_classes=dataset.num_classes if dataset.conditional else 0,
            init=init,
        )
        fabric = devices(config.trainer)
        compilation.check(config.compile, config.trainer.precision, fabric.device)
        out = run.new_folder(config.out, "results") if fabric.local_rank == 0 else None

    fabric.launch()
    job.device = fabric.device
    formulation.to(fabric.device)
    compilation.compiled(formulation.model, config.compile, fabric.device)
    rank, world = fabric.global_rank, fabric.world_size
    with Progress(job.count, sampler.steps, shown=rank == 0) as progress, fabric.autocast():
        samples = job.collect(progress, rank, world)
    if rank or out is None:
        return
    arrays = samples.permute(0, 2, 3, 1) if samples.ndim == 4 else samples
    np.savez(out / "samples.npz", arr_0=arrays.numpy())
    save(picture(samples[:256]) if samples.ndim == 4 else picture(samples), out / "grid.png")
    if config.animate:
        shown = range(config.first, config.first + min(job.count, 16 if samples.ndim == 4 else 2000))
        with torch.no_grad(), fabric.autocast():
            states = [storable(x).cpu() for x in job.trajectory(shown)]
        states = states[:: max(1, len(states) // 60)] + states[-1:]
        frames = [enlarge(grid(s), 400) if s.ndim == 4 else picture(s) for s in states]
        save_animation(frames, out / "trajectory.gif")
        save(filmstrip([states[k] for k in np.linspace(0, len(states) - 1, 10).round().astype(int)]), out / "strip.png")
    record = of_samples(
        job,
        run=str(config.run),
        guidance=run.plain(guidance) if guidance else None,
        init=None if init is None else {"path": str(config.init), "num_images": len(init)},
        weights=run.weights_profile(checkpoint, weights, config.run),
        images_seen=(checkpoint.get("ema") or {}).get("images_seen"),
        world_size=world,
        computing=computing(fabric.strategy.precision.precision, formulation.model, job.device, job.block),
    )
    write_json(out / "record.json", record)
    print(f"{job.count} samples, {job.nfe} network calls each, {job.images_per_second:.1f} images/s a device.")
    written = ["samples.npz", "grid.png", "record.json"] + ["trajectory.gif", "strip.png"] * bool(config.animate)
    print(f"  {os.path.relpath(out)}: {', '.join(written)}")


if __name__ == "__main__":
    cli.command("sample", sample, prepare=lambda arguments: recall.run_arguments(arguments, RUN_NODES))
