"""A network shared out over two processes is the network: loss, gradients, averages, checkpoints, sampling."""

import shutil

import pytest
import torch
import torch.distributed
from networks import awake
from processes import in_two, queue
from scripts import TINY, assert_equal, call, shell
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from triptych import run, shard
from triptych.formulation import DDPM
from triptych.model import MLP, NCSN, DiT, NCSNpp, UNet
from triptych.schedule import LinearBeta

NETWORKS = {
    "unet": lambda: UNet(3, 3, 8, 16, (1, 2), 1, (4,), dropout=0.0, checkpointing=True),
    "ncsnpp": lambda: NCSNpp(3, 3, 8, 16, (1, 2), 1, (4,), dropout=0.0, encoder="residual", decoder="skip"),
    "dit": lambda: DiT(3, 3, 8, 2, 32, 2, 4),
    "mlp": lambda: MLP(2, 2, 32, 2),
    "ncsn": lambda: NCSN(3, 3, 8, levels=10, channels=8),
}


def network(name):
    torch.manual_seed(0)
    return awake(NETWORKS[name](), 0.05)


def batch(name):
    generator = torch.Generator().manual_seed(1)
    shape = (4, 2) if name == "mlp" else (4, 3, 8, 8)
    x, target = (torch.randn(shape, generator=generator) for _ in range(2))
    return x, torch.tensor([0.0, 3.0, 5.0, 9.0]), target


def loss_of(model, x, c_noise, target):
    return (model(x, c_noise) - target).square().mean()


def compare(rank, found):
    """In each of two processes: half a batch through a sharded network against all of it through a whole one."""
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    for name in NETWORKS:
        one, two, inputs = network(name), network(name), batch(name)
        shard.shard(two, mesh)
        shard.shard(two, mesh)  # once more changes nothing
        loss = loss_of(one, *inputs)
        loss.backward()
        half = loss_of(two, *(v[2 * rank : 2 * rank + 2] for v in inputs))
        half.backward()
        mean = half.detach().clone()
        torch.distributed.all_reduce(mean)
        torch.testing.assert_close(mean / 2, loss.detach(), msg=name)
        for (key, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
            assert isinstance(q, DTensor), (name, key)
            if p.grad is not None:
                torch.testing.assert_close(shard.whole(q.grad), p.grad, atol=1e-5, rtol=1e-4, msg=f"{name} {key}")
        assert sum(shard.local(q).numel() for q in two.parameters()) < 0.8 * sum(p.numel() for p in one.parameters())
        with torch.no_grad(), shard.gathered(two):  # one process calls oftener than the other, and neither waits
            for _ in range(1 + rank):
                out = two(*inputs[:2])
        torch.testing.assert_close(out, one(*inputs[:2]).detach(), msg=name)
        assert all(isinstance(q, DTensor) for q in two.parameters())
        average = shard.placed_like(torch.ones_like(p), q)
        assert average.placements == q.placements and torch.equal(shard.whole(average), torch.ones_like(p))
        found.put((rank, name))


@pytest.mark.slow
def test_a_sharded_network_is_the_network():
    """The loss and the gradients of one global batch are those of one process; sampling needs no other process."""
    found = queue()
    in_two(compare, found)
    assert {found.get(timeout=5) for _ in range(2 * len(NETWORKS))} == {
        (r, name) for r in range(2) for name in NETWORKS
    }


UNEVEN = ("callback.evaluate.num_samples=40", "callback.likelihood.num_images=3")  # 3 blocks, 3 images, 2 processes
SHARDED = ("trainer=fsdp", "trainer.devices=2", *TINY, *UNEVEN, "logger=none", "sampler.steps=3")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_sharded_run_loads_everywhere_and_goes_on_with_two_processes_or_one(tmp_path):
    """On two, bit for bit; on one, with the warning. The scripts read its folder, and the file made of it."""
    folder, again = tmp_path / "run", tmp_path / "again"
    milestones = ("callback.checkpoint.milestone_images=128", "callback.checkpoint.every_images=64")
    done = shell("train.py", *SHARDED, *milestones, "trainer.max_steps=16", f"hydra.run.dir={folder}", timeout=400)
    assert done.code == 0, done.err
    shares = sorted(p.name for p in (folder / "checkpoints" / "last.ckpt").iterdir())
    assert len(shares) == 3 and shares[0] == "meta.pt" and all(name.startswith("step=16-") for name in shares[1:])
    stored = run.read_checkpoint(folder)
    formulation = run.load(folder)
    for name, p in formulation.named_parameters():
        assert torch.equal(p, stored["ema"]["shadow"][name]) and not torch.equal(p, stored["state_dict"][name])
    assert torch.isfinite(run.load(folder, weights="ema=0.10")(torch.zeros(1, 1, 8, 8), torch.tensor([0.5]))).all()

    shutil.copytree(folder, again)
    for name in ("last.ckpt", "step=16.ckpt"):
        shutil.rmtree(again / "checkpoints" / name)
    done = shell("train.py", f"resume={again}", *LITTLE, timeout=400)
    assert done.code == 0 and "from step 8" in done.out, done.err
    resumed = run.read_checkpoint(again)
    for key in ("state_dict", "ema", "power_ema", "optimizer_states", "lr_schedulers", "global_step"):
        assert_equal(resumed[key], stored[key], key)

    one, cpu = tmp_path / "one.ckpt", ("trainer=cpu", "trainer.devices=1")
    assert call("tools/consolidate.py", f"run={folder}", f"out={one}").code == 0
    assert_equal(run.read_checkpoint(one), stored, "consolidated")
    outs = [tmp_path / "of_folder", tmp_path / "of_file"]
    for path, out in zip((folder / "checkpoints" / "last.ckpt", one), outs, strict=True):
        done = call("sample.py", f"run={path}", "num_samples=4", "sampler=ddim", "sampler.steps=2", f"out={out}")
        assert done.code == 0, done.err
    first, second = ((out / "samples.npz").read_bytes() for out in outs)
    assert first == second
    done = call("train.py", f"resume={folder}", *cpu, "trainer.max_steps=20", *LITTLE)
    assert done.code == 0 and "16 images a step = 1 process x 1 accumulated x 16" in done.out, done
    assert "processes 2 -> 1" in done.out and run.read_checkpoint(folder)["global_step"] == 20
    assert (folder / "checkpoints" / "last.ckpt").is_file()  # and it is one file from now on


LITTLE = [f"callback.{c}=0" for c in ("evaluate.num_samples", "likelihood.num_images", "vlb.num_images")]


def test_one_device_is_refused_in_a_sentence(tmp_path):
    done = call("train.py", "trainer=fsdp", *TINY, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 2 and "there is one: set trainer.devices=2" in done.err and not (tmp_path / "run").exists()


class Two:
    """A trainer that would start two processes."""

    world_size = 2

    def __init__(self):
        self.strategy = shard.Sharded()


def test_what_cannot_be_sharded_is_refused():
    formulation = DDPM(model=UNet(1, 1, 8, 8, (1,), 1, ()), schedule=LinearBeta())
    shard.check(Two(), formulation, compiled=False)
    with pytest.raises(ValueError, match="compile=true and trainer=fsdp"):
        shard.check(Two(), formulation, compiled=True)
    formulation.register_parameter("ends", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(ValueError, match="ends is trained too"):
        shard.check(Two(), formulation, compiled=False)
