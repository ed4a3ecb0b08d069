"""Every yaml composes, and what it names can be built."""

import types

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf

from triptych import conf, recall
from triptych.dataset import per_device_batch_size
from triptych.sampler import Sampler

SMALL = ["formulation", "schedule", "sampler", "model", "dataset", "optimizer", "trainer", "logger", "metric"]
NEEDS_FILES = {"fid", "fid_infinity", "inception", "inception_score", "kid", "precision_recall", "fd_dinov2"}


@pytest.fixture(autouse=True)
def hydra():
    GlobalHydra.instance().clear()
    conf.register_resolvers()
    with initialize_config_dir(str(conf.FOLDER), version_base="1.3"):
        yield


def of(group):
    return [(group, option) for option in conf.options(group)]


@pytest.mark.parametrize(("group", "option"), [pair for group in SMALL for pair in of(group)])
def test_every_option_composes(group, option):
    config = compose("train", [f"{group}={option}"])
    if group != "logger":
        assert OmegaConf.select(config, group) is not None
    for node in ("model", "schedule", "sampler", "formulation", "dataset", "optimizer"):
        OmegaConf.to_container(config[node], resolve=True)


QUICK = ("digits_", "fashion_")  # experiments for a laptop; all others are a row of a paper
QUICK_NCSN = ("digits_ncsn", "fashion_ncsn")  # whose step size is our own
SMALL_IMAGES = {"IDX": 28, "Digits": 8}  # all others have 32 x 32 here


# What the papers say, once more and from their own tables: name -> {setting: value}. Sigmas of VE and NCSN are twice,
# and Langevin steps four times, the papers', whose images are in [0, 1] (T-S13).
CONSTANTS = {
    "cifar10_ddpm": {"optimizer.lr": 2e-4, "schedule.T": 1000, "callback.ema.decay": 0.9999},
    "cifar10_iddpm": {"optimizer.lr": 1e-4, "schedule.T": 4000, "model.dropout": 0.3, "dataset.flip": False},
    "cifar10_ncsn": {"schedule.sigma_max": 2 * 1, "sampler.step_size": 4 * 2e-5, "model.levels": 10},
    "cifar10_ncsnv2": {"schedule.sigma_max": 2 * 50, "sampler.step_size": 4 * 6.2e-6, "callback.ema.decay": 0.999},
    "celeba_ncsnv2": {"schedule.sigma_max": 2 * 90, "sampler.step_size": 4 * 3.3e-6, "dataset.crop": 140},
    "lsun_bedroom_ncsnv2": {"schedule.sigma_max": 2 * 190, "sampler.step_size": 4 * 1.8e-6, "schedule.L": 1086},
    "cifar10_ncsnpp_ve": {"schedule.sigma_max": 2 * 50, "sampler.snr": 0.16, "callback.ema.decay": 0.999},
    "cifar10_ncsnpp_ve_deep": {"model.blocks": 8, "trainer.max_steps": 950_000, "formulation.reduction": "half_sum"},
    "celebahq_ncsnpp_ve": {"schedule.sigma_max": 2 * 348, "sampler.snr": 0.075, "global_batch_size": 64},
    "cifar10_ddpmpp_vp": {"formulation.warmup_steps": 5000, "callback.ema.warmup": True, "callback.ema.decay": 0.9999},
    "cifar10_ddpmpp_sub_vp_deep": {"model.blocks": 8, "schedule._target_": "triptych.schedule.SubVP"},
    "cifar10_edm": {"dataset.augment": 0.12, "model.dropout": 0.13, "callback.ema.half_life": 500_000},
    "cifar10_edm_ve_conditional": {"model.num_classes": 10, "model.embedding": "fourier", "dataset.augment": 0.12},
    "cifar10_flow": {"trainer.max_steps": 400_000, "model.head_channels": 64, "sampler.rtol": 1e-5},
    "lsun_cat_ddpm": {"optimizer.lr": 2e-5, "dataset.flip": False, "dataset.filter": "lanczos"},
    "celebahq_ddpm": {"optimizer.lr": 2e-5, "global_batch_size": 64, "model.dropout": 0.0},
    "imagenet64_adm": {"global_batch_size": 2048, "formulation.variance": "learned", "dataset.filter": "adm"},
    "imagenet64_edm": {"global_batch_size": 4096, "callback.ema.half_life": 50_000_000, "sampler.S_churn": 40},
    "fashion_edm": {"formulation.sigma_data": 0.706},
    "fashion_ve": {"schedule.sigma_max": 45},
}


def smaller(config):
    """The same recipe with a small network, on small images."""
    head = config.model.get("head_channels")
    config.model.channels = head or 32
    config.dataset.resolution = SMALL_IMAGES.get(config.dataset._target_.rpartition(".")[2], 32)
    if "blocks" in config.model:  # a U-Net; a RefineNet has a level for each of its blocks
        config.model.blocks, config.model.multipliers = 1, [1, 2]
        config.model.attention = [config.dataset.resolution // 2]
    config.global_batch_size = 4
    return config


def filled(dataset):
    """The dataset with eight images of noise in place of its files."""
    images = np.random.default_rng(0).integers(0, 256, (8, *dataset.shape), np.uint8)
    dataset._arrays = {split: (images, np.arange(8) % (dataset.num_classes or 1)) for split in ("train", "test")}
    return dataset


@pytest.mark.parametrize("option", conf.options("experiment"))
def test_every_experiment_has_the_papers_constants_and_network_and_takes_a_step_at_small_width(option):
    """T-K15, T-S13: from images and labels to the optimizer's step."""
    config = compose("train", [f"experiment={option}"])
    published = config.get("published", {})
    assert option.startswith(QUICK) or published, "a paper's recipe says what was published"
    if published.get("fid") is not None:
        assert published.samples and published.reference in ("train", "test") and "nfe" in published
    with torch.device("meta"):
        size = sum(p.numel() for p in instantiate(config.model).parameters())
    if published.get("parameters"):
        assert size == published.parameters
    if published.get("millions"):
        digits = len(str(published.millions).partition(".")[2])
        assert round(size / 1e6, digits) == published.millions
    assert option in QUICK_NCSN or config.sampler.get("pull") is None, "the papers' own step sizes"
    for key, value in CONSTANTS.get(option, {}).items():
        assert OmegaConf.select(config, key) == (value if isinstance(value, str) else pytest.approx(value)), key

    config = smaller(config)
    dataset, formulation = filled(instantiate(config.dataset)), instantiate(config.formulation)
    instantiate(config.sampler).check(formulation)
    optimizer = formulation.configure_optimizers()["optimizer"]
    formulation.trainer = Place(global_step=7, global_rank=0, world_size=1, _results=None)
    formulation.on_train_start()
    batch = dataset.on_after_batch_transfer(next(iter(dataset.train_dataloader())))
    before = [p.detach().clone() for p in formulation.parameters()]
    loss = formulation.training_step(batch, 0)
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert any(not torch.equal(a, b) for a, b in zip(before, formulation.parameters(), strict=True))
    if dataset.augment:
        assert formulation.model.augment.weight.grad is not None, "what was done to an image reaches the network"
    if dataset.conditional:
        assert next(formulation.model.label.parameters()).grad is not None, "labels reach the network"


class Place(types.SimpleNamespace):
    """What a formulation asks of a Trainer."""

    __hash__ = object.__hash__


@pytest.mark.parametrize(("platform", "accelerator"), [("linux", "auto"), ("win32", "auto"), ("darwin", "cpu")])
def test_an_apples_gpu_is_not_chosen_by_itself(monkeypatch, platform, accelerator):
    """It has no float64; asked for by name, it is refused in words."""
    monkeypatch.setattr(conf.sys, "platform", platform)
    assert compose("train").trainer.accelerator == accelerator
    assert compose("train", ["trainer.accelerator=mps"]).trainer.accelerator == "mps"


def test_eight_devices_need_one_word():
    """T-D1: a global batch is global: 8 processes take an eighth each."""
    config = compose("train", ["experiment=cifar10_ddpm", "trainer=ddp"])
    assert config.trainer.strategy == "ddp" and config.trainer.devices == "auto"
    assert per_device_batch_size(config.global_batch_size, 8, config.trainer.accumulate_grad_batches) == 16
    assert config.trainer.max_steps == 800_000 and config.trainer.gradient_clip_val == 1.0


@pytest.mark.parametrize("option", conf.options("sampler"))
def test_every_sampler_is_built(option):
    assert isinstance(instantiate(compose("train", [f"sampler={option}"]).sampler), Sampler)


@pytest.mark.parametrize("option", conf.options("formulation"))
def test_every_formulation_is_built_with_the_schedule_it_brings(option):
    formulation = instantiate(compose("train", [f"formulation={option}"]).formulation)
    assert isinstance(formulation.schedule, formulation.schedules)


@pytest.mark.parametrize("option", sorted(set(conf.options("metric")) - NEEDS_FILES))
def test_every_metric_is_built(option):
    instantiate(compose("train", [f"metric={option}"]).metric)


@pytest.mark.filterwarnings("ignore:The `srun` command")  # on a machine that has SLURM
@pytest.mark.parametrize("option", ["auto", "cpu"])
def test_the_trainer_is_built(option, tmp_path):
    instantiate(compose("train", [f"trainer={option}"]).trainer, logger=False, default_root_dir=tmp_path)


def test_a_formulation_brings_its_schedule_and_sampler_and_the_command_line_wins():
    config = compose("train", ["formulation=ncsn"])
    assert config.schedule._target_.endswith("Geometric") and config.sampler._target_.endswith("AnnealedLangevin")
    config = compose("train", ["sampler=ddim", "formulation=score_sde", "schedule=ve"])
    assert config.schedule._target_.endswith("VE") and config.sampler._target_.endswith("DDIM")


def test_a_dataset_brings_its_network_and_metric_and_the_command_line_wins():
    config = compose("train", ["dataset=toy"])
    assert config.model._target_.endswith("MLP") and config.metric._target_.endswith("SlicedWasserstein")
    assert compose("train", ["dataset=toy", "metric=mmd"]).metric._target_.endswith("MMD")


def test_a_learned_variance_doubles_the_networks_output():
    assert compose("train", []).model.out_channels == 1
    assert compose("train", ["formulation.variance=learned"]).model.out_channels == 2


@pytest.mark.parametrize("option", ["fashion_mnist", "mnist", "cifar10"])
def test_a_run_brings_its_dataset_as_it_was(option, tmp_path):
    """File names have dots, which part keys in an override."""
    config = OmegaConf.to_container(compose("train", [f"dataset={option}", "dataset.root=here"]), resolve=True)
    OmegaConf.save({**config, "choices": {"dataset": option}}, tmp_path / "config.yaml")
    brought = recall.run_arguments([f"run={tmp_path}"], ("dataset",))
    again = compose("evaluate", brought)
    assert OmegaConf.to_container(again.dataset, resolve=True) == config["dataset"]
