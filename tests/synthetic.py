"""Run folders as train.py and evaluate.py leave them, made in milliseconds: for tests and the benchmark of reports."""

import copy
import csv
import json
import math
import random
from functools import cache
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

from triptych import conf
from triptych.record import Record

Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
FORMULATIONS = {  # what is chosen -> fd_digits at 10 calls, bits per dimension
    "formulation=ddpm": (0.9, 2.9),
    "formulation=ncsn": (1.6, 3.3),
    "formulation=score_sde schedule=vp": (0.8, 2.7),
    "formulation=score_sde schedule=ve": (1.1, 3.1),
    "formulation=edm": (0.6, 2.8),
    "formulation=flow_matching": (0.7, 2.6),
}
EXTRACTOR = {"name": "digits", "sha256": "ab" * 32}
REFERENCE = {"dataset": "digits", "split": "train", "transform": "0123456789abcdef", "num_images": 1617}
CODE = {"triptych": "0.1.0", "commit": "c0ffee", "changed": False, "torch": "2.13.0"}
BINS = [f"{a}_to_{a + 2}" for a in range(-10, 10, 2)]


@cache
def composed(choices: str) -> dict:
    """The config that train.py would write, with the options that were chosen."""
    GlobalHydra.instance().clear()
    conf.register_resolvers()
    with initialize_config_dir(str(conf.FOLDER), version_base="1.3"):
        config = compose("train", [*choices.split(), "logger=none", "name=synthetic"], return_hydra_config=True)
        chosen = {
            k.split("@")[0]: v for k, v in config.hydra.runtime.choices.items() if not k.startswith("hydra") and v
        }
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        config.callback.evaluate.name = "fd_digits"
        config.formulation.seed = config.dataset.seed = config.seed
        plain = OmegaConf.to_container(config, resolve=True)
    plain["choices"] = {k: str(v) for k, v in chosen.items()}
    return plain


def changed(choices, **settings):
    """The composed config with other values: dotted keys, with __ for dots; copies of groups follow."""
    config = copy.deepcopy(composed(choices))
    for key, value in settings.items():
        *path, last = key.split("__")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    for group in ("model", "schedule", "optimizer"):
        config["formulation"][group] = copy.deepcopy(config[group])
    return config


def write_config(folder, overrides, **settings):
    """config.yaml and overrides.yaml."""
    choices = " ".join(o for o in overrides if o.split("=")[0] in ("formulation", "schedule", "sampler", "dataset"))
    config = changed(choices, **settings)
    if "seed" in settings:
        config["formulation"]["seed"] = config["dataset"]["seed"] = settings["seed"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.dump(config, Dumper=Dumper, sort_keys=False))
    (folder / "overrides.yaml").write_text(yaml.dump(list(overrides), Dumper=Dumper))
    return config


def write_record(folder, value, *, metric="fd_digits_1k", sampler=None, nfe=None, images_seen=6400, **changes):
    """A record as evaluate.py writes it."""
    denoiser = sampler is None
    fields = {
        "metric": metric,
        "values": value if isinstance(value, list) else [value],
        "num_samples": 1000,
        "extractor": None if denoiser else EXTRACTOR,
        "reference": REFERENCE,
        "quantisation": "uniform dequantisation" if denoiser else "uint8, floor(127.5 x + 128)",
        "resize": "none",
        "weights": "ema(half_life=500000 images, ramp=0.1)",
        "sampler": sampler,
        "guidance": None,
        "nfe": nfe,
        "images_per_second": None if denoiser else 100.0,
        "seeds": {"seed": 0, "first": 0, "last": 999, "blocks": 1},
        "labels": None,
        "images_seen": images_seen,
        "world_size": 1,
        "computing": None,
        "run": str(folder),
        "code": CODE,
    }
    return Record(**(fields | changes)).write(folder / "evaluations")


def dpm_solver(steps):
    return {"name": "DPMSolver", "steps": steps, "grid": "log_snr", "clip": None, "order": 2, "sde": False}


def own_sampler(config):
    """The sampler of the config, as a record describes it."""
    sampler = {k: v for k, v in config["sampler"].items() if k != "_target_"}
    return {"name": config["sampler"]["_target_"].rpartition(".")[2]} | sampler


def write_metrics(folder, generator, rows=40, level=1.0, images=6400):
    """Curves that fall."""
    columns = ["images_seen", "step", "time", "train/loss", "train/images_per_second", "val/eps_mse", "fd_digits_500"]
    columns += [f"val/eps_mse/log_snr_{name}" for name in BINS]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for k in range(1, rows + 1):
            share = k / rows
            loss = level * (0.1 + math.exp(-4 * share)) * generator.uniform(0.97, 1.03)
            row = [round(share * images), 10 * k, 1.7e9 + 45 * share, f"{loss:.6g}", f"{generator.gauss(900, 20):.6g}"]
            seldom = k % 4 == 0
            row += [f"{loss * 1.05:.6g}", f"{5 * loss:.6g}"] if seldom else ["", ""]
            row += [f"{loss * (0.05 + 0.095 * n):.6g}" if seldom else "" for n in range(len(BINS))]
            writer.writerow(row)


def write_pictures(folder, generator, moments=(1600, 3200, 6400), side=17, factor=8):
    """Grids and strips with enlarged pixels."""
    for kind, (width, height) in {"": (side, side), "strip": (2 * side, side)}.items():
        for seen in moments:
            picture = Image.frombytes("L", (width, height), generator.randbytes(width * height))
            path = folder / "samples" / kind / f"images_seen={seen:09d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.resize((factor * width, factor * height), Image.Resampling.NEAREST).save(path)


def write_status(folder, state="finished", **more):
    content = {"state": state, "step": 400, "images_seen": 6400} | more
    (folder / "status.json").write_text(json.dumps(content))


def run(
    folder, overrides, *, seed=0, quality=1.0, bits=3.0, state="finished", pictures=True, generator=None, **settings
):
    """One whole run: quality is its fd_digits_1k at 10 calls, which more calls make better."""
    folder, generator = Path(folder), generator or random.Random(seed)
    config = write_config(folder, [*overrides, f"seed={seed}"], seed=seed, **settings)
    write_metrics(folder, generator, level=quality)
    write_status(folder, state)
    for steps, factor in ((10, 1.0), (20, 0.7), (50, 0.6)):
        write_record(folder, quality * factor, sampler=dpm_solver(steps), nfe=steps)
    write_record(folder, quality * 0.5, sampler=own_sampler(config), nfe=100)
    write_record(folder, bits, metric="bits_per_dim_32", standard_error=0.02)
    if pictures:
        write_pictures(folder, generator)
    return config


def many(folder, count, seeds=4, pictures=True):
    """A sweep: formulations x learning rates x widths x seeds, with a crash here and there."""
    generator = random.Random(0)
    made = 0
    for trial in range(math.ceil(count / seeds)):
        choices = list(FORMULATIONS)[trial % len(FORMULATIONS)]
        lr, channels = (1e-4, 3e-4, 1e-3, 2e-3, 4e-3)[trial // 6 % 5], (16, 32, 48, 64)[trial // 30 % 4]
        dropout = trial // 120 / 10
        for seed in range(seeds):
            if made == count:
                return
            made += 1
            where = Path(folder) / f"trial{trial:04d}" / f"seed{seed}"
            overrides = [*choices.split(), f"optimizer.lr={lr}", f"model.channels={channels}"]
            settings = {"optimizer__lr": lr, "model__channels": channels, "model__dropout": dropout}
            if made % 50 == 0:  # crashed before its first evaluation
                write_config(where, [*overrides, f"seed={seed}"], seed=seed, **settings)
                write_metrics(where, generator, rows=6)
                write_status(where, "failed", reason="The loss is not finite at step 60.", exit_code=1)
                continue
            quality, bits = FORMULATIONS[choices]
            quality *= (1 + 0.3 * abs(math.log10(lr / 1e-3))) * (32 / channels) ** 0.3 * generator.uniform(0.93, 1.07)
            bits *= generator.uniform(0.98, 1.02)
            run(
                where,
                overrides,
                seed=seed,
                quality=quality,
                bits=bits,
                pictures=pictures,
                generator=generator,
                **settings,
            )
