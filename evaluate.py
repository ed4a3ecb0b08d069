"""Measures a trained model: python evaluate.py run=<run folder or .ckpt> [key=value], see --help."""

from omegaconf import DictConfig, OmegaConf

from triptych import cli

RUN_NODES = ("sampler", "metric", "dataset")  # what the run's own config answers for


def evaluate(config: DictConfig) -> None:
    import os

    from hydra.utils import instantiate

    from triptych import run
    from triptych.evaluation import Evaluator
    from triptych.generate import Job, Progress, devices

    cli.quiet()
    if config.doctor:
        return doctor(config)
    with cli.refusals():
        cli.need(config, "run")
        for node in RUN_NODES:
            if OmegaConf.select(config, node) is None:
                raise ValueError(f"The run does not say which {node} to use: give {node}=….")
        sampler, metric, dataset = (run.build(run.plain(config[node])) for node in RUN_NODES)
        weights = run.chosen_weights(config)
        checkpoint = run.read_checkpoint(config.run)
        made = run.build(run.read_config(config.run, checkpoint)["dataset"]).shape
        if dataset.shape != made:
            raise ValueError(
                f"This run makes samples of {_times(made)}, but dataset={dataset.name} holds {_times(dataset.shape)}."
            )
        formulation = run.restore(checkpoint, config.run, weights)
        evaluator = Evaluator(metric, cli.choices()["metric"], dataset, config.reference)
        evaluator.check(config.num_samples)
        dataset.prepare_data()
        dataset.images(config.reference)
        guidance = OmegaConf.select(config, "guidance")
        denoiser = instantiate(guidance, formulation) if guidance else formulation
        labels = run.plain(config)["labels"]
        jobs = [
            Job(
                denoiser,
                sampler,
                dataset.shape,
                config.num_samples,
                seed=config.seed,
                first=k * config.num_samples,
                block=config.batch_size,
                labels="random" if labels is None and dataset.conditional else labels,
                num_classes=dataset.num_classes if dataset.conditional else 0,
            )
            for k in range(config.repeats)
        ]
        fabric = devices(config.trainer)

    fabric.launch()
    formulation.to(fabric.device)
    if config.compile:
        formulation.model.compile()
    rank, world = fabric.global_rank, fabric.world_size
    values: dict[str, list[float]] = {}
    total = config.num_samples * config.repeats
    if evaluator.of_samples:
        with Progress(total, sampler.steps, "evaluating", shown=rank == 0) as progress, fabric.autocast():
            for job in jobs:
                job.device = fabric.device
                for name, value in evaluator.measure(job, progress, rank, world).items():
                    values.setdefault(name, []).append(value)
    else:
        measured = evaluator.measure_denoiser(formulation, fabric.device, config.num_samples, rank, world)
        values = {name: [value] for name, value in measured.items()}
    if rank:
        return
    folder = run.folder_of(config.run)
    for name, measured in values.items():
        record = evaluator.record(
            name,
            measured,
            jobs[0] if evaluator.of_samples else None,
            config.num_samples if evaluator.of_samples else evaluator.metric.count,
            weights=run.weights_profile(checkpoint, weights, config.run),
            guidance=run.plain(guidance) if guidance else None,
            images_seen=(checkpoint.get("ema") or {}).get("images_seen"),
            world_size=world,
            run=str(config.run),
        )
        path = record.write(folder / "evaluations")
        print(record.describe())
        print(f"  {os.path.relpath(path)}")


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) if len(shape) > 1 else f"{shape[0]} coordinates"


def doctor(config: DictConfig) -> None:
    """A page about a dataset, with the constants that the papers derive from it."""
    from hydra.utils import instantiate

    from triptych.doctor import examine

    with cli.refusals():
        if OmegaConf.select(config, "dataset") is None:
            raise ValueError("Say which dataset to look at: doctor=true dataset=digits.")
        dataset = instantiate(config.dataset)
        metric = instantiate(config.metric) if OmegaConf.select(config, "metric") else None
        dataset.prepare_data()
    print(dataset.name)
    for what, value in examine(dataset, metric):
        print(f"  {what:<18}{value}")


if __name__ == "__main__":
    cli.command("evaluate", evaluate, prepare=lambda arguments: cli.run_arguments(arguments, RUN_NODES))
