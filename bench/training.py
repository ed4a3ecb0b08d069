"""A training step of the same U-Net in ours and in the peers: seconds, images a second, ratios, interleaved.

    OMP_NUM_THREADS=1 python bench/training.py                    # 35.7 M parameters, batch 8, CPU seconds
    OMP_NUM_THREADS=1 python bench/training.py --network tiny     # 1.0 M parameters
    python bench/training.py --device cuda --batch 128            # beside the roofline of an H100

Forward, backward, clip, optimizer, average of the weights. `--profile` says where the time goes, `--count` how many
operators a step is, `--memory` what it takes at its peak (each library in a process of its own). Rounds take turns;
medians, and the median of the ratios of one turn. Targets on a CPU: 1.05 times diffusers in fp32, 1.08 in bf16, bf16
1.8 times the best peer's fp32; the tiny network 1.35 times the best peer.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from harness import finish, ratio, table, take_turns
from peers import GPU_WAYS, NETWORKS, WAYS, Way, available

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from counting import Count  # noqa: E402 (the counter that the tests use)

ROOFLINE = 13_500  # images/s of the 35.7 M network on one H100: products at 798 TFLOP/s, then fused traffic at 3 TB/s
SAME_SIZE = "triptych", "diffusers", "azula"


def build(arguments: argparse.Namespace) -> dict[str, Way]:
    """{"diffusers fp32": its step, ...}."""
    ways = available(GPU_WAYS if arguments.device == "cuda" else WAYS)
    if arguments.only:
        ways = {name: way for name, way in ways.items() if name in arguments.only}
    network, built = NETWORKS[arguments.network], {}
    for name, way in ways.items():
        for precision in arguments.precisions:
            step = way(network, arguments.batch, precision, arguments.device)
            try:
                step()
            except RuntimeError as error:
                print(f"{name} fails in {precision}: {str(error).splitlines()[0]}")
                continue
            built[f"{name} {precision}"] = step
    return built


def measure(arguments: argparse.Namespace) -> None:
    steps = build(arguments)
    gflop = 3 * NETWORKS[arguments.network].forward_gflop * arguments.batch
    took = take_turns(steps, arguments.rounds, arguments.warmup, arguments.device)
    median = {name: statistics.median(t) for name, t in took.items()}
    rows = []
    results = {}
    for name, s in median.items():
        library, _, precision = name.rpartition(" ")
        ours = f"triptych {precision}"
        times = ratio(took[name], took[ours]) if ours in took else float("nan")
        same = library.split()[0] in SAME_SIZE
        rate = arguments.batch / s
        results[name] = {"seconds": s, "images_per_second": rate, "ours_times_as_fast": times, "best": min(took[name])}
        cells = [f"{s * 1e3:.1f}", f"{min(took[name]) * 1e3:.1f}", f"{rate:.1f}", f"{times:.2f}"]
        cells += [f"{gflop / s:.0f}" if same else "(smaller)", f"{steps[name].parameters:,}"]
        if arguments.device == "cuda" and arguments.network == "cifar":
            results[name]["roofline"] = rate / ROOFLINE
            cells.append(f"{rate / ROOFLINE:.0%}")
        rows.append([name, *cells])
    head = ["step", "median ms", "best ms", "images/s", "ours is x", "GFLOP/s", "parameters"]
    table(head + (["of roofline"] if len(rows[0]) > len(head) else []), rows)
    summary = {}
    peers = [name for name in took if name.split()[0] in SAME_SIZE[1:] and name.endswith(" fp32")]
    if peers and "triptych bf16" in took:
        best = min(peers, key=lambda name: median[name])
        summary["our bf16 over the best peer's fp32"] = (best, ratio(took[best], took["triptych bf16"]))
    if peers and "triptych fp32" in took:
        best = min(peers, key=lambda name: median[name])
        summary["our fp32 over the best peer's"] = (best, ratio(took[best], took["triptych fp32"]))
    for what, (best, times) in summary.items():
        print(f"{what} ({best}): {times:.2f}")
    finish(
        "training",
        network=arguments.network,
        batch=arguments.batch,
        rounds=arguments.rounds,
        device=arguments.device,
        steps=results,
        summary=summary,
    )


def profile(arguments: argparse.Namespace) -> None:
    """Self time of operators, the ten largest, as shares of a step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    cuda = arguments.device == "cuda"
    for name, step in build(arguments).items():
        step()
        with profiler(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
            for _ in range(arguments.rounds):
                step()
        key = "self_device_time_total" if cuda else "self_cpu_time_total"
        events = sorted(seen.key_averages(), key=lambda e: getattr(e, key), reverse=True)
        total = sum(getattr(e, key) for e in events)
        print(f"\n{name}: {total / arguments.rounds / 1e3:.1f} ms a step in operators")
        rows = [[e.key[:60], f"{getattr(e, key) / total:.1%}", e.count // arguments.rounds] for e in events[:12]]
        table(["operator", "share", "calls"], rows)


def count(arguments: argparse.Namespace) -> None:
    """Operators of a step, views left out, and how often it reads a number back from the device; without noise."""
    rows, results = [], {}
    for name, step in build(arguments).items():
        with Count() as counted:
            step()
        results[name] = {"operators": counted.total(), "scalar_reads": counted.scalar_reads}
        rows.append([name, f"{counted.total():,}", f"{counted.scalar_reads:,}"])
    table(["step", "operators", "scalar reads"], rows)
    finish("count", network=arguments.network, steps=results)


def memory(arguments: argparse.Namespace) -> None:
    """The peak of this process above what it was once everything was imported."""
    way = WAYS[arguments.memory]
    way(NETWORKS["tiny"], 2, arguments.precisions[0])()  # what is imported or allocated once
    if arguments.device == "cuda":
        step = GPU_WAYS[arguments.memory](NETWORKS[arguments.network], arguments.batch, arguments.precisions[0], "cuda")
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            step()
        print(f"{torch.cuda.max_memory_allocated() / 2**20:.0f}")
        return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = way(NETWORKS[arguments.network], arguments.batch, arguments.precisions[0])
    for _ in range(3):
        step()
    print(f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:.0f}")


def memories(arguments: argparse.Namespace) -> None:
    """`memory` of every library, each in a process of its own."""
    rows, results = [], {}
    for name in available(WAYS):
        for precision in arguments.precisions:
            command = [sys.executable, __file__, "--memory", name, "--precisions", precision]
            command += ["--network", arguments.network, "--batch", str(arguments.batch), "--device", arguments.device]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{name} fails in {precision}: {done.stderr.strip().splitlines()[-1]}")
                continue
            results[f"{name} {precision}"] = int(done.stdout.split()[-1])
            rows.append([f"{name} {precision}", done.stdout.split()[-1]])
    table(["peak of a step", "MiB"], rows)
    finish("memory", network=arguments.network, batch=arguments.batch, mebibytes=results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="cifar")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", nargs="+", help="names of libraries")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--memory", nargs="?", const="all", metavar="NAME")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("training: there is no CUDA device here, nothing was measured.")
        return
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    if arguments.memory == "all":
        memories(arguments)
    elif arguments.memory:
        memory(arguments)
    elif arguments.profile:
        profile(arguments)
    elif arguments.count:
        count(arguments)
    else:
        measure(arguments)


if __name__ == "__main__":
    main()
