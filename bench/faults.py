"""What clusters do to a run, counted: python bench/faults.py [kills=50] [signals=5] [others=3] [only=...] [folder=...]

only: some of truncated,numbers,vanished,wandb,full,readonly, separated by commas; else all of them.

One process imports torch once and forks every trial, which runs train.py itself; so a start costs half a second. Each
fault is injected at a random moment, the same command (resume=auto) is given again until the run has ended, and what
it leaves is compared bit for bit (weights, average, optimizer, every number of metrics.csv) with a run that nothing
happened to. Faults of disks need root, for a mount; without it they are left out.
"""

import contextlib
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "offline"
ROOT = Path(__file__).parents[1]
STEPS, LONG = 40, 200
TINY = (
    "model.channels=8 model.blocks=1 model.multipliers=[1] model.dropout=0.1 formulation.warmup_steps=5 "
    "global_batch_size=16 trainer=cpu trainer.log_every_n_steps=10 trainer.val_check_interval=15 "
    f"trainer.max_steps={STEPS} callback.ema.half_life=500 callback.samples.count=4 callback.samples.strip=2 "
    "callback.samples.sampler.steps=2 callback.samples.every_images=320 callback.evaluate.every_images=480 "
    "callback.evaluate.fast_num_samples=16 callback.evaluate.num_samples=16 callback.evaluate.block=16 "
    "sampler.steps=2 callback.likelihood.num_images=0 callback.vlb.num_images=0 callback.checkpoint.every_images=32"
).split()


def start(folder, *arguments, patch=None):
    """Forks a trial: train.py with these arguments, its output in <folder>.log; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    os.setpgid(0, 0)
    log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    sys.argv = ["train.py", *TINY, "resume=auto", f"hydra.run.dir={folder}", *arguments]
    code = 0
    try:
        with patch or contextlib.nullcontext():
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def ended(pid, wait=600.0):
    """The exit code of a trial; minus the signal that killed it."""
    until = time.monotonic() + wait
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hung"


def log(folder):
    path = Path(f"{folder}.log")
    return path.read_text(errors="replace") if path.exists() else ""


def saved(folder):
    """The step of the newest checkpoint; 0 without one."""
    from triptych import run

    return run.newest_step(folder) or 0


def reached(folder):
    """The last step that the log of numbers knows of."""
    from triptych.scalars import read_csv

    try:
        return int(max((row["step"] for row in read_csv(folder / "metrics.csv")), default=0))
    except (OSError, ValueError):
        return 0


def same(one, two):
    """Whether two finished runs are equal in every bit but the clock's."""
    import torch

    from triptych import run
    from triptych.scalars import read_csv

    def equal(a, b):
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
        if isinstance(a, (list, tuple)):
            return len(a) == len(b) and all(map(equal, a, b))
        return a == b

    def rows(folder):
        timed = ("time", "train/images_per_second")
        return [{k: v for k, v in row.items() if k not in timed} for row in read_csv(folder / "metrics.csv")]

    a, b = run.read_checkpoint(one), run.read_checkpoint(two)
    keys = ("state_dict", "ema", "optimizer_states", "lr_schedulers", "global_step")
    return all(equal(a[k], b[k]) for k in keys) and rows(one) == rows(two)


class Table:
    """fault, times injected, continuations that ended well, runs equal to the straight one, the most steps lost."""

    def __init__(self):
        self.rows = {}

    def add(self, fault, injected, continued, runs, exact, lost):
        row = self.rows.setdefault(fault, [0, 0, 0, 0, 0])
        for i, value in enumerate((injected, continued, runs, exact)):
            row[i] += value
        row[4] = max(row[4], lost)

    def __str__(self):
        head = (
            "| fault | injected | went on | runs, of them bit for bit as if nothing had happened | most steps lost |\n"
        )
        lines = [f"| {f} | {a} | {b} | {c}, {d} | {e} |" for f, (a, b, c, d, e) in self.rows.items()]
        return head + "| --- | --- | --- | --- | --- |\n" + "\n".join(lines)


def chains(table, name, number, count, folder, straight, duration, arguments=()):
    """Runs that are struck by a signal at random moments, up to twelve times each, and are then left to end."""
    injected, chain = 0, 0
    while injected < count:
        run, codes, continued, lost, strikes = folder / f"{name}-{chain}", [], 0, 0, 0
        for _ in range(12):
            pid = start(run, *arguments)
            time.sleep(random.uniform(0.02, duration))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            code = ended(pid)
            codes.append(code)
            continued += strikes > 0 and code in (0, -number, 75, 130, 143)
            if code == 0:
                break
            strikes += 1
            lost = max(lost, reached(run) - saved(run)) if number == signal.SIGKILL else lost
            if injected + strikes >= count:
                break
        if codes[-1] != 0:
            codes.append(ended(start(run, *arguments)))
            continued += codes[-1] == 0
        good = codes[-1] == 0 and same(straight, run)
        injected, chain = injected + strikes, chain + 1
        table.add(name, strikes, continued, 1, good, lost)
        print(f"{name}: exit codes {codes}, {'equal' if good else 'NOT EQUAL'}", flush=True)
        if good:
            shutil.rmtree(run)
            Path(f"{run}.log").unlink()


def verdict(name, code, good, *more):
    print(f"{name}: exit code {code}, {'good' if good else 'BAD'}", *more, flush=True)


def truncated(table, folder, straight, count):
    """The newest checkpoint is only a part of one: an older one is taken, and the broken one is named."""
    for i in range(count):
        run = folder / f"truncated-{i}"
        pid = start(run, "callback.checkpoint.milestone_images=160", "logger=none")
        wait_for(pid, lambda run=run: saved(run) >= 22)
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        checkpoints = run / "checkpoints"
        last, step = checkpoints / "last.ckpt", saved(run)
        whole = last.read_bytes()
        last.unlink()  # and not a milestone that is the same file
        last.write_bytes(whole[: random.randrange(len(whole))])
        (checkpoints / f"step={step}.ckpt").unlink(missing_ok=True)
        older = saved(run)
        code = ended(start(run, "callback.checkpoint.milestone_images=160", "logger=none"))
        named = "last.ckpt" in log(run) and "skipped" in log(run) and f"from step {older}" in log(run)
        good = code == 0 and named and same(straight, run)
        table.add("newest checkpoint truncated", 1, code == 0, 1, good, step - older)
        verdict("truncated", code, good, f"from step {older} instead of {step}")


def mounted(table, folder, straight, count, name, options, deny):
    """A disk that says no in mid-run, and later yes again."""
    for i in range(count):
        disk = folder / f"disk-{name.split()[0]}-{i}"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)
        run = disk / "run"
        home = folder / f"{name.split()[0]}-{i}"
        try:
            pid = start(home, f"hydra.run.dir={run}", f"trainer.max_steps={LONG}", "logger=none")
            wait_for(pid, lambda run=run: saved(run) >= 10)
            allow = deny(disk)
            said = wait_for(pid, lambda home=home: "the run goes on" in log(home))
            at = reached(run)
            time.sleep(1.0)
            kept, alive = saved(run), os.waitpid(pid, os.WNOHANG)[0] == 0
            allow()
            code = ended(pid) if alive else "died"
            good = code == 0 and said and kept >= 10 and saved(run) == LONG
            once = log(home).count("A checkpoint cannot be written")
            good = good and once == 1 and same(straight, run)
            table.add(name, 1, code == 0, 1, good, LONG - saved(run))
            verdict(name, code, good, f"said {once} times at step {at}, kept {kept}, then {saved(run)}")
        finally:
            subprocess.run(["umount", "-l", disk], check=False)


def filled(disk):
    """Nothing more fits; the file that fills it can be removed again."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))
    return filler.unlink


def read_only(disk):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    return lambda: subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


def wait_for(pid, condition, wait=120.0):
    until = time.monotonic() + wait
    while time.monotonic() < until and not condition():
        time.sleep(0.02)
    return condition()


def vanished(table, folder, count):
    """The files of the data set and its memory-mapped cache are removed while it is trained on."""
    import numpy as np

    source = np.random.default_rng(0)
    images = source.integers(0, 256, (400, 8, 8), np.uint8)
    for i in range(count + 1):  # the first one is left alone
        root = folder / f"data-{i}"
        root.mkdir()
        np.savez(root / "train.npz", images=images, labels=np.arange(400) % 10)
        np.savez(root / "test.npz", images=images[:100], labels=np.arange(100) % 10)
        # fmt: off
        arguments = (
            "dataset=npz", f"dataset.root={root}", "dataset.train=train.npz", "dataset.test=test.npz",
            "dataset.channels=1", "dataset.resolution=8", "metric=fd_digits", "logger=none",
        )
        # fmt: on
        run = folder / f"vanished-{i}"
        pid = start(run, *arguments)
        if i:
            wait_for(pid, lambda run=run: saved(run) >= 4)
            shutil.rmtree(root)
        code = ended(pid)
        if i == 0:
            assert code == 0, log(run)
            continue
        said = log(run).count("is there no more; this run goes on")
        good = code == 0 and said == 1 and same(folder / "vanished-0", run)
        table.add("files of the data set removed", 1, code == 0, 1, good, 0)
        verdict("data set removed", code, good, f"said {said} times")


def wandb_dies(table, folder, straight, count):
    """W&B's own process is killed in mid-run."""
    for i in range(count):
        run = folder / f"wandb-{i}"
        pid = start(run, "logger=wandb")
        wait_for(pid, lambda run=run: reached(run) >= 10)
        killed = 0
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                name, _, rest = entry.read_text().rpartition(")")
                if name.endswith("(wandb-core") and int(rest.split()[1]) == pid:  # its parent is the trial
                    os.kill(int(entry.parent.name), signal.SIGKILL)
                    killed += 1
        code = ended(pid)
        said = log(run).count("W&B has a problem")
        good = code == 0 and said == 1 and killed == 1 and same(straight, run)
        table.add("W&B's process killed", 1, code == 0, 1, good, 0)
        verdict("W&B's process killed", code, good, f"said {said} times")


def not_finite(steps, once):
    from triptych.formulation import DDPM

    original, done = DDPM.loss, set()

    def loss(self, *arguments, **keywords):
        value, step = original(self, *arguments, **keywords), self.global_step
        if self.training and step in steps and not (once and step in done):
            done.add(step)
            return value * float("nan")
        return value

    return mock.patch.object(DDPM, "loss", loss)


def numbers(table, folder, straight, count):
    for i in range(count):
        first = random.randrange(5, STEPS - 10)
        run = folder / f"numbers-{i}"
        code = ended(start(run, "logger=none", patch=not_finite(set(range(first, first + 5)), once=True)))
        good = code == 0 and "Going back" in log(run) and same(straight, run)
        table.add("five steps in a row not finite", 1, code == 0, 1, good, 0)
        verdict("numbers", code, good, f"from step {first}")


def main():
    options = {"kills": 50, "signals": 5, "others": 3, "only": "", "folder": None, "seed": 0}
    if {"-h", "--help"} & {*sys.argv[1:]}:
        raise SystemExit(__doc__)
    options |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    random.seed(int(options["seed"]))
    import lightning  # noqa: F401
    import wandb  # noqa: F401

    import triptych.evaluation  # noqa: F401
    import triptych.training  # noqa: F401

    sys.path.insert(0, str(ROOT))
    folder = Path(options["folder"] or f"runs/faults/{int(time.time())}").absolute()
    folder.mkdir(parents=True)
    straight, table = folder / "straight", Table()
    began = time.monotonic()
    assert ended(start(straight, "logger=none")) == 0, log(straight)
    duration = time.monotonic() - began
    print(f"The straight run took {duration:.1f} s; everything is in {folder}", flush=True)
    kills, signals, others = (int(options[key]) for key in ("kills", "signals", "others"))
    quiet = ("logger=none",)
    chains(table, "kill -9", signal.SIGKILL, kills, folder, straight, duration, quiet)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        chains(table, number.name, number, signals, folder, straight, duration, quiet)
    rows = {
        "truncated": lambda: truncated(table, folder, straight, others),
        "numbers": lambda: numbers(table, folder, straight, others),
        "vanished": lambda: vanished(table, folder, others),
        "wandb": lambda: wandb_dies(table, folder, straight, others),
    }
    if os.geteuid() == 0:
        long = folder / "long"
        full, read = ("disk full, then not", "size=8m", filled), ("folder read-only, then not", "size=100m", read_only)
        rows["full"] = lambda: mounted(table, folder, long, others, *full)
        rows["readonly"] = lambda: mounted(table, folder, long, others, *read)
    chosen = [name for name in rows if not options["only"] or name in options["only"].split(",")]
    if {"full", "readonly"} & set(chosen):
        assert ended(start(folder / "long", "logger=none", f"trainer.max_steps={LONG}")) == 0
    for name in chosen:
        rows[name]()
    print(f"\n{table}\n\n{time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
