"""What a sampler costs beyond its network: microseconds and kernels per network call, beside diffusers' schedulers.

    OMP_NUM_THREADS=1 python bench/samplers.py [--rounds 15] [--batch 64]

The network returns a fixed tensor. Process CPU time of whole trajectories, set-up included; ours and theirs take turns,
and ratios are medians over the turns, so that a busy machine disturbs both alike. Prints a table, then a line of JSON.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from harness import finish

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "sampler"))

from test_cost import Counter, Fixed  # noqa: E402 (the counters that the tests use)

from triptych.sampler import (  # noqa: E402
    DDIM,
    Ancestral,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
    Sampler,
    StochasticHeun,
    UniPC,
)
from triptych.schedule import LinearBeta  # noqa: E402

STEPS = 50
SHAPES = {"3x32x32": (3, 32, 32), "1x8x8": (1, 8, 8)}
UNIFORM = {"steps": STEPS, "grid": "uniform"}

# Ours, the scheduler of diffusers that does the same, and its options.
ROWS: dict[str, tuple[Sampler, str | None, dict]] = {
    "DDIM": (DDIM(**UNIFORM), "DDIMScheduler", {"clip_sample": False}),
    "DDIM, clipped": (DDIM(**UNIFORM, clip=1.0), "DDIMScheduler", {"clip_sample": True}),
    "Heun": (Heun(steps=STEPS // 2), "HeunDiscreteScheduler", {}),
    "DPMSolver 2M": (DPMSolver(**UNIFORM), "DPMSolverMultistepScheduler", {}),
    "DPMSolver 3M": (DPMSolver(**UNIFORM, order=3), "DPMSolverMultistepScheduler", {"solver_order": 3}),
    "UniPC 2": (UniPC(**UNIFORM), "UniPCMultistepScheduler", {}),
    "UniPC 3": (UniPC(**UNIFORM, order=3), "UniPCMultistepScheduler", {"solver_order": 3}),
    "ProbabilityFlow RK4": (ProbabilityFlow(steps=STEPS // 4, method="rk4"), None, {}),
    "Ancestral, clipped": (Ancestral(**UNIFORM, clip=1.0), "DDPMScheduler", {"clip_sample": True}),
    "EulerMaruyama": (EulerMaruyama(**UNIFORM), None, {}),
    "PredictorCorrector": (PredictorCorrector(steps=STEPS // 2, grid="uniform"), None, {}),
    "StochasticHeun": (StochasticHeun(steps=STEPS // 2), None, {}),
    "SDE-DPMSolver 2M": (
        DPMSolver(**UNIFORM, sde=True),
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
    ),
}
LIMITS = {  # microseconds a call, at 3x32x32 and 1x8x8
    "DDIM, clipped": (130, 20),
    "Ancestral, clipped": (900, 42),
    **{row: (100, 20) for row in ("DDIM", "Heun", "DPMSolver 2M", "DPMSolver 3M", "UniPC 2", "UniPC 3")},
}


def ours(sampler: Sampler, x: torch.Tensor) -> Callable[[], int]:
    denoiser = Fixed(LinearBeta(), x)

    def run() -> int:
        before = denoiser.calls
        sampler(denoiser, x)
        return denoiser.calls - before

    return run


def theirs(name: str, options: dict, x: torch.Tensor) -> Callable[[], int]:
    import diffusers

    spacing = {"timestep_spacing": "trailing"}
    scheduler = getattr(diffusers, name)(prediction_type="sample", **spacing, **options)
    x_0 = torch.zeros_like(x)

    def run() -> int:
        scheduler.set_timesteps(STEPS // 2 if "Heun" in name else STEPS)
        y = x
        with torch.no_grad():
            for t in scheduler.timesteps:
                y = scheduler.step(x_0, t, y).prev_sample
        return len(scheduler.timesteps)

    return run


def microseconds(run: Callable[[], int]) -> float:
    began = time.process_time()
    calls = run()
    return (time.process_time() - began) / calls * 1e6


def kernels(run: Callable[[], int]) -> tuple[float, float]:
    """Kernels and scalar reads per call, the set-up of the trajectory included."""
    with Counter() as counter:
        calls = run()
    return counter.kernels / calls, counter.scalars / calls


def measure(row: str, shape: tuple[int, ...], batch: int, rounds: int) -> dict:
    sampler, peer, options = ROWS[row]
    x = torch.randn(batch, *shape)
    runs = [ours(sampler, x)] + ([theirs(peer, options, x)] if peer else [])
    for run in runs:
        run()
    times = [[microseconds(run) for run in runs] for _ in range(rounds)]
    result = {"ours_us": statistics.median(t[0] for t in times), "kernels": kernels(runs[0])[0]}
    if peer:
        result |= {
            "diffusers_us": statistics.median(t[1] for t in times),
            "ratio": statistics.median(t[1] / t[0] for t in times),
            "diffusers_kernels": kernels(runs[1])[0],
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    results: dict[str, dict] = {}
    print(
        f"{'us a call':<21}" + "".join(f"{s:>10} {'limit':>6} {'diffusers':>10} {'ratio':>6}" for s in SHAPES),
        "  kernels",
    )
    for row in ROWS:
        results[row] = {s: measure(row, shape, arguments.batch, arguments.rounds) for s, shape in SHAPES.items()}
        cells = [f"{row:<21}"]
        for limit, r in zip(LIMITS.get(row, ("", "")), results[row].values(), strict=True):
            peer = f"{r['diffusers_us']:>10.1f} {r['ratio']:>6.1f}" if "ratio" in r else f"{'':>17}"
            cells.append(f"{r['ours_us']:>10.1f} {limit:>6} {peer}")
        cells.append("   " + " / ".join(f"{r[k]:.1f}" for k in ("kernels", "diffusers_kernels") if k in r))
        print("".join(cells), flush=True)
    finish("samplers", batch=arguments.batch, steps=STEPS, rows=results)


if __name__ == "__main__":
    main()
