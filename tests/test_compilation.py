"""compile=: what cannot be is refused before any work; what can goes with averages, processes and checkpoints."""

import shutil

import pytest
import torch
from scripts import TINY, shell
from whole import job

from triptych import compilation, run
from triptych.callback import EMA
from triptych.model import UNet

QUIET = ("trainer.val_check_interval=1000", "callback.samples.every_images=null", "callback.evaluate.num_samples=0")
QUIET += ("callback.likelihood.num_images=0", "callback.vlb.num_images=0")


@pytest.mark.parametrize("compile", [True, "reduce-overhead"])
def test_no_compiler_no_compiling(monkeypatch, compile):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    compilation.check(False, "32-true", "cpu")
    with pytest.raises(ValueError, match="needs a C.. compiler, and there is none: install g.., or set compile=false"):
        compilation.check(compile, "32-true", "cpu")
    monkeypatch.setenv("CXX", "nog++")
    with pytest.raises(ValueError, match="there is no nog.., which CXX names"):
        compilation.check(compile, "32-true", "cpu")


@pytest.mark.parametrize(
    ("compile", "precision", "words"),
    [
        ("fast", "32-true", "compile must be false, true, or one of reduce-overhead, max-autotune"),
        (False, "16-mixed", "precision=16-mixed needs a GPU: on a CPU choose trainer.precision=bf16-mixed"),
        (False, "16-true", "precision=16-true needs a GPU"),
    ],
)
def test_refused(compile, precision, words):
    with pytest.raises(ValueError, match=words):
        compilation.check(compile, precision, "cpu")


def test_a_device_without_float64_is_refused():
    """Of an Apple: schedules would end in a TypeError."""
    with pytest.raises(ValueError, match="no float64.*set trainer.accelerator=cpu"):
        compilation.check(False, "32-true", "mps")


def test_graphs_and_accumulated_gradients_do_not_go_together():
    """PyTorch would say so at the second micro-batch, in words about its own memory (pytorch#169545)."""
    with pytest.raises(ValueError, match="accumulate_grad_batches=2 would add up: choose compile=true"):
        compilation.check("reduce-overhead", "32-true", "cuda", 2)
    compilation.check("reduce-overhead", "32-true", "cpu", 2)  # no graphs there


def test_what_a_graph_returns_outlives_its_next_replay(monkeypatch):
    """A graph writes its output where the last one is, which a multistep sampler keeps."""
    memory = torch.zeros(3)

    class Graph(torch.nn.Module):
        def forward(self, x, c_noise, cond=None):
            return memory.copy_(x)

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    network = Graph()
    compilation.compiled(network, "reduce-overhead", "cpu")
    first, second = network(torch.ones(3), None), network(2 * torch.ones(3), None)
    assert first.tolist() == [1, 1, 1] and second.tolist() == [2, 2, 2]


def test_half_precision_of_a_gpu_and_of_bfloat16_is_not_refused():
    compilation.check(False, "16-mixed", "cuda")
    compilation.check(False, "bf16-mixed", "cpu")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of importing its compiler
def test_names_stay():
    network = UNet(1, 1, 8, 8, (1,), 1, ())
    before = list(network.state_dict())
    compilation.compiled(network, True, "cpu")
    assert list(network.state_dict()) == before and network._compiled_call_impl is not None


@pytest.mark.slow
def test_compiling_goes_together_with_averages_two_processes_and_checkpoints(tmp_path):
    """T-D9, T-E9."""
    folder = tmp_path / "run"
    little = [f"callback.{c}=0" for c in ("evaluate.num_samples", "likelihood.num_images", "vlb.num_images")]
    toy = ("dataset=toy", "model.hidden=16", "model.layers=1", "trainer.accelerator=cpu", "trainer.max_steps=5")
    done = shell(
        "train.py",
        *("compile=true", "trainer=ddp", "trainer.devices=2", *toy, *little, "logger=none"),
        *("callback.samples.count=1", "callback.samples.sampler.steps=1", f"hydra.run.dir={folder}"),
        timeout=500,
    )
    assert done.code == 0, done.err
    stored = run.read_checkpoint(folder)
    assert stored["global_step"] == 5 and not any("_orig_mod" in name for name in stored["state_dict"])
    assert set(stored["ema"]["shadow"]) == {name for name, _ in run.load(folder).named_parameters()}
    assert torch.isfinite(run.load(folder)(torch.zeros(3, 2), torch.full((3,), 0.5))).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_network_laid_out_for_a_gpu_goes_on_bit_for_bit(tmp_path):
    """Its weights are channels_last and a checkpoint's tensors contiguous: what is loaded is given the weights' layout,
    without which a fused optimizer on a GPU refuses, and one on a CPU pairs the wrong numbers."""

    def go_on(folder, steps, checkpoint=None):
        torch.manual_seed(0)
        trainer, formulation, dataset = job(folder, *TINY, *QUIET, f"trainer.max_steps={steps}")
        formulation.model.to(memory_format=torch.channels_last)
        trainer.fit(formulation, datamodule=dataset, ckpt_path=checkpoint, weights_only=True)
        (optimizer,) = trainer.optimizers
        average = next(c for c in trainer.callbacks if isinstance(c, EMA))
        for name, p in formulation.named_parameters():
            assert optimizer.state[p]["exp_avg"].stride() == average._shadow[name].stride() == p.stride()
        return {name: p.detach() for name, p in formulation.named_parameters()}

    whole = go_on(tmp_path / "whole", 8)
    go_on(tmp_path / "parts", 4)
    parts = go_on(tmp_path / "parts", 8, tmp_path / "parts" / "checkpoints" / "last.ckpt")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
