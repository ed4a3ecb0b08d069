"""Every yaml composes, and what it names can be built."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf

from triptych import cli
from triptych.sampler import Sampler

SMALL = ["formulation", "schedule", "sampler", "model", "dataset", "optimizer", "trainer", "logger", "metric"]
NEEDS_FILES = {"fid", "fid_infinity", "inception", "inception_score", "kid", "precision_recall", "fd_dinov2"}


@pytest.fixture(autouse=True)
def hydra():
    GlobalHydra.instance().clear()
    cli.register_resolvers()
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        yield


def of(group):
    return [(group, option) for option in cli.options(group)]


@pytest.mark.parametrize(("group", "option"), [pair for group in SMALL for pair in of(group)])
def test_every_option_composes(group, option):
    config = compose("train", [f"{group}={option}"])
    if group != "logger":
        assert OmegaConf.select(config, group) is not None
    for node in ("model", "schedule", "sampler", "formulation", "dataset", "optimizer"):
        OmegaConf.to_container(config[node], resolve=True)


QUICK = ("digits_", "fashion_")  # experiments for a laptop; all others are a row of a paper


@pytest.mark.parametrize("option", cli.options("experiment"))
def test_every_experiment_composes_and_its_formulation_takes_a_step_at_small_width(option):
    config = compose("train", [f"experiment={option}", "model.channels=32"])
    if not option.startswith(QUICK):
        assert config.published.samples and config.published.reference in ("train", "test")
    formulation = instantiate(config.formulation)
    x = torch.rand(2, config.dataset.channels, config.dataset.resolution, config.dataset.resolution) * 2 - 1
    optimizer = formulation.configure_optimizers()["optimizer"]
    times, _ = formulation.times(formulation.schedule, torch.tensor([0.2, 0.7]))
    before = [p.detach().clone() for p in formulation.parameters()]
    loss = formulation.loss(x, times.float()).mean()
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert any(not torch.equal(a, b) for a, b in zip(before, formulation.parameters(), strict=True))


def test_the_recipe_of_ddpm_has_the_papers_network():
    config = compose("train", ["experiment=cifar10_ddpm"])
    with torch.device("meta"):
        model = instantiate(config.model)
    assert sum(p.numel() for p in model.parameters()) == config.published.parameters == 35_746_307


@pytest.mark.parametrize("option", cli.options("sampler"))
def test_every_sampler_is_built(option):
    assert isinstance(instantiate(compose("train", [f"sampler={option}"]).sampler), Sampler)


@pytest.mark.parametrize("option", cli.options("formulation"))
def test_every_formulation_is_built_with_the_schedule_it_brings(option):
    formulation = instantiate(compose("train", [f"formulation={option}"]).formulation)
    assert isinstance(formulation.schedule, formulation.schedules)


@pytest.mark.parametrize("option", sorted(set(cli.options("metric")) - NEEDS_FILES))
def test_every_metric_is_built(option):
    instantiate(compose("train", [f"metric={option}"]).metric)


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
