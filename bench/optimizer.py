"""What follows the gradients: Adam and the average of the weights, ours and each peer's, on one network.

    OMP_NUM_THREADS=1 python bench/optimizer.py [--network cifar] [--rounds 15]

Every library updates a network of about the same size as its own training script does; Lightning's row is its
EMAWeightAveraging beside torch's Adam. Rounds take turns; CPU seconds, medians, and the median of the ratios of one
turn. Target at 35.7 M parameters on one core: 45 ms for both, the average 3 times Lightning's and 2.5 times diffusers'.
The post-hoc averages, which no peer has and which are on by default, are a row of their own.
"""

import argparse
import statistics
import warnings
from types import SimpleNamespace

import torch
from harness import finish, ratio, table, take_turns
from lightning.pytorch.callbacks import EMAWeightAveraging
from peers import NETWORKS, WAYS, Network, Triptych, Way, available

from triptych.callback import PowerEMA

POST_HOC = "post-hoc averages"


class Lightning(Triptych):
    """The same network under Lightning's own callback, and torch's defaults for Adam."""

    def prepare(self) -> None:
        super().prepare()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=2e-4)
        self.callback = EMAWeightAveraging(decay=0.9999)
        self.callback.setup(SimpleNamespace(), self.formulation, "fit")  # pyright: ignore[reportArgumentType]
        self.trainer.global_step = 0

    def average(self) -> None:
        self.trainer.global_step += 1
        self.callback.on_train_batch_end(self.trainer, self.formulation, None, None, 0)  # pyright: ignore


class PostHoc(Triptych):
    """The two power-function averages, at each step; conf/callback/power_ema.yaml updates them at every fourth."""

    def prepare(self) -> None:
        super().prepare()
        self.power = PowerEMA(every_steps=1, every_images=10**12)
        self.trainer.is_global_zero = False  # no folder of snapshots
        self.power.on_train_start(self.trainer, self.formulation)  # pyright: ignore[reportArgumentType]

    def average(self) -> None:
        self.trainer.global_step += 1
        self.power.on_train_batch_end(self.trainer, self.formulation)  # pyright: ignore[reportArgumentType]


def build(network: Network) -> dict[str, Way]:
    built = {}
    for name, way in {**available(WAYS), "lightning": Lightning, POST_HOC: PostHoc}.items():
        built[name] = step = way(network, 1, "fp32")
        step.gradients()
        step.update()  # the optimizer's state
    return built


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="cifar")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    built = build(NETWORKS[arguments.network])
    took = {
        "optimizer": take_turns({name: way.optimizer.step for name, way in built.items()}, arguments.rounds, 2),
        "average": take_turns({name: way.average for name, way in built.items()}, arguments.rounds, 2),
    }
    rows, results = [], {}
    for name, way in built.items():
        ms = {what: statistics.median(t[name]) * 1e3 for what, t in took.items()}
        if name == POST_HOC:
            each = ms["average"]
            results[name] = {"milliseconds": each}
            continue
        both = sum(ms.values())
        times = {what: ratio(t[name], t["triptych"]) for what, t in took.items()}
        results[name] = {"milliseconds": ms, "both": both, "ours_times_as_fast": times}
        cells = [
            f"{ms['optimizer']:.1f}",
            f"{times['optimizer']:.2f}",
            f"{ms['average']:.1f}",
            f"{times['average']:.2f}",
        ]
        rows.append([name, *cells, f"{both:.1f}", f"{way.parameters:,}"])
    table(["ms", "optimizer", "ours is x", "average", "ours is x", "both", "parameters"], rows)
    print(f"{POST_HOC}: {each:.1f} ms at every fourth step, {each / 4:.1f} ms a step")
    finish("optimizer", network=arguments.network, rounds=arguments.rounds, results=results)


if __name__ == "__main__":
    main()
