"""Writes docs/recipes.md, the table of the papers' recipes, from conf/experiment: python docs/recipes.py"""

from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from triptych import conf

HERE = Path(__file__).resolve().parent
QUICK = ("digits_", "fashion_")
HEADER = ["experiment", "paper", "parameters", "global batch", "images", "sampler", "network calls", "FID", "bits/dim"]
TEXT = """# The papers' recipes

One experiment a row of a paper. `python train.py experiment=<name>` trains it on one GPU, and

    python train.py experiment=<name> trainer=ddp

on all GPUs of the machine: batch sizes are global, each process takes its share. The yaml in `conf/experiment/` holds
every constant beside the paper's own symbol, says where it was read, and under `published:` what the paper reports
and how it was measured (`python train.py experiment=<name> --cfg job` prints all of it). Our images are in [-1, 1];
where a paper's are in [0, 1], its sigmas are doubled and its Langevin steps multiplied by four. FID and bits per
dimension below are **the papers'**, by their 50,000 samples against the training set unless the yaml says otherwise:
none of them has been measured here.

"""
AFTER = """
The quick ones, for a laptop: `digits_*` and `fashion_*` for `ddpm`, `ncsn`, `vp`, `sub_vp`, `ve`, `edm` and `flow`, and
`digits_conditional`. What they give: [results.md](results.md).
"""


def paper(name: str) -> str:
    """The first arXiv number that the yaml, or the one it builds on, names."""
    path = conf.FOLDER / "experiment" / f"{name}.yaml"
    text = path.read_text()
    number = text.partition("arXiv:")[2][:10]
    return f"[{number}](https://arxiv.org/abs/{number})"


def row(name: str, config: DictConfig) -> list[str]:
    with torch.device("meta"):
        size = sum(p.numel() for p in instantiate(config.model).parameters())
    published = config.published
    sampler = config.sampler
    said = sampler._target_.rpartition(".")[2]
    return [
        f"`{name}`",
        paper(name),
        f"{size / 1e6:.1f} M",
        f"{config.global_batch_size:,}",
        f"{config.global_batch_size * config.trainer.max_steps / 1e6:,.0f} M",
        said,
        "-" if published.get("nfe") is None else f"{published.nfe:,}",
        "-" if published.get("fid") is None else f"{published.fid:.2f}",
        "-" if published.get("bits_per_dim") is None else f"{published.bits_per_dim:.2f}",
    ]


def main() -> None:
    conf.register_resolvers()
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    with initialize_config_dir(str(conf.FOLDER), version_base="1.3"):
        for name in conf.options("experiment"):
            if not name.startswith(QUICK):
                lines.append("| " + " | ".join(row(name, compose("train", [f"experiment={name}"]))) + " |")
    (HERE / "recipes.md").write_text(TEXT + "\n".join(lines) + "\n" + AFTER)
    print(HERE / "recipes.md")


if __name__ == "__main__":
    main()
