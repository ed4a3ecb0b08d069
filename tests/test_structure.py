"""The house's plan (which part may import which, conf/ mirrors src/), read from the files themselves."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
SOURCE, CONF = ROOT / "src" / "triptych", ROOT / "conf"

WAIST = {"schedule", "denoiser", "noise"}
MEASURING = WAIST | {"sampler", "metric", "image", "generate", "record", "evaluation"}
ALLOWED = {  # part -> the parts it may import; a new part gets a line here
    "disk": set(),
    "status": {"disk"},
    "signals": set(),
    "schedule": set(),
    "noise": set(),
    "image": set(),
    "ode": set(),
    "posthoc": set(),
    "pieces": {"disk"},
    "shard": {"pieces"},
    "compilation": set(),
    "model": set(),
    "download": set(),
    "dataset": {"download", "image"},
    "denoiser": {"schedule"},
    "sampler": WAIST | {"ode"},
    "guidance": WAIST,
    "metric": WAIST | {"ode", "image", "download", "disk"},
    "formulation": WAIST | {"shard"},
    "generate": WAIST | {"sampler", "metric", "image"},
    "record": WAIST | {"sampler", "metric", "image", "disk"},
    "progress": set(),
    "collection": {"progress"},
    "reference": {"collection", "metric", "progress"},
    "cost": WAIST | {"generate"},
    "evaluation": MEASURING | {"reference", "collection", "progress"},
    "explain": set(),
    "tradeoff": {"record", "disk"},
    "doctor": {"dataset", "metric", "schedule", "progress"},
    "scalars": set(),
    "tracking": {"image", "scalars", "record", "disk"},
    "callback": MEASURING | {"tracking", "posthoc", "disk", "status", "signals", "shard", "pieces"},
    "layout": set(),
    "run": MEASURING
    | {"callback", "tracking", "formulation", "posthoc", "layout", "disk", "status", "shard", "pieces"},
    "report": {"record", "sampler", "scalars", "status"},
    "check": set(),
    "conf": set(),
    "refusal": {"conf"},
    "recall": {"conf", "refusal", "layout", "run"},
    "cli": {"conf", "refusal", "check"},
    "training": MEASURING
    | {"callback", "tracking", "formulation", "dataset", "run", "disk", "signals", "shard", "status"}
    | {"cli", "conf", "refusal", "compilation"},
    "find_batch": {"cli", "conf", "refusal", "compilation", "signals", "training"},
    "sweep": {"callback", "check", "dataset", "disk", "noise", "record", "signals", "status"}
    | {"cli", "conf", "recall", "refusal"},
    "cells": {"conf", "recall"},
}
GROUPS = ("formulation", "schedule", "model", "sampler", "guidance", "dataset", "metric", "callback")  # of conf and src
INTERCHANGEABLE = ("formulation", "model", "sampler", "dataset", "guidance")  # only Hydra names their classes
SHORT_NAMES = {
    "kid": "KernelDistance",
    "fid_infinity": "FrechetInfinity",
    "inception": "feature_metrics",
    "progress": "ProgressBar",
}


def files(*folders):
    return sorted(p for folder in folders for p in folder.rglob("*.py"))


def imported(path):
    """(part, name or None) of every import of our own package in a file, e.g. ("sampler", "DDIM")."""
    package = path.relative_to(ROOT / "src").parent.parts if path.is_relative_to(ROOT / "src") else ()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            found = [(f"{module}.{a.name}" if module == "triptych" else module, a.name) for a in node.names]
        else:
            continue
        for module, name in found:
            root, *rest = module.split(".")
            if root == "triptych" and rest:
                yield rest[0], name


def part_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("part", sorted({part_of(path) for path in files(SOURCE)} - {"__init__"}))
def test_arrows_point_one_way(part):
    assert part in ALLOWED, f"triptych.{part} is new: say in ALLOWED what it may import"
    above = {
        f"{path.relative_to(SOURCE)} imports triptych.{name}"
        for path in files(SOURCE)
        if part_of(path) == part
        for name, _ in imported(path)
        if name not in ALLOWED[part] | {part, "__version__"}
    }
    assert not above


def test_the_package_itself_imports_nothing():
    assert not list(imported(SOURCE / "__init__.py"))


def test_the_table_itself_has_no_circle():
    order = list(ALLOWED)
    for part, below in ALLOWED.items():
        assert all(order.index(b) < order.index(part) for b in below - {part} if b in ALLOWED)


def targets(node):
    """Every `_target_` in a yaml, the outermost first."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def yamls(group):
    return sorted((CONF / group).glob("*.yaml"))


def top_target(path):
    return (OmegaConf.to_container(OmegaConf.load(path)) or {}).get("_target_")


def concrete(group):
    """The classes of a group that its yamls name."""
    built = {t for path in yamls(group) for t in targets(OmegaConf.to_container(OmegaConf.load(path)))}
    return {t.rpartition(".")[2] for t in built if t.startswith(f"triptych.{group}.")}


def test_generic_code_names_no_concrete_class():
    named = {(group, name) for group in INTERCHANGEABLE for name in concrete(group)}
    for path in files(SOURCE) + sorted(ROOT.glob("*.py")):
        home = part_of(path) if path.is_relative_to(SOURCE) else None
        found = {(part, name) for part, name in imported(path) if part != home} & named
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


@pytest.mark.parametrize("path", [p for g in GROUPS for p in yamls(g)], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_conf_mirrors_src(path):
    group, target = path.parent.name, top_target(path)
    if target is None:
        assert OmegaConf.load(path).get("defaults"), f"{path.name} has neither a _target_ nor defaults"
        return
    assert target.startswith(f"triptych.{group}.")
    name = target.rpartition(".")[2]
    alone = Counter(map(top_target, yamls(group)))[target] == 1
    if alone and SHORT_NAMES.get(path.stem) != name:
        assert path.stem.replace("_", "") == name.lower(), f"{group}/{path.name} builds {name}"


@pytest.mark.parametrize("group", ["formulation", "schedule", "sampler", "model", "guidance", "dataset"])
def test_every_public_class_has_a_yaml(group):
    """One file, one yaml, one line in the folder's __init__."""
    module = importlib.import_module(f"triptych.{group}")
    noun = getattr(module, group.capitalize(), object)
    public = {
        value
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__.startswith("triptych.") and not inspect.isabstract(value)
        if issubclass(value, noun)
    }
    final = {c.__name__ for c in public if not c.__subclasses__()}
    assert final == {target.rpartition(".")[2] for target in map(top_target, yamls(group)) if target}


def test_no_class_is_built_on_a_concrete_one():
    """A class is abstract or final; to change behaviour, wrap or write a new file."""
    named = {name for group in GROUPS for name in concrete(group)}
    for path in files(SOURCE):
        for node in ast.walk(ast.parse(path.read_text())):
            bases = [ast.unparse(b).rpartition(".")[2] for b in node.bases] if isinstance(node, ast.ClassDef) else []
            assert not named & set(bases), f"{path.relative_to(SOURCE)}: {node.name} is built on {bases}"


def test_no_file_knows_the_machine_it_was_written_on():
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    home = re.compile(rb"(?<![\w./-])/(home|root|Users|work|mnt|scratch)/[\w.]")
    found = []
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix not in (".png", ".gif", ".safetensors", ".npz", ".ckpt"):
            found += [f"{name}:{i}" for i, line in enumerate(path.read_bytes().splitlines(), 1) if home.search(line)]
    assert not found


@pytest.mark.parametrize("module", ["triptych", "triptych.cli", "triptych.disk", "triptych.signals", "triptych.status"])
def test_the_core_imports_nothing_heavy(module):
    heavy = "torch", "lightning", "numpy", "wandb", "matplotlib", "sklearn", "torchmetrics", "rich"
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
