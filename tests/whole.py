"""A training job as train.py builds it from conf/, for tests and benchmarks that look inside."""

import contextlib
import itertools

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from lightning import Callback

from triptych import cli, conf, tracking
from triptych.callback import Checkpoint
from triptych.callback.hooks import lighten, without_empty


class Poison(Callback):
    """Makes the loss of some steps, hence its gradient, NaN; keeps the weights before each step, where they are."""

    def __init__(self, steps):
        self.steps, self.weights = steps, []

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.weights.append([p.detach().clone() for p in pl_module.parameters()])

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step in self.steps:
            loss.mul_(torch.nan)

    def moved(self):
        """Of each step but the last, whether it has changed a weight."""
        return [not all(map(torch.equal, before, after)) for before, after in itertools.pairwise(self.weights)]


@contextlib.contextmanager
def composed(*overrides):
    GlobalHydra.instance().clear()
    conf.register_resolvers()
    with initialize_config_dir(str(conf.FOLDER), version_base="1.3"):
        yield compose("train", list(overrides))


def job(folder, *overrides, before=(), after=(), **place):
    """(trainer, formulation, dataset): every callback of conf/callback/default.yaml, and metrics.csv.

    Args:
        place: arguments of the Trainer that say on which device.
    """
    with composed("trainer=cpu", "logger=none", "callback.evaluate.name=measured", *overrides) as config:
        cli.quiet()
        dataset, formulation = instantiate(config.dataset), instantiate(config.formulation)
        callbacks = [instantiate(c) for c in config.callback.values() if c is not None]
        trainer = instantiate(
            config.trainer,
            callbacks=without_empty([*before, *callbacks, *after]),
            logger=False,
            plugins=[next(c for c in callbacks if isinstance(c, Checkpoint)).io()],
            default_root_dir=folder,
            **place,
        )
        lighten(trainer, formulation)
        trainer.loggers = [tracking.MetricsCSV(folder / "metrics.csv")]
    return trainer, formulation, dataset
