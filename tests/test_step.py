"""What a whole training step asks of the device, as train.py runs it: a count, which no other process disturbs."""

import pytest
from counting import Count
from lightning import Callback
from whole import job

STEPS = 12
UNET = (  # as many operators as DDPM's 35.7 M network: four levels, two blocks, attention at the second
    "model=unet",
    "model.channels=32",
    "model.attention=[4]",
    "global_batch_size=2",
    "trainer.val_check_interval=1000",
    f"trainer.max_steps={STEPS}",
    "callback.samples.every_images=null",
    "callback.samples.count=1",
    "callback.samples.strip=1",
    "callback.samples.sampler.steps=1",
    "callback.evaluate.every_images=null",
    *(f"callback.{c}=0" for c in ("evaluate.num_samples", "likelihood.num_images", "vlb.num_images")),
)


class Begin(Callback):
    """First of all callbacks."""

    def __init__(self):
        self.counts = []

    def on_train_batch_start(self, *_):
        self.counts.append(Count())
        self.counts[-1].__enter__()


class End(Callback):
    """Last of all callbacks."""

    def __init__(self, begin):
        self.begin = begin

    def on_train_batch_end(self, *_):
        self.begin.counts[-1].__exit__(None, None, None)


def counts(folder, *overrides):
    begin = Begin()
    trainer, formulation, dataset = job(folder, *UNET, *overrides, before=[begin], after=[End(begin)])
    trainer.fit(formulation, datamodule=dataset)
    return begin.counts[1:]  # the first allocates the optimizer's state, and is logged


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("formulation", ["ddpm", "edm", "flow_matching", "score_sde", "ncsn"])
def test_a_step_is_at_most_700_operators_and_reads_no_scalar(tmp_path, formulation):
    """Random draws, forward, backward, clip, optimizer, averages, all callbacks; diffusers: 3,500 to 5,100 and 200."""
    seen = counts(tmp_path, f"formulation={formulation}")
    assert len(seen) == STEPS - 1
    assert all(count.seen["convolution"] == 77 and count.seen["_fused_adam_"] == 1 for count in seen)
    assert all(count.seen["_foreach_lerp_"] in (1, 3) for count in seen)  # the averages, and that they are one operator
    assert max(count.total() for count in seen) <= 700
    assert max(count.scalar_reads for count in seen) == 0
