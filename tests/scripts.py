"""Running train.py, sample.py and evaluate.py: in this process, which is fast, or in one of their own."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

ROOT = Path(__file__).parents[1]

TINY = (  # a network that trains in a second
    "model.channels=8",
    "model.blocks=1",
    "model.multipliers=[1]",
    "formulation.warmup_steps=5",
    "global_batch_size=16",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=10",
    "trainer.val_check_interval=15",
    "callback.ema.half_life=500",
    "callback.power_ema.every_images=32",
    "callback.samples.count=4",
    "callback.samples.strip=2",
    "callback.samples.sampler.steps=4",
    "callback.evaluate.num_samples=32",
    "callback.evaluate.block=16",
    "callback.evaluate.every_images=null",
    "callback.likelihood.num_images=4",
    "callback.vlb.num_images=2",
)


@dataclass
class Result:
    code: int
    out: str
    err: str


def call(script, *arguments, cwd=None):
    """Runs `python <script> <arguments>` in this process; environment, arguments and folder are as before after.

    A script that starts other processes needs `shell`: the group it joins would outlive it, and hang a later test.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ),
        mock.patch.object(sys, "argv", [str(ROOT / script), *map(str, arguments)]),
        contextlib.chdir(cwd or os.getcwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        os.environ.pop("HYDRA_FULL_ERROR", None)
        code = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    assert not torch.distributed.is_initialized(), f"{script} {arguments} belongs into a process of its own"
    return Result(code, out.getvalue(), err.getvalue())


def shell(script, *arguments, cwd=None, timeout=300, environment=None):
    """The same in a process of its own, as a user would."""
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def assert_equal(a, b, where):
    """Of two nests of dicts and lists: every tensor bit for bit, and everything else."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}.{i}")
    else:
        assert a == b, where
