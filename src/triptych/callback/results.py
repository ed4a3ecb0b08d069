"""What becomes of a number that was measured while a model trains: a record, a line in the logs, a file."""

from collections.abc import Mapping
from pathlib import Path

from lightning import Trainer

from triptych.callback.clock import images_seen
from triptych.callback.ema import profile
from triptych.evaluation import Evaluator
from triptych.generate import Job
from triptych.record import Record
from triptych.tracking import log_scalars


def report(
    trainer: Trainer, evaluator: Evaluator, values: Mapping[str, float], job: Job | None, count: int, kept: bool = True
) -> list[Record]:
    """Logs the values, measured with the averaged weights, with their protocol; writes their records if `kept`.

    On rank 0 only; the others get no records.
    """
    if not trainer.is_global_zero:
        return []
    records = []
    for name, value in values.items():
        record = evaluator.record(
            name,
            [value],
            job,
            count,
            weights=profile(trainer),
            guidance=None,
            images_seen=images_seen(trainer),
            world_size=trainer.world_size,
            run=str(trainer.default_root_dir),
        )
        log_scalars(trainer.loggers, {record.metric: value}, trainer.global_step, images_seen(trainer))
        if kept:
            record.write(Path(trainer.default_root_dir) / "evaluations")
        records.append(record)
    return records
