"""Measures a trained model, or anybody's images: python evaluate.py run=<run folder or .ckpt>, see --help."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from triptych import cells, cli, conf, recall, refusal

if TYPE_CHECKING:
    from pathlib import Path

    from triptych.evaluation import Evaluator
    from triptych.generate import Job
    from triptych.record import Record

RUN_NODES = ("sampler", "metric", "dataset")  # what the run's own config answers for
INSTEAD = ("samples", "explain", "doctor")  # other things to do than to measure a run


def prepare(arguments: list[str]) -> list[str]:
    """What the command line brings before Hydra reads it: the run's own settings, -m as a list of cells."""
    arguments = [f"explain=[{a[8:]}]" if a.startswith("explain=") and a[8:9] != "[" else a for a in arguments]
    return cells.collect(recall.run_arguments(arguments, RUN_NODES, instead=INSTEAD))


def evaluate(config: DictConfig) -> None:
    cli.quiet()
    if config.explain is not None:
        explain(config)
    elif config.doctor:
        doctor(config)
    elif config.samples is not None:
        evaluate_images(config)
    else:
        evaluate_run(config)


def evaluate_run(config: DictConfig) -> None:
    """Samples a checkpoint with one sampler or many, measures, writes a record for each number, and logs it."""
    from triptych import compilation, cost, run, tradeoff
    from triptych.evaluation import Evaluator
    from triptych.generate import computing, devices
    from triptych.record import of_samples, write_json

    with refusal.refusals():
        refusal.need(config, "run")
        for node in ("metric", "dataset", *(() if config.grid else ("sampler",))):
            if OmegaConf.select(config, node) is None:
                raise ValueError(f"The run does not say which {node} to use: give {node}=….")
        metric, dataset = (run.build(run.plain(config[node])) for node in ("metric", "dataset"))
        weights = "ema" if config.grid else run.chosen_weights(config)  # each of a grid says its own
        checkpoint = run.read_checkpoint(config.run)
        stored = run.read_config(config.run, checkpoint)
        made = run.build(stored["dataset"]).shape
        if dataset.shape != made:
            raise ValueError(
                f"This run makes samples of {_times(made)}, but dataset={dataset.name} holds {_times(dataset.shape)}."
            )
        formulation = run.restore(checkpoint, config.run, weights)
        evaluator = Evaluator(metric, conf.choices()["metric"], dataset, config.reference)
        evaluator.check(config.num_samples)
        if config.grid and not evaluator.of_samples:
            raise ValueError(f"metric={evaluator.name} reads no samples, so no sampler shapes it: leave -m out.")
        if config.repeats > 1 and not evaluator.of_samples:
            raise ValueError(
                f"metric={evaluator.name} draws no samples, so there are no seed blocks: leave repeats out."
            )
        dataset.prepare_data()
        grid, refused = _cells(config, formulation, dataset, lambda w: run.weights_profile(checkpoint, w, config.run))
        fabric = devices(config.trainer)
        compilation.check(config.compile, config.trainer.precision, fabric.device)
        if config.save_samples:
            run.new_folder(config.save_samples, "samples", "save_samples") if fabric.local_rank == 0 else None

    fabric.launch()
    formulation.to(fabric.device)
    compilation.compiled(formulation.model, config.compile, fabric.device)
    rank, world = fabric.global_rank, fabric.world_size
    common = {
        "images_seen": (checkpoint.get("ema") or {}).get("images_seen"),
        "world_size": world,
        "computing": computing(
            fabric.strategy.precision.precision if evaluator.of_samples else "32-true",  # likelihoods are never halved
            formulation.model,
            fabric.device,
            config.batch_size if evaluator.of_samples else None,
        ),
        "run": str(config.run),
    }
    folder = run.folder_of(config.run)
    with refusal.refusals():
        evaluator.prepare(fabric.device, shown=rank == 0)
    _save_reference(config, evaluator, rank)
    if not evaluator.of_samples:
        common["weights"] = run.weights_profile(checkpoint, weights, config.run)
        with refusal.refusals():
            values = evaluator.measure_denoiser(formulation, fabric.device, config.num_samples, rank, world, rank == 0)
        if rank == 0:
            records = [
                evaluator.record(name, [value], None, evaluator.metric.count, guidance=None, **common)  # pyright: ignore
                for name, value in values.items()
            ]
            _tell(records, folder, evaluator.notes)
            _log(config, stored, folder, [tradeoff.Point({}, records)], [])
        return

    jobs = [job for cell in grid for job in cell.jobs]
    for job in jobs:
        job.device = fabric.device
    with fabric.autocast():
        cost_of = cost.estimate(jobs, world)
    if rank == 0:
        for why in dict.fromkeys(why for _, why in refused):
            print(f"Left out: {'; '.join(name for name, also in refused if also == why)}: {why}")
        _say_cost(config, cost_of, len(grid))
    points: list[tradeoff.Point] = []
    notes: list[str] = []
    calls = dict(zip(map(id, jobs), cost_of.calls, strict=True))
    with tradeoff.Progress(cost_of.work, shown=rank == 0) as progress:
        for number, cell in enumerate(grid, 1):
            settings, blocks = cell.settings, cell.jobs
            title = tradeoff.name_of(settings, blocks[0].sampler)
            found: dict[str, list[float]] = {}
            keeper = Keeper() if config.save_samples else None
            try:
                if cell.weights != weights:
                    weights = ""  # of none, until all are there
                    run.put(formulation, checkpoint, config.run, cell.weights)
                    weights = cell.weights
                for k, job in enumerate(blocks, 1):
                    which = f" ({number}/{len(grid)})" if len(grid) > 1 else ""
                    which += f" seed block {k}/{len(blocks)}" if len(blocks) > 1 else ""
                    progress.begin(title + which, calls[id(job)])
                    with fabric.autocast():  # which keeps its copies of the weights until it ends
                        values = evaluator.measure(job, progress, rank, world, keeper)
                    for name, value in values.items():
                        found.setdefault(name, []).append(value)
            except Exception as error:
                if not config.grid:
                    with refusal.refusals():
                        raise
                if rank == 0:
                    progress.say(f"Failed: {title}: {' '.join(str(error).split()) or type(error).__name__}")
                progress.skip(number * config.repeats)
                continue
            notes += [note for note in evaluator.notes if note not in notes]
            kept = None
            if keeper is not None:
                kept = keeper.write(config.save_samples, title if len(grid) > 1 else "samples", rank, world)
            if rank:
                continue
            common["weights"] = run.weights_profile(checkpoint, weights, config.run)
            blocks[0].nfe = max(job.nfe for job in blocks)
            if kept is not None:
                made = of_samples(blocks[0], guidance=cell.guidance, **common)
                made["num_samples"] *= len(blocks)  # their indices follow one another
                write_json(kept.with_suffix(".json"), made)
            records = [
                evaluator.record(name, value, blocks[0], config.num_samples, guidance=cell.guidance, **common)
                for name, value in found.items()
            ]
            for record in records:
                record.write(folder / "evaluations")
            points.append(tradeoff.Point(settings, records))
    if rank:
        return
    if not points:
        refusal.refuse("No sampler could be measured.")
    if not config.grid:
        _tell(points[0].records, folder, notes)
        _log(config, stored, folder, points, [])
        return
    print(tradeoff.table(points))
    for note in notes:
        print(f"Note: {note}")
    pictures = [tradeoff.draw(points, i, _picture(folder, points, i)) for i in range(len(points[0].records))]
    print(f"  {_short(folder / 'evaluations')}: {len(points) * len(pictures)} records")
    for picture in pictures:
        print(f"  {_short(picture)}")
    _log(config, stored, folder, points, pictures)


@dataclass
class Cell:
    """One point of a grid: what tells it from the others, and what is measured."""

    settings: dict[str, str]
    weights: str
    guidance: dict[str, Any] | None
    jobs: list["Job"]  # one a seed block


def _cells(
    config: DictConfig, formulation: Any, dataset: Any, check: Callable[[str], object]
) -> tuple[list[Cell], list[tuple[str, str]]]:
    """What is to be measured; and what cannot work, why. `check` refuses weights that the run has not."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import instantiate

    from triptych import run, tradeoff
    from triptych.generate import Job

    def cell(config: DictConfig, settings: dict[str, str]) -> Cell:
        sampler = run.build(run.plain(config.sampler))
        guidance = OmegaConf.select(config, "guidance")
        denoiser = instantiate(guidance, formulation) if guidance else formulation
        labels = run.plain(config)["labels"]
        each = [
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
        weights = run.chosen_weights(config)
        check(weights)
        return Cell(settings, weights, run.plain(guidance) if guidance else None, each)

    if not config.grid:
        return [cell(config, {})], []
    said = [override for override in HydraConfig.get().overrides.task if not override.startswith("grid=")]
    grid: list[list[str]] = OmegaConf.to_container(config.grid)  # pyright: ignore[reportAssignmentType]
    keys = cells.varied(grid)
    found, refused = [], []
    for overrides in grid:
        settings = {key: value for key, value in cells.settings(overrides).items() if key in keys}
        built, why = refusal.attempt(lambda: cell(cells.compose("evaluate", [*said, *overrides]), settings), "evaluate")  # noqa: B023
        if built is None:
            refused.append((tradeoff.name_of(settings, None), why))
        else:
            found.append(built)
    if not found:
        raise ValueError(f"None of these {len(grid)} can work; the first: {refused[0][1]}")
    return found, refused


class Keeper:
    """Collects the samples that are measured, for `save_samples`."""

    def __init__(self) -> None:
        self.blocks: list[tuple[int, Any]] = []

    def __call__(self, indices: range, samples: Any) -> None:
        self.blocks.append((indices.start, samples.cpu().numpy()))

    def write(self, folder: str, name: str, rank: int, world: int) -> "Path | None":
        """All ranks' samples in the order of their index, as one npz; on rank 0, where it is."""
        from pathlib import Path

        import numpy as np

        from triptych.evaluation import gathered

        blocks = sorted((b for share in gathered(self.blocks, world) for b in share), key=lambda b: b[0])
        if rank:
            return None
        samples = np.concatenate([b for _, b in blocks])
        samples = samples.transpose(0, 2, 3, 1) if samples.ndim == 4 else samples
        path = Path(folder) / (name.replace(", ", "_").replace(" ", "_") + ".npz")
        np.savez(path, arr_0=samples)
        return path


def evaluate_images(config: DictConfig) -> None:
    """Scores an npz or a folder of pictures, whoever made them, under the same protocol."""
    from pathlib import Path

    from hydra.utils import instantiate

    from triptych import collection, reference
    from triptych.evaluation import Evaluator
    from triptych.generate import devices

    with refusal.refusals():
        if not OmegaConf.is_missing(config, "run"):
            raise ValueError("Give run=… or samples=…, not both: a run makes its own samples.")
        if OmegaConf.select(config, "dataset") is None and config.reference in reference.SPLITS:
            raise ValueError("Say what to compare with: dataset=cifar10, or reference=<npz or folder>.")
        if OmegaConf.select(config, "metric") is None:
            raise ValueError("Say what to measure: metric=fid, or another.")
        dataset = instantiate(config.dataset) if OmegaConf.select(config, "dataset") is not None else None
        evaluator = Evaluator(instantiate(config.metric), conf.choices()["metric"], dataset, config.reference)
        if not evaluator.of_samples:
            raise ValueError(f"metric={evaluator.name} needs a model, not samples: give run=…, or another metric.")
        images = collection.read(config.samples, shown=True)
        if dataset is not None:
            dataset.prepare_data()
            images = collection.like(images, dataset.shape, dataset.name)
        evaluator.check(len(images.images))
        fabric = devices({**config.trainer, "devices": 1})
        for warning in images.warnings:
            print(f"Note: {warning}")
        evaluator.prepare(fabric.device, shown=True)
        values = evaluator.measure_images(images, shown=True)
    _save_reference(config, evaluator, 0)
    path = Path(config.samples)
    told = collection.protocol(path)
    folder = path if path.is_dir() else path.parent
    records = [
        evaluator.record(name, [value], None, len(images.images), **told, source=images.source, world_size=1)
        for name, value in values.items()
    ]
    _tell(records, folder if os.access(folder, os.W_OK) else Path("."), evaluator.notes)


def explain(config: DictConfig) -> None:
    """In what ways two numbers were measured differently."""
    from triptych import explain

    with refusal.refusals():
        names = OmegaConf.to_container(config.explain)
        if not isinstance(names, list) or len(names) != 2:
            raise ValueError("explain takes two records: explain=<run>/evaluations/a.json,<run>/evaluations/b.json.")
        print(explain.page(*map(explain.read, names)))


def doctor(config: DictConfig) -> None:
    """A page about a dataset, with the constants that the papers derive from it."""
    from hydra.utils import instantiate

    from triptych.doctor import examine

    with refusal.refusals():
        if OmegaConf.select(config, "dataset") is None:
            raise ValueError("Say which dataset to look at: doctor=true dataset=digits.")
        dataset = instantiate(config.dataset)
        metric = instantiate(config.metric) if OmegaConf.select(config, "metric") else None
        dataset.prepare_data()
    print(dataset.name)
    for what, value in examine(dataset, metric, shown=True):
        print(f"  {what:<18}{value}", flush=True)


def _say_cost(config: DictConfig, cost_of: Any, samplers: int) -> None:
    from triptych.cost import spoken

    block = min(config.batch_size, config.num_samples)
    each = f"{cost_of.seconds_a_call:.2g} s a network call of {block}"
    varied = cells.varied(OmegaConf.to_container(config.grid) if config.grid else [])  # pyright: ignore
    what = "settings" if {"ema", "weights"} & set(varied) else "samplers"
    many = f"{samplers} {what} on one checkpoint, from the same noise, " if samplers > 1 else ""
    seeds = f"{config.repeats} x " if config.repeats > 1 else ""
    fewest, most = min(cost_of.calls), max(cost_of.calls)
    calls = f"{most} network calls" if fewest == most else f"{fewest} to {most} network calls"
    print(f"{many}{seeds}{config.num_samples:,} samples of {calls}, {each}: {spoken(cost_of.seconds)}.")


def _tell(records: list["Record"], folder: "Path", notes: list[str]) -> None:
    """Writes and prints records, and what they suffer from."""
    for record in records:
        path = record.write(folder / "evaluations")
        print(record.describe())
        print(f"  {_short(path)}")
    for note in notes:
        print(f"Note: {note}")


def _save_reference(config: DictConfig, evaluator: "Evaluator", rank: int) -> None:
    if config.save_reference and rank == 0:
        with refusal.refusals():
            path = evaluator.save_reference(config.save_reference)
        print(f"  {_short(path)}: mu and sigma of the reference")


def _picture(folder: "Path", points: list[Any], index: int) -> "Path":
    import hashlib

    keys = hashlib.sha256(" ".join(point.records[index].key for point in points).encode()).hexdigest()[:8]
    name = points[0].records[index].metric.replace("/", "_")
    return folder / "evaluations" / f"{name}-nfe-{keys}.png"


def _log(config: DictConfig, stored: dict, folder: "Path", points: list[Any], pictures: list["Path"]) -> None:
    """The same numbers to the run's own W&B run."""
    if not config.log:
        return
    from triptych import tracking

    scalars = {}
    for point in points:
        for record in point.records:
            scalars[tracking.name_of(record, point.settings)] = record
    said = tracking.log_evaluation(folder, stored, scalars, {p.stem.rpartition("-")[0]: p for p in pictures})
    if said:
        print(f"  W&B       {said}")


def _short(path: "Path") -> str:
    """As short as it can be typed."""
    beside = os.path.relpath(path)
    return str(path) if beside.startswith("..") else beside


def _times(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} coordinates" if len(shape) == 1 else " x ".join(map(str, shape))


if __name__ == "__main__":
    cli.command("evaluate", evaluate, prepare=prepare)
