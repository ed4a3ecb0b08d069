"""One process and two: the same loss and gradients, the same distribution of losses, the same bits by any launcher."""

import multiprocessing
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import ports
from scripts import ROOT, assert_equal
from test_reliability import SHORT, rows
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from triptych import conf, run
from triptych.formulation import DDPM
from triptych.noise import Step, from_generator
from triptych.schedule import LinearBeta

BATCH, STEPS = 32, 80


class Net(nn.Module):
    """Points in the plane and log-SNR -> eps."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, x, c_noise, cond=None):
        return self.layers(torch.cat([x, c_noise[:, None] / 1000], 1))


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.formulation = DDPM(model=Net(), schedule=LinearBeta())

    def forward(self, x_0, t, eps):
        return self.formulation.loss(x_0, t, noise=lambda like: eps)


def given(rank, world, _):
    """Loss and gradients of one global batch, times and noise passed in."""
    source = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, BATCH, 2, generator=source)
    t = torch.randint(1, 1001, (BATCH,), generator=source) / 1000
    share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    loss = Loss() if world == 1 else DistributedDataParallel(Loss())
    values = loss(x_0[share], t[share], eps[share])
    values.mean().backward()
    return values.detach(), [p.grad for p in loss.parameters()]


def curve(rank, world, seed):
    """The losses of a short training, as `Formulation.training_step` draws them."""
    data = torch.randn(4096, 2, generator=torch.Generator().manual_seed(1)) * 0.3 + torch.tensor([0.5, -0.5])
    module = Loss()
    loss = module if world == 1 else DistributedDataParallel(module)
    optimizer, each, losses = torch.optim.Adam(module.parameters(), 1e-2), BATCH // world, []
    for k in range(STEPS):
        step = Step(seed, (k, 0), rank, world)
        t, _ = module.formulation.times.draw(module.formulation.schedule, each, step)
        begin = (k * BATCH + rank * each) % 4096
        x_0 = data[begin : begin + each]
        values = loss(x_0, t, from_generator(step.local("noise"))(x_0))
        optimizer.zero_grad()
        values.mean().backward()
        optimizer.step()
        losses.append(values.mean().item())
    return losses


def _rank(task, rank, world, port, argument, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    results.put((rank, task(rank, world, argument)))
    dist.barrier()
    dist.destroy_process_group()


def on_two(task, argument=None):
    """The results of two processes, forked, so that nothing is imported anew."""
    context, port = multiprocessing.get_context("fork"), ports()[0]
    results = context.SimpleQueue()
    processes = [context.Process(target=_rank, args=(task, r, 2, port, argument, results)) for r in range(2)]
    for p in processes:
        p.start()
    found = dict(results.get() for _ in processes)
    for p in processes:
        p.join(60)
    return found[0], found[1]


@pytest.mark.filterwarnings("ignore")
def test_one_global_batch_has_the_same_loss_and_gradients_on_one_process_and_two():
    losses, gradients = given(0, 1, None)
    first, second = on_two(given)
    torch.testing.assert_close(torch.cat([first[0], second[0]]), losses, rtol=1e-6, atol=1e-7)
    for one, a, b in zip(gradients, first[1], second[1], strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, one, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_the_loss_curve_on_two_processes_agrees_in_distribution_and_ranks_draw_differently():
    ends = {1: [], 2: []}
    for seed in range(4):
        ends[1].append(statistics.mean(curve(0, 1, seed)[STEPS // 2 :]))
        a, b = on_two(curve, seed)
        assert all(x != y for x, y in zip(a, b, strict=True))  # T-D2
        ends[2].append(statistics.mean(a[STEPS // 2 :] + b[STEPS // 2 :]))
    error = sum(statistics.variance(v) / len(v) for v in ends.values()) ** 0.5
    assert abs(statistics.mean(ends[1]) - statistics.mean(ends[2])) < 4 * error
    assert error < 0.05 * statistics.mean(ends[1])  # else this would say nothing


@pytest.mark.parametrize(
    ("environment", "devices", "nodes"),
    [
        ({}, 1, 1),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2"}, 4, 2),
        ({"SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3"}, 8, 2),
    ],
)
def test_the_launcher_says_how_many_processes_there_are(monkeypatch, environment, devices, nodes):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (conf.launched("devices", 1), conf.launched("nodes", 1)) == (devices, nodes)


@pytest.mark.slow
def test_two_nodes_by_torchrun_stopped_and_continued_are_two_processes_by_script_in_every_bit(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    common = [a for a in SHORT if not a.startswith("trainer.max_steps")] + ["resume=auto"]

    def torchrun(folder, steps):
        port = ports()[0]
        nodes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"),
                    *(f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}"),
                    *(str(ROOT / "train.py"), *common, f"trainer.max_steps={steps}", f"hydra.run.dir={folder}"),
                ],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for node in range(2)
        ]
        outs = [node.communicate(timeout=300)[0] for node in nodes]
        assert [node.returncode for node in nodes] == [0, 0], outs
        return outs[0]

    one, two = tmp_path / "torchrun", tmp_path / "script"
    assert "2 processes on 2 nodes x 1 accumulated x 8" in torchrun(one, 12)
    assert "from step 12" in torchrun(one, 24)
    script = [sys.executable, str(ROOT / "train.py"), *common, "trainer=ddp", "trainer.accelerator=cpu"]
    done = subprocess.run(
        [*script, "trainer.devices=2", "trainer.max_steps=24", f"hydra.run.dir={two}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    a, b = run.read_checkpoint(one), run.read_checkpoint(two)
    for key in ("state_dict", "ema", "optimizer_states", "lr_schedulers"):
        assert_equal(a[key], b[key], key)
    steps = [[row["step"] for row in rows(Path(folder))] for folder in (one, two)]
    assert steps[0] == steps[1] == sorted(set(steps[0]))

    # once more by script, with three bad steps on the second process alone: both go back, as if nothing had been
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('LOCAL_RANK') == '1':\n"
        "    from test_reliability import not_finite\n"
        "    not_finite({13, 14, 15}, only_once=True).__enter__()\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    three = tmp_path / "guarded"
    done = subprocess.run(
        [*script, "trainer.devices=2", "trainer.max_steps=24", f"hydra.run.dir={three}", "callback.guard.in_a_row=3"],
        env={**environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("from step 13 on") == 1 and "Going back to the checkpoint of step 12" in done.stdout
    assert sorted(p.name for p in (three / "guard").iterdir()) == [f"step=13-rank={rank}.json" for rank in range(2)]
    c = run.read_checkpoint(three)
    for key in ("state_dict", "ema", "optimizer_states", "lr_schedulers"):
        assert_equal(b[key], c[key], key)
    assert rows(three) == rows(two)
