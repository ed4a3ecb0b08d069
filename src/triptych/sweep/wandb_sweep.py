"""The same search for W&B: its agents run `python train.py <settings>`, as Hydra reads them."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import NopPruner
from optuna.samplers import BruteForceSampler, RandomSampler

from triptych import disk

if TYPE_CHECKING:
    from triptych.sweep.search import Plan


def definition(plan: "Plan") -> dict[str, Any]:
    """A W&B sweep of the same space and objective; its methods are grid, random and bayes."""
    if len(plan.objectives) > 1:
        raise ValueError("A W&B sweep has a single objective: give sweep.objectives one name.")
    ((metric, direction),) = plan.objectives.items()
    kinds = {BruteForceSampler: "grid", RandomSampler: "random"}
    found: dict[str, Any] = {
        "program": "train.py",
        "method": kinds.get(type(plan.sampler), "bayes"),
        "metric": {"name": metric, "goal": direction},
        "run_cap": plan.config.n_trials,
        "parameters": {name: _parameter(d) for name, d in plan.space.items()},
        "command": ["${env}", "${interpreter}", "${program}", *plan.base, "${args_no_hyphens}"],
    }
    if not isinstance(plan.pruner, NopPruner):
        found["early_terminate"] = {"type": "hyperband", "min_iter": 1, "eta": 3}
    return found


def _parameter(distribution: Any) -> dict[str, Any]:
    if isinstance(distribution, CategoricalDistribution):
        return {"values": ["null" if choice is None else choice for choice in distribution.choices]}
    d: IntDistribution | FloatDistribution = distribution
    whole = isinstance(d, IntDistribution)
    ends = {"min": d.low, "max": d.high}
    if d.log:
        kind = {"distribution": "q_log_uniform_values", "q": 1} if whole else {"distribution": "log_uniform_values"}
        return {**kind, **ends}
    if d.step is not None and d.step != 1:
        return {"distribution": "q_uniform", "q": d.step, **ends}
    return {"distribution": "int_uniform" if whole else "uniform", **ends}


def write(plan: "Plan") -> str:
    """Writes wandb.yaml in the study's folder; returns what to type next."""
    path = Path(plan.folder) / "wandb.yaml"
    content = definition(plan)
    with disk.replacing(path) as file:
        file.write(
            f"# {shlex.join(['wandb', 'sweep', os.path.relpath(path)])}\n{yaml.safe_dump(content, sort_keys=False)}"
        )
    shown = os.path.relpath(path)
    project = plan.composed.logger.project if plan.composed.get("logger") else "triptych"
    return "\n".join(
        [
            f"Wrote {shown}. To search with W&B:",
            f"  wandb sweep --project {project} {shown}    (prints the sweep's id)",
            "  wandb agent <entity>/<project>/<id>          (on as many machines as you like)",
        ]
    )
