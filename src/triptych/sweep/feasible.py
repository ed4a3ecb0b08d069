"""Which trials cannot work, asked of the classes themselves before anything starts.

A trial is built as training would build it, but for the network's weights, which are on no device: schedule x
formulation, network x formulation, sampler x denoiser and the numbers in between are refused in their own words.
"""

import contextlib
from collections.abc import Iterator

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from triptych import conf
from triptych.callback import Evaluate, Samples
from triptych.check import check
from triptych.dataset import per_device_batch_size
from triptych.refusal import sentence


def why_not(config: DictConfig, processes: int = 1) -> str | None:
    """Why a trial would refuse to start, in a sentence; None if it would not, or only for a file or a network that is
    not there today.

    Args:
        config: the composed one, with its `hydra` node. processes: its ranks, on all nodes.
    """
    try:
        with as_chosen(config):
            check(config, conf.choices(), conf.FOLDER)
            dataset = instantiate(config.dataset)
            with torch.device("meta"):
                model = instantiate(config.model)
            formulation = instantiate(config.formulation, model=model, schedule=instantiate(config.schedule))
            for node in config.callback.values():
                callback = instantiate(node) if node is not None else None
                if isinstance(callback, (Samples, Evaluate)):
                    callback.check(formulation, dataset)
            accumulate = config.trainer.get("accumulate_grad_batches") or 1
            per_device_batch_size(dataset.global_batch_size, processes, accumulate)
    except Exception as error:
        said = sentence(error)
        if said is None:
            raise
        return None if isinstance(_cause(error), OSError) else said
    return None


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextlib.contextmanager
def as_chosen(config: DictConfig) -> Iterator[None]:
    """Inside, Hydra's own config is the trial's, as it will be in its process."""
    instance = HydraConfig.instance()
    before = instance.cfg
    instance.cfg = config  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        instance.cfg = before
