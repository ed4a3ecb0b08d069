"""The search for the largest batch, on a memory that is known; the real one is a GPU's."""

import pytest
import torch
from scripts import TINY, call
from whole import composed

from triptych import find_batch
from triptych.formulation.ddpm import DDPM
from triptych.signals import Asked


@pytest.mark.parametrize("start", [1, 64, 100, 4096])
@pytest.mark.parametrize("room", [0, 1, 2, 3, 63, 64, 65, 1000, 50_000])
def test_the_largest_is_found_to_an_eighth(start, room):
    tried = []
    found = find_batch.largest(lambda n: tried.append(n) or n <= room, start, limit=50_000)
    assert found <= room and (room == 0 or found >= room * 8 / 9 - 1)
    assert len(tried) == len(set(tried)) < 24 and min(tried, default=1) >= 1 and max(tried) <= 50_000
    assert found == 50_000 if room == 50_000 else found in (0, *tried)


@pytest.mark.parametrize(
    ("most", "batch", "devices", "words"),
    [
        (512, 128, 1, "on 1 device:  trainer.accumulate_grad_batches=1"),
        (40, 128, 1, "accumulate_grad_batches=4"),  # 3 does not divide it
        (40, 96, 2, "on 2 devices:  trainer.accumulate_grad_batches=2"),
        (2, 9, 3, "accumulate_grad_batches=3"),
        (2, 8, 3, "cannot be split evenly over 3 devices"),
        (0, 8, 1, "Not one image fits"),
    ],
)
def test_what_to_type(most, batch, devices, words):
    assert words in find_batch.advice(most, batch, devices, everything=False)


@pytest.mark.filterwarnings("ignore")
def test_a_trial_is_a_training_step_with_its_averages(monkeypatch):
    steps, loss = [], DDPM.loss

    def limited(self, x_0, *arguments):
        steps.append(len(x_0))
        if len(x_0) > 40:
            raise torch.OutOfMemoryError("no room")
        return loss(self, x_0, *arguments)

    monkeypatch.setattr(DDPM, "loss", limited)
    with composed("trainer=cpu", "trainer.accumulate_grad_batches=2", *TINY) as config:
        fits = lambda n: find_batch.trial(config, Asked(), n)  # noqa: E731
        assert find_batch.largest(fits, 16, 1797) in range(36, 41)
        assert config.global_batch_size == 16 and steps.count(32) == find_batch.STEPS


def test_a_cpu_is_refused_in_a_sentence(tmp_path):
    done = call("train.py", "find_batch=true", *TINY, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 2 and "on a CPU: leave it out" in done.err and not (tmp_path / "run").exists()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_filled(tmp_path):
    done = call("train.py", "find_batch=true", "trainer.accelerator=gpu", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 0 and "images a device fit" in done.out and not (tmp_path / "run").exists()
