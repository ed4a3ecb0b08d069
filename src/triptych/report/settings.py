"""From configs to what differs between them: columns of a table, and groups of runs that differ by seed only."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

TARGET = "_target_"
ABSENT = "—"  # a setting that a config does not have
NAMES = ("name", "run_id", "resume", "logger", "choices", "code", "published", "hydra")  # they shape no number
MEASURING = tuple(  # callbacks that watch, and when: what they measured is in the records, with its protocol
    f"callback.{name}"
    for name in ("evaluate", "samples", "likelihood", "vlb", "progress", "monitor", "checkpoint", "stop", "status")
) + tuple(
    f"trainer.{name}"
    for name in (
        *("log_every_n_steps", "val_check_interval", "check_val_every_n_epoch", "limit_val_batches", "profiler"),
        *(
            "limit_test_batches",
            "limit_predict_batches",
            "num_sanity_val_steps",
            "enable_",
            "detect_anomaly",
            "barebones",
        ),
    )
)
PLACES = re.compile(r"(^|\.)(root|cache|path|folder|dir|out|default_root_dir|weights_file|seed)$")  # and seeds


def flatten(config: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts -> dotted keys. A copy of a group (formulation.model is ${model}) is left out."""
    groups = {k: v for k, v in config.items() if isinstance(v, dict) and TARGET in v}
    flat: dict[str, Any] = {}

    def walk(node: dict[str, Any], prefix: str) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if prefix and isinstance(value, dict) and any(value == group for group in groups.values()):
                continue
            if isinstance(value, dict) and value:
                walk(value, f"{name}.")
            else:
                flat[name] = value

    walk(config, "")
    return flat


def shapes(key: str) -> bool:
    """Whether a setting shapes what is trained: not a name, a place, a seed, or a callback that only measures."""
    first = key.split(".")[0]
    return first not in NAMES and not key.startswith(MEASURING) and not PLACES.search(key)


def identity(flat: dict[str, Any]) -> str:
    """The same for runs that differ by their seed only."""
    return json.dumps({k: v for k, v in sorted(flat.items()) if shapes(k)}, default=str)


@dataclass
class Setting:
    """A column of the table.

    Attributes:
        key: dotted, without `._target_`.
        label: its shortest unambiguous end.
        values: of every run, as shown.
        same: other keys with the same values in every run.
    """

    key: str
    label: str
    values: list[Any]
    same: list[str] = field(default_factory=list)


def show(value: Any) -> str:
    """A value for people: null, 0.002, [1, 2]."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(show(v) for v in value) + "]"
    return str(value)


def option(target: Any) -> str:
    """A class as its yaml is called: triptych.schedule.SubVP -> sub_vp."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(target).rpartition(".")[2]).lower()


def compare(configs: Sequence[dict[str, Any]], flats: Sequence[dict[str, Any]]) -> tuple[list[Setting], dict[str, str]]:
    """(what differs, what does not) between the configs.

    A setting inside something that is chosen (`formulation.gamma`) is compared among the runs that chose the same: that
    DDPM has a gamma and EDM has none follows from the formulation, which has a column already.
    """
    keys = list(dict.fromkeys(k for flat in flats for k in flat if shapes(k)))
    names = _names(configs, flats)
    found: list[Setting] = []
    constant: dict[str, str] = {}
    for key in keys:
        values = [_value(key, config, flat, names) for config, flat in zip(configs, flats, strict=True)]
        name = key.removesuffix(f".{TARGET}")
        if _differs(key, values, flats):
            found.append(Setting(name, name, values))
        elif key.endswith("_partial_"):
            continue
        else:
            constant[name] = _told(key, values, flats)
    found = _merge(found)
    _label(found)
    return found, constant


def _names(configs: Sequence[dict[str, Any]], flats: Sequence[dict[str, Any]]) -> dict[tuple[str, Any], str]:
    """{(group, class): the option}, where every config that tells chose the same: older ones do not tell."""
    told: dict[tuple[str, Any], set[str]] = defaultdict(set)
    for config, flat in zip(configs, flats, strict=True):
        chosen = config.get("choices")
        for group, name in chosen.items() if isinstance(chosen, dict) else ():
            told[group, flat.get(f"{group}.{TARGET}")].add(name)
    return {place: next(iter(options)) for place, options in told.items() if len(options) == 1}


def _value(key: str, config: dict[str, Any], flat: dict[str, Any], names: dict[tuple[str, Any], str]) -> Any:
    if key not in flat:
        return ABSENT
    value = flat[key]
    if not key.endswith(f".{TARGET}"):
        return value
    chosen = config.get("choices")
    name = key.removesuffix(f".{TARGET}")
    return chosen[name] if isinstance(chosen, dict) and name in chosen else names.get((name, value), option(value))


def _told(key: str, values: Sequence[Any], flats: Sequence[dict[str, Any]]) -> str:
    """A setting that each choice fixes: its value, or each value with the choice that brings it."""
    brought: dict[str, set[str]] = defaultdict(set)
    for value, flat in zip(values, flats, strict=True):
        if value is not ABSENT:
            brought[show(value)].add(option(_context(key, flat)))
    lost = any(v is ABSENT and flat for v, flat in zip(values, flats, strict=True))
    if len(brought) == 1 and not lost:
        return next(iter(brought))
    return "; ".join(f"{value} with {', '.join(sorted(where))}" for value, where in brought.items())


def _context(key: str, flat: dict[str, Any]) -> Any:
    """What was chosen around a setting: the nearest `_target_` above it."""
    parts = key.removesuffix(f".{TARGET}").split(".")
    for n in range(len(parts) - 1, 0, -1):
        if target := flat.get(".".join([*parts[:n], TARGET])):
            return target
    return None


def _differs(key: str, values: Sequence[Any], flats: Sequence[dict[str, Any]]) -> bool:
    seen: dict[Any, set[str]] = defaultdict(set)
    for value, flat in zip(values, flats, strict=True):
        if flat:  # a run whose config is lost differs in nothing that is known
            seen[_context(key, flat)].add(json.dumps(value, default=str))
    return any(len(v) > 1 for v in seen.values())


def _merge(settings: Iterable[Setting]) -> list[Setting]:
    """Columns that are equal in every run become one, under the shortest key."""
    merged: dict[str, Setting] = {}
    for setting in sorted(settings, key=lambda s: s.key.count(".")):
        content = json.dumps(setting.values, default=str)
        if content in merged:
            merged[content].same.append(setting.key)
        else:
            merged[content] = setting
    first = ("dataset", "formulation", "schedule", "model", "sampler")
    return sorted(merged.values(), key=lambda s: (first.index(s.key) if s.key in first else len(first), s.key))


def _label(settings: Sequence[Setting]) -> None:
    """The last part of each key, and as many parts before it as tell it from the others."""
    length = {s.key: 1 for s in settings}
    while True:
        labels = {s.key: ".".join(s.key.split(".")[-length[s.key] :]) for s in settings}
        twice = [k for k, v in labels.items() if list(labels.values()).count(v) > 1 and length[k] <= k.count(".")]
        if not twice:
            break
        for key in twice:
            length[key] += 1
    for setting in settings:
        setting.label = labels[setting.key]
