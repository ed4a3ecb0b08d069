"""Parameter counts of the papers' networks, built from the yamls on meta, against published ones."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from triptych.model import UNet

CONF = Path(__file__).parents[2] / "conf" / "model"


def network(name, image_channels=3, resolution=32, out_channels=None, **changes):
    cfg = OmegaConf.load(CONF / f"{name}.yaml")
    cfg.update(in_channels=image_channels, out_channels=out_channels or image_channels, resolution=resolution)
    if "levels" in cfg:
        cfg.levels = 10
    with torch.device("meta"):
        return instantiate(cfg, **changes)


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_ddpm():
    """Ho et al. 2020, appendix B: 35.7 million for CIFAR-10 (diffusers' google/ddpm-cifar10-32 to the last one)."""
    assert count(network("unet")) == 35_746_307


def test_ddpm_256():
    """Ho et al. 2020, appendix B: 114 million for LSUN and CelebA-HQ at 256 x 256."""
    assert round(count(network("unet", resolution=256, multipliers=[1, 1, 2, 2, 4, 4])) / 1e6) == 114


@pytest.mark.parametrize(
    "resolution, changes, millions",
    [
        (64, {}, 296),
        (128, {"channels": 256, "multipliers": [1, 1, 2, 3, 4], "blocks": 2}, 422),
        (256, {"channels": 256, "multipliers": [1, 1, 2, 2, 4, 4], "blocks": 2}, 554),
        (512, {"channels": 256, "multipliers": [0.5, 1, 1, 2, 2, 4, 4], "blocks": 2}, 559),
    ],
)
def test_adm_imagenet(resolution, changes, millions):
    """Dhariwal & Nichol 2021, arXiv:2105.05233, the row "Model size" of the ImageNet models' hyperparameters."""
    model = network("adm", resolution=resolution, out_channels=6, num_classes=1000, **changes)
    assert round(count(model) / 1e6) == millions


def test_ddpmpp():
    """61,804,419 in Lin et al. 2025, arXiv:2509.15591, whose decoder is score_sde's DDPM++."""
    assert count(network("ddpmpp")) == 61_804_419


def test_ncsnpp_is_ddpmpp_with_fourier_features_and_a_residual_input():
    """Song et al. 2021, appendix H: twice the input of the first time layer, and three strided 3x3 convolutions."""
    fourier = 128 * 512
    residual_input = sum(9 * a * b + b for a, b in ((3, 128), (128, 256), (256, 256)))
    assert count(network("ncsnpp")) == 61_804_419 + fourier + residual_input
    assert count(network("ncsnpp_deep")) == count(network("ddpmpp_deep")) + fourier + residual_input


@pytest.mark.parametrize("name, millions", [("edm_ddpmpp", 55.7), ("edm_ncsnpp", 56.4)])
def test_edm(name, millions):
    """The table of github.com/locuslab/ect, which trains EDM's networks on CIFAR-10."""
    assert round(count(network(name, augment_channels=9)) / 1e6, 1) == millions


def test_ncsnv2():
    """29,694,083 trainable parameters in the paper's CIFAR-10 checkpoint, as logged by a public loader of it."""
    assert count(network("ncsnv2")) == 29_694_083


def test_ncsn_is_ncsnv2_with_conditional_norms():
    """Song & Ermon 2019: 3 parameters a channel and level in each norm, and norms in the refine blocks too."""
    residual = 4 * 128 + (2 * 128 + 2 * 256) + 4 * 256 + 4 * 256 + 128
    refine = 8 * 256 + 14 * 256 + (10 * 256 + 4 * 128) + 18 * 128
    assert count(network("ncsn")) == 29_694_083 - 3 * residual + 10 * 3 * (residual + refine)


@pytest.mark.parametrize("name, millions", [("dit_s", 33), ("dit_b", 130), ("dit_l", 458), ("dit_xl", 675)])
def test_dit(name, millions):
    """Peebles & Xie 2023, arXiv:2212.09748, their models of patch 2; 1000 classes, a learned variance."""
    model = network(name, image_channels=4, out_channels=8, num_classes=1000)
    assert int((count(model) + model.positions.numel()) / 1e6 + 0.5) in (millions, millions + 1)


def test_dit_xl():
    """675,129,632 printed by the paper's code, which counts the frozen table of positions."""
    model = network("dit_xl", image_channels=4, out_channels=8, num_classes=1000)
    assert count(model) + model.positions.numel() == 675_129_632


def test_peers_tiny_network():
    """The one-million-parameter U-Net of the benchmarks, as diffusers builds it (32 channels, attention at 4 x 4)."""
    with torch.device("meta"):
        assert count(UNet(1, 1, 8, 32, (1, 2), 2, (4,))) == 1_001_729
        assert count(network("unet_small", image_channels=1, resolution=8)) < 1_001_729


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_yaml_builds(path):
    resolution = {"adm": 64, "ncsnv2_128": 128, "ncsnv2_256": 256, "ncsnpp_256": 256}.get(path.stem, 32)
    changes = {"num_classes": 10} if path.stem == "adm" else {}
    if path.stem == "mlp":
        cfg = OmegaConf.load(path)
        cfg.update(in_channels=2, out_channels=2)
        assert count(instantiate(cfg)) > 0
    else:
        assert network(path.stem, resolution=resolution, **changes).in_channels == 3
