"""The averaged weights, and the ways they go wrong elsewhere."""

import pytest
import torch
from lightning import LightningModule
from torch import nn

from triptych.callback import EMA


class Module(LightningModule):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 2, dtype=dtype), nn.BatchNorm1d(2))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)


class Data:
    global_batch_size = 64


class FakeTrainer:
    def __init__(self):
        self.global_step, self.datamodule = 0, Data()


def move(module, seed):
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))


def started(ema, module, trainer=None):
    trainer = trainer or FakeTrainer()
    ema.on_fit_start(trainer, module)
    return trainer


def step(ema, module, trainer, seed):
    move(module, seed)
    trainer.global_step += 1
    ema.on_train_batch_end(trainer, module)


def test_is_the_recursion_written_out():
    module, ema = Module(), EMA(half_life=None, decay=0.9, warmup=False)
    trainer = started(ema, module)
    expected = module.net[0].weight.detach().clone()
    for seed in range(5):
        step(ema, module, trainer, seed)
        expected = 0.9 * expected + 0.1 * module.net[0].weight.detach()
    with ema.apply(module):
        torch.testing.assert_close(module.net[0].weight.detach(), expected)


def test_warmup_forgets_the_initialisation():  # T-E1
    ema = EMA(half_life=None, decay=0.9999)
    assert ema.decay(1, 64) == 2 / 11 and ema.decay(10**7, 64) == 0.9999
    ramped = EMA(half_life=500_000, ramp=0.05)
    kept = 1.0
    for k in range(1, 2000):
        kept *= ramped.decay(k, 128)
    assert kept < 1e-6


@pytest.mark.parametrize("batch", [32, 512])
def test_half_life_is_in_images(batch):  # T-E2
    ema = EMA(half_life=10_240, ramp=None)
    kept = 1.0
    for k in range(1, 10_240 // batch + 1):
        kept *= ema.decay(k, batch)
    assert kept == pytest.approx(0.5)


def test_a_micro_batch_does_not_count():  # T-E3
    module, ema = Module(), EMA(half_life=None, decay=0.5, warmup=False)
    trainer = started(ema, module)
    before = {k: v.clone() for k, v in ema._shadow.items()}
    move(module, 1)
    ema.on_train_batch_end(trainer, module)  # the same optimizer step goes on
    assert all(torch.equal(before[k], v) for k, v in ema._shadow.items())


def test_trained_parameters_only_and_no_buffers():  # T-E7
    module, ema = Module(), EMA()
    started(ema, module)
    assert set(ema._shadow) == {"net.0.weight", "net.0.bias", "net.1.weight", "net.1.bias"}


def test_shadow_of_bfloat16_weights_is_float32():  # T-E8
    module, ema = Module(torch.bfloat16), EMA(half_life=None, decay=0.9999, warmup=False)
    trainer = started(ema, module)
    start = ema._shadow["net.0.weight"].clone()
    for _ in range(20):
        step(ema, module, trainer, 3)
    moved = (ema._shadow["net.0.weight"] - start).abs().max()
    assert ema._shadow["net.0.weight"].dtype == torch.float32 and 0 < moved < 0.02


def test_apply_survives_an_exception_and_nesting():
    module, ema = Module(), EMA(half_life=None, decay=0.5, warmup=False)
    trainer = started(ema, module)
    step(ema, module, trainer, 4)
    raw = module.net[0].weight.detach().clone()
    with pytest.raises(RuntimeError, match="stop"), ema.apply(module), ema.apply(module):
        assert not torch.equal(module.net[0].weight, raw)
        raise RuntimeError("stop")
    assert torch.equal(module.net[0].weight, raw)


def test_a_save_in_the_middle_of_validation_keeps_raw_and_average_apart():  # T-E5
    module, ema = Module(), EMA(half_life=None, decay=0.5, warmup=False)
    trainer = started(ema, module)
    step(ema, module, trainer, 5)
    raw = {k: v.clone() for k, v in module.state_dict().items()}
    ema.on_validation_start(trainer, module)
    checkpoint = {"state_dict": {k: v.clone() for k, v in module.state_dict().items()}}
    assert not torch.equal(checkpoint["state_dict"]["net.0.weight"], raw["net.0.weight"])
    ema.on_save_checkpoint(trainer, module, checkpoint)
    assert all(torch.equal(checkpoint["state_dict"][k], v) for k, v in raw.items())
    assert torch.equal(checkpoint["ema"]["shadow"]["net.0.weight"], module.net[0].weight)
    ema.on_exception(trainer, module, RuntimeError())
    assert torch.equal(module.net[0].weight, raw["net.0.weight"])


def test_is_restored_under_its_own_key():
    module, ema = Module(), EMA(half_life=None, decay=0.5, warmup=False)
    trainer = started(ema, module)
    step(ema, module, trainer, 6)
    checkpoint = {"state_dict": {}}
    ema.on_save_checkpoint(trainer, module, checkpoint)
    again, other = EMA(half_life=None, decay=0.5, warmup=False), Module()
    again.on_load_checkpoint(trainer, other, checkpoint)
    started(again, other, trainer)
    assert all(torch.equal(v, ema._shadow[k]) for k, v in again._shadow.items())
    assert again._shadow["net.0.weight"].data_ptr() != checkpoint["ema"]["shadow"]["net.0.weight"].data_ptr()


@pytest.mark.parametrize("order", ["load, start", "start, load", "trained before, load, start"])
def test_is_restored_whenever_lightning_loads_it(order):
    """Before a fit starts; after it, where a network is sharded; and in a Trainer that has been through one."""
    module, source = Module(), EMA()
    trainer = started(source, module)
    step(source, module, trainer, 1)
    checkpoint = {"state_dict": module.state_dict()}
    source.on_save_checkpoint(trainer, module, checkpoint)
    ema = source if order.startswith("trained") else EMA()
    move(module, 2)
    for what in order.split(", ")[-2:]:
        ema.on_load_checkpoint(trainer, module, checkpoint) if what == "load" else ema.on_fit_start(trainer, module)
    ema.on_train_start(trainer, module)
    stored = checkpoint["ema"]["shadow"]["net.0.weight"]
    with ema.apply(module):
        assert torch.equal(module.net[0].weight, stored)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_names_do_not_know_of_compiling():  # T-E9
    module, ema = Module(), EMA()
    module.net = torch.compile(module.net)  # only the wrapper: nothing is compiled before a call
    started(ema, module)
    assert set(ema._shadow) == {"net.0.weight", "net.0.bias", "net.1.weight", "net.1.bias"}


@pytest.mark.parametrize(
    "wrong", [{"half_life": 0}, {"half_life": None}, {"decay": 0.9}, {"half_life": None, "decay": 1}]
)
def test_refuses_what_is_no_average(wrong):
    with pytest.raises(ValueError, match="EMA"):
        EMA(**wrong)
