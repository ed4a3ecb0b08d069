"""compile=: what cannot be is refused before any work; what can goes with averages, processes and checkpoints."""

import shutil

import pytest
import torch
from scripts import shell

from triptych import compilation, run
from triptych.model import UNet


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
