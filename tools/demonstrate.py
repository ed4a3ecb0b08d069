"""The demonstration: seven formulations of two seeds each, trained, measured under four samplers, compared on one page.

    make compare                                   python tools/demonstrate.py [folder] [train.py's settings ...]

Cut off at any point, it goes on where it stopped: the launcher skips what is trained and resumes what is not, and a
sampler whose record a run already has is not measured again.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
AT_A_TIME = 2
# 38,400 images each: about 45 s with one thread on an idle 2-core machine. Fixed, so that it is fair and repeatable.
BUDGET = (
    *("trainer.max_steps=600", "trainer.val_check_interval=150", "trainer.log_every_n_steps=30"),
    *("callback.samples.every_images=6400", "callback.evaluate.every_images=7680"),
    *("callback.evaluate.num_samples=0", "seed=0,1"),  # measured afterwards, under every sampler
)
SWEEPS = {
    "papers": ("formulation=ddpm,ncsn,edm,flow_matching",),
    "score_sde": ("formulation=score_sde", "schedule=vp,sub_vp,ve"),
}
METRIC, SAMPLES, STEPS = "fd_digits_500", 500, (10, 20, 50)


def run(*arguments: str, check: bool = True) -> int:
    """One of our scripts, in a process with one thread."""
    print(f"$ python {' '.join(arguments)}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(ROOT / arguments[0]), *arguments[1:]], env=environment)
    try:
        code = process.wait()
    except KeyboardInterrupt:  # it has heard Ctrl-C too, and saves
        raise SystemExit(process.wait()) from None
    if check and code:
        raise SystemExit(code)
    return code


def train(folder: Path, settings: Sequence[str]) -> None:
    for name, choices in SWEEPS.items():
        place = f"hydra.sweep.dir={folder / name}"
        run("train.py", "-m", *choices, *BUDGET, *settings, place, f"hydra.launcher.n_jobs={AT_A_TIME}")


def missing(run_folder: Path) -> list[tuple[str, ...]]:
    """The arguments of evaluate.py that give this run the records that it has not."""
    from triptych import record, report
    from triptych.report.protocol import is_own

    config = report.read(run_folder, "").config
    had = [r for r in record.read(run_folder / "evaluations") if r["metric"] == METRIC]
    solved = {r["sampler"]["steps"] for r in had if r["sampler"]["name"] == "DPMSolver"}
    steps = [str(n) for n in STEPS if n not in solved]
    many = ("-m",) if len(steps) > 1 else ()
    wanted = [(*many, "sampler=dpm_solver", f"sampler.steps={','.join(steps)}")] if steps else []
    return wanted + ([] if any(is_own(r, config) for r in had) else [()])


def measure(folder: Path) -> int:
    """Every run under every sampler that it lacks, two runs at a time; how many evaluations failed."""
    from triptych import report

    calls = [
        ("evaluate.py", f"run={run_folder}", f"num_samples={SAMPLES}", *options)
        for run_folder in report.find(str(folder))
        for options in missing(run_folder)
    ]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        return sum(code != 0 for code in pool.map(lambda call: run(*call, check=False), calls))


def main(folder: Path, settings: Sequence[str]) -> None:
    began = time.monotonic()
    train(folder, settings)
    trained = time.monotonic()
    failed = measure(folder)
    measured = time.monotonic()
    title = "title='Seven formulations, 38,400 digits each'"
    run("compare.py", f"runs={folder}", f"out={folder}/report", title)
    spent = [trained - began, measured - trained, time.monotonic() - measured]
    told = ", ".join(
        f"{name} {s / 60:.1f} min" for name, s in zip(("training", "measuring", "report"), spent, strict=True)
    )
    print(f"{told}. Open {folder}/report/index.html" + (f"; {failed} evaluations failed" if failed else ""))
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/compare"), sys.argv[2:])
