"""The two power-function averages of a run: their recursion, their snapshots, and that they go on exactly."""

import copy

import pytest
import torch
from lightning import LightningModule
from torch import nn

from triptych.callback import PowerEMA
from triptych.posthoc import Snapshot, decay, exponent, rebuild


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(20, 20)


class Data:
    global_batch_size = 10


class FakeTrainer:
    is_global_zero, datamodule = True, Data()

    def __init__(self, folder):
        self.global_step, self.default_root_dir = 0, folder


def train(callback, module, trainer, steps):
    for _ in range(steps):
        trainer.global_step += 1
        generator = torch.Generator().manual_seed(trainer.global_step)
        with torch.no_grad():
            for p in module.parameters():
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
        callback.on_train_batch_end(trainer, module)


def begun(folder, **options):
    callback, module, trainer = PowerEMA(**options), Module(), FakeTrainer(folder)
    callback.on_train_start(trainer, module)
    return callback, module, trainer


def test_is_the_recursion_written_out(tmp_path):
    callback, module, trainer = begun(tmp_path, every_steps=2)
    expected, gamma = torch.zeros(20, 20), exponent(0.1)
    for step in range(1, 11):
        train(callback, module, trainer, 1)
        if step % 2 == 0:
            expected.lerp_(module.net.weight.detach(), 1 - decay(step - 2, step, gamma))
    torch.testing.assert_close(callback._averages[0.1]["net.weight"], expected)


def test_snapshots_double_their_interval_and_need_not_know_how_long_a_run_will_be(tmp_path):
    callback, module, trainer = begun(tmp_path, every_images=20, keep=8, every_steps=3)
    train(callback, module, trainer, 16)
    assert [s.images for s in Snapshot.of(tmp_path / "ema")] == list(range(20, 161, 20))
    train(callback, module, trainer, 24)
    assert [s.images for s in Snapshot.of(tmp_path / "ema")] == list(range(80, 401, 80))
    callback.on_train_end(trainer, module)
    train(callback, module, trainer, 3)
    callback.on_train_end(trainer, module)
    assert [s.images for s in Snapshot.of(tmp_path / "ema")] == [*range(80, 401, 80), 430]


def test_the_last_snapshot_is_of_the_very_last_step_and_leaves_the_averages_alone(tmp_path):
    callback, module, trainer = begun(tmp_path, every_steps=4, dtype="float32")
    train(callback, module, trainer, 10)
    before = callback._averages[0.05]["net.weight"].clone()
    callback.on_train_end(trainer, module)
    kept = decay(80, 100, exponent(0.05))
    expected = kept * before + (1 - kept) * module.net.weight.detach()
    stored = dict(Snapshot.of(tmp_path / "ema")[-1].tensors(0.05))["net.weight"]
    torch.testing.assert_close(stored, expected)
    assert torch.equal(callback._averages[0.05]["net.weight"], before)


def test_goes_on_bitwise_and_forgets_snapshots_of_a_future_that_was_lost(tmp_path):
    straight, module, trainer = begun(tmp_path / "straight", every_images=50)
    train(straight, module, trainer, 30)
    first, half, short = begun(tmp_path / "two", every_images=50)
    train(first, half, short, 14)
    checkpoint = {}
    first.on_save_checkpoint(short, half, checkpoint)
    checkpoint, weights = copy.deepcopy((checkpoint, half.state_dict()))
    train(first, half, short, 8)  # lost: killed before the next checkpoint
    assert Snapshot.of(tmp_path / "two" / "ema")[-1].images == 200
    second, again = PowerEMA(every_images=50), Module()
    again.load_state_dict(weights)
    resumed = FakeTrainer(tmp_path / "two")
    resumed.global_step = 14
    second.on_load_checkpoint(resumed, again, checkpoint)
    second.on_train_start(resumed, again)
    assert Snapshot.of(tmp_path / "two" / "ema")[-1].images == 100
    train(second, again, resumed, 16)
    for length, average in straight._averages.items():
        assert all(torch.equal(v, second._averages[length][k]) for k, v in average.items())
    one, two = (rebuild(Snapshot.of(tmp_path / name / "ema"), 0.15) for name in ("straight", "two"))
    assert all(torch.equal(v, two[k]) for k, v in one.items())


def test_a_full_disk_is_said_once_and_training_goes_on(tmp_path, capsys):
    (tmp_path / "ema").write_text("in the way")
    callback, module, trainer = begun(tmp_path, every_images=20)
    train(callback, module, trainer, 8)
    assert capsys.readouterr().out.count("could not be written") == 1


def test_lengths_cannot_change_under_a_run(tmp_path):
    callback, module, trainer = begun(tmp_path)
    checkpoint = {}
    callback.on_save_checkpoint(trainer, module, checkpoint)
    other = PowerEMA(lengths=(0.05, 0.2))
    other.on_load_checkpoint(trainer, module, checkpoint)
    with pytest.raises(ValueError, match=r"lengths cannot change .* it has 0.05, 0.1"):
        other.on_train_start(trainer, module)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"every_images": 0}, "every_images must be a whole number of at least 1"),
        ({"lengths": [0.05]}, "two different lengths"),
        ({"lengths": [0.05, 0.5]}, "above 0 and at most 0.28"),
        ({"dtype": "int8"}, "one of float16, bfloat16, float32"),
    ],
)
def test_refusals(wrong, words):
    with pytest.raises(ValueError, match=words):
        PowerEMA(**wrong)
