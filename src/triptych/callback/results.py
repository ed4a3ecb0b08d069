"""What becomes of a number that was measured while a model trains: a record, a line in the logs, a file."""

from collections.abc import Mapping
from pathlib import Path

from lightning import Trainer

from triptych import disk
from triptych.callback.checkpoint import checkpoint_of
from triptych.callback.clock import images_seen
from triptych.callback.ema import profile
from triptych.evaluation import Evaluator
from triptych.generate import Job, computing
from triptych.record import Record, short_count
from triptych.tracking import log_scalars


def report(
    trainer: Trainer,
    evaluator: Evaluator,
    values: Mapping[str, float],
    job: Job | None,
    count: int,
    kept: bool = True,
    raw: bool = False,
) -> list[Record]:
    """Logs the values, measured with the averaged weights or the raw ones, with their protocol; writes their records
    if `kept`.

    On rank 0 only; the others get no records.
    """
    if trainer.is_global_zero:
        records = _written(trainer, evaluator, values, job, count, kept, raw)
    else:
        records = []
    checkpoint = checkpoint_of(trainer)
    if checkpoint is not None:
        names = {name: f"{name}_{short_count(count)}" + "/raw" * raw for name in values}
        checkpoint.consider(trainer, {names[name]: value for name, value in values.items()})
    return records


def _written(
    trainer: Trainer,
    evaluator: Evaluator,
    values: Mapping[str, float],
    job: Job | None,
    count: int,
    kept: bool,
    raw: bool,
) -> list[Record]:
    records = []
    for name, value in values.items():
        record = evaluator.record(
            name,
            [value],
            job,
            count,
            weights="raw" if raw else profile(trainer),
            guidance=None,
            images_seen=images_seen(trainer),
            world_size=trainer.world_size,
            computing=computing(
                str(trainer.precision) if job else "32-true",  # likelihoods are never halved
                trainer.lightning_module.model,  # pyright: ignore[reportArgumentType]
                trainer.strategy.root_device,
                job.block if job else None,
            ),
            run=str(trainer.default_root_dir),
        )
        log_scalars(trainer.loggers, {record.metric + "/raw" * raw: value}, trainer.global_step, images_seen(trainer))
        if kept:
            with disk.forgiving("A record cannot be written"):
                record.write(Path(trainer.default_root_dir) / "evaluations")
        records.append(record)
    return records
