"""What follows the gradients: Adam and the average of the weights, ours and each peer's, on one network.

    OMP_NUM_THREADS=1 python bench/optimizer.py [--network cifar] [--rounds 15]

Every library updates a network of about the same size as its own training script does; Lightning's row is its
EMAWeightAveraging beside torch's Adam. Rounds take turns; CPU seconds, medians, and the median of the ratios of one
turn. Target at 35.7 M parameters on one core: 45 ms for both, the average 3 times Lightning's and 2.5 times diffusers'.
"""

import argparse
import statistics
import warnings
from types import SimpleNamespace

import torch
from harness import finish, ratio, table, take_turns
from lightning.pytorch.callbacks import EMAWeightAveraging
from peers import NETWORKS, WAYS, Network, Triptych, Way, available


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


def build(network: Network) -> dict[str, Way]:
    built = {}
    for name, way in {**available(WAYS), "lightning": Lightning}.items():
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
    finish("optimizer", network=arguments.network, rounds=arguments.rounds, results=results)


if __name__ == "__main__":
    main()
