"""What Lightning and our callbacks add to a step: microseconds over a bare loop that does the same work.

    OMP_NUM_THREADS=1 python bench/overhead.py [--rounds 5] [--steps 1000]

A network of three small layers on points in the plane, so that a step is hardly more than its overhead. The bare loop
takes the same batches, draws the same times and noise, and does loss, backward, clip, optimizer, learning rate and the
average of the weights; the Trainer does it with every callback of conf/callback/default.yaml and metrics.csv, as
train.py builds them; Lightning's defaults are its own bar, CSV logger, checkpoint, and a self.log each step. CPU time,
rounds take turns. Target: 500 us a step, at most half of what Lightning's defaults add.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import lightning
import torch
from harness import finish, table
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from whole import job  # noqa: E402

from triptych.noise import Step, from_generator  # noqa: E402

SKIPPED = 100  # steps before the clock starts
OVERRIDES = (
    "dataset=toy",
    "model.hidden=16",
    "model.layers=1",
    "trainer.val_check_interval=100000",
    "callback.samples.every_images=null",
    "callback.samples.count=1",
    "callback.samples.sampler.steps=1",
    "callback.evaluate.every_images=null",
    *(f"callback.{c}=0" for c in ("evaluate.num_samples", "likelihood.num_images", "vlb.num_images")),
)


class Clock(Callback):
    """CPU seconds from one step to another."""

    def __init__(self, steps: int) -> None:
        self.steps, self.seconds = steps, 0.0

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == SKIPPED:
            self.began = time.process_time()

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.steps:
            self.seconds = time.process_time() - self.began


def ours(steps: int) -> float:
    clock = Clock(steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer, formulation, dataset = job(Path(folder), *OVERRIDES, f"trainer.max_steps={steps}", after=[clock])
        trainer.fit(formulation, datamodule=dataset)
    return clock.seconds


def defaults(steps: int) -> float:
    """The same formulation in a Trainer as Lightning makes it."""
    clock = Clock(steps)
    with tempfile.TemporaryDirectory() as folder:
        _, formulation, dataset = job(Path(folder), *OVERRIDES, f"trainer.max_steps={steps}")
        train = formulation.training_step

        def logged(batch, batch_idx):
            loss = train(batch, batch_idx)
            formulation.log("loss", loss, prog_bar=True)
            return loss

        formulation.training_step = logged
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            callbacks=[clock],
            logger=CSVLogger(folder),
            gradient_clip_val=1.0,
            limit_val_batches=0,
            use_distributed_sampler=False,
            enable_model_summary=False,
        )
        trainer.fit(formulation, datamodule=dataset)
    return clock.seconds


def bare(steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        _, formulation, dataset = job(Path(folder), *OVERRIDES)
    dataset.setup("fit")
    made = formulation.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    parameters = [p for p in formulation.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in parameters]
    formulation.train()
    batches, number = iter(dataset.train_dataloader()), 0
    while number < steps:
        if number == SKIPPED:
            began = time.process_time()
        x_0, cond = dataset.on_after_batch_transfer(next(batches))
        step = Step(0, (number, 0), 0, 1, x_0.device)
        step.seed_dropout()
        t, weight = formulation.times.draw(formulation.schedule, len(x_0), step)
        loss = formulation.loss(x_0, t, cond, from_generator(step.local("noise")))
        formulation.train_losses.add(loss, formulation.schedule.log_snr(t), weight)
        (weight * loss).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 0.001)
        number += 1
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    ways = {"bare loop": bare, "ours, everything on": ours, "Lightning's defaults": defaults}
    took: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(arguments.rounds + 1):
        for name, way in ways.items():
            with contextlib.redirect_stdout(None):  # the bar's lines
                seconds = way(arguments.steps) / (arguments.steps - SKIPPED)
            if i:
                took[name].append(seconds * 1e6)
    median = {name: statistics.median(t) for name, t in took.items()}
    over = {
        name: statistics.median(t - b for t, b in zip(times, took["bare loop"], strict=True))
        for name, times in took.items()
    }
    rows = [[name, f"{median[name]:.0f}", f"{min(took[name]):.0f}", f"{over[name]:.0f}"] for name in ways]
    table(["us a step", "median", "best", "over the bare loop"], rows)
    finish("overhead", steps=arguments.steps, rounds=arguments.rounds, microseconds=median, over=over)


if __name__ == "__main__":
    main()
