"""What is taken from a step that serves nobody, and what is left."""

import pytest
from lightning import Callback
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.profilers import SimpleProfiler
from whole import job

from triptych.callback.hooks import EACH_STEP, Unprofiled, lighten, without_empty

LITTLE = (
    "dataset=toy",
    "model.hidden=8",
    "model.layers=1",
    "trainer.max_steps=3",
    "callback.samples.count=1",
    "callback.samples.sampler.steps=1",
    *(f"callback.{c}=0" for c in ("evaluate.num_samples", "likelihood.num_images", "vlb.num_images")),
)


class Seen(Callback):
    """Has one hook of a step, and notes each call of it."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps.append(trainer.global_step)


@pytest.mark.filterwarnings("ignore")
def test_hooks_that_do_something_are_called_and_empty_ones_are_passed_over(tmp_path):
    seen = Seen()
    trainer, formulation, dataset = job(tmp_path, *LITTLE, after=[seen])
    called = []
    formulation.on_after_backward = lambda: called.append(trainer.global_step)
    trainer.fit(formulation, datamodule=dataset)
    assert seen.steps == called == [0, 1, 2]
    assert [hook for hook in EACH_STEP if callable(getattr(seen, hook))] == ["on_before_optimizer_step"]
    assert [hook for hook in EACH_STEP if callable(getattr(formulation, hook))] == ["on_after_backward"]


def test_a_hook_that_an_object_was_given_is_left_to_it(tmp_path):
    def hook(*_):
        pass

    (callback,) = without_empty([LambdaCallback(on_train_batch_end=hook)])
    assert [name for name in EACH_STEP if callable(getattr(callback, name))] == ["on_train_batch_end"]
    trainer, formulation, _ = job(tmp_path, *LITTLE)
    formulation.on_after_backward = hook
    lighten(trainer, formulation)
    assert formulation.on_after_backward is hook


@pytest.mark.filterwarnings("ignore")
def test_a_profiler_that_was_chosen_times_every_hook(tmp_path):
    trainer, formulation, dataset = job(tmp_path, *LITTLE, "trainer.profiler=simple")
    trainer.fit(formulation, datamodule=dataset)
    assert isinstance(trainer.profiler, SimpleProfiler)
    assert len(trainer.profiler.recorded_durations["run_training_batch"]) == 3
    assert isinstance(job(tmp_path, *LITTLE)[0].profiler, Unprofiled)
