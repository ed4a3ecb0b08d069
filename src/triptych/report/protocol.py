"""What a number was measured with: which numbers may stand in one column, and how two that may not differ."""

import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any

from triptych.record import describe_sampler
from triptych.report.settings import ABSENT, option, show

# Of a record: not what shaped the number, or what a report compares (the sampler and its network calls).
APART = (
    *("metric", "value", "values", "spread", "minimum", "standard_error", "created", "images_per_second"),
    *("world_size", "run", "code", "images_seen", "sampler", "guidance", "nfe", "seconds", "device", "devices"),
)
HIGHER = ("inception_score", "is_", "precision", "recall", "density", "coverage", "accuracy", "images_per_second")
LOWER = (
    *("fid", "fd_", "kid", "kernel", "bits_per_dim", "bpd", "vlb", "mmd", "sliced_wasserstein", "frechet", "nfe"),
    *("val/eps_mse", "cmmd"),
)
QUALITY = ("fid", "fd_", "kid", "kernel", "mmd", "sliced_wasserstein", "cmmd")  # distances of samples from data
LIKELIHOOD = ("bits_per_dim", "bpd", "vlb")


def protocol(record: dict[str, Any]) -> dict[str, str]:
    """Everything that shaped a number except what is compared, flat, as text.

    An unknown field counts; one that is null is as one that is not there, since records gain fields.
    """
    flat: dict[str, str] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(inner, f"{name}.{key}")
        elif value is not None:
            flat[name] = show(value)

    for key, value in record.items():
        if key not in APART:
            walk(KINDS[key](value) if key in KINDS else value, key)
    return flat


def weights_kind(weights: Any) -> Any:
    """The average that a run takes while it trains is a setting of the run; any other is part of the protocol."""
    return "ema" if str(weights).startswith(("ema(half_life", "ema(decay")) else weights


def rounding(computing: Any) -> Any:
    """Batch size and device move nothing that is told; half precision does."""
    precision = computing.get("precision") if isinstance(computing, dict) else None
    return None if precision in (None, "32-true", "64-true") else {"precision": precision}


KINDS = {"weights": weights_kind, "computing": rounding}


def key_of(flat: dict[str, str]) -> str:
    return json.dumps(flat, sort_keys=True)


def differences(protocols: Sequence[dict[str, str]]) -> list[str]:
    """Of several protocols of one metric, what each has that the others have not: one text a protocol."""
    keys = [k for k in dict.fromkeys(k for p in protocols for k in p) if len({p.get(k) for p in protocols}) > 1]
    return [", ".join(f"{k} {p.get(k, ABSENT)}" for k in keys) for p in protocols]


def describe(flat: dict[str, str]) -> str:
    """A protocol in one line for people: the fields that every record has in words, any other as it is."""
    rest = {k: v for k, v in flat.items() if v not in ("null", "none")}

    def take(name: str) -> str:
        return rest.pop(name, "")

    words = []
    if count := take("num_samples"):
        words.append(f"N = {count}")
    if name := take("extractor.name"):
        words.append(f"extractor {name} (sha256 {_brief(take('extractor.sha256'))})")
    if name := take("reference.dataset"):
        images, hashed = take("reference.num_images"), _brief(take("reference.transform"))
        words.append(f"against {name}/{take('reference.split')} ({images} images, transform {hashed})")
    if first := take("seeds.first"):
        blocks = take("seeds.blocks")
        several = f", {blocks} such blocks" if blocks not in ("", "1") else ""
        words.append(f"samples {first} to {take('seeds.last')} of seed {take('seeds.seed')}{several}")
    elif seed := take("seeds.seed"):
        blocks = take("seeds.blocks")
        words.append(f"seed {seed}" + (f", {blocks} seed blocks" if blocks not in ("", "1") else ""))
    if weights := take("weights"):
        words.append(f"{weights} weights")
    words += [
        f"{key} {_brief(value)}" if key not in ("quantisation", "resize") else value for key, value in rest.items()
    ]
    return "; ".join(words)


def _brief(value: str) -> str:
    """A hash by its beginning; anything else whole."""
    return value[:8] if len(value) >= 16 and all(c in "0123456789abcdef" for c in value.lower()) else value


def direction(metric: str) -> int:
    """-1 where less is better, 1 where more is, 0 where nobody knows."""
    name = metric.rpartition("/")[2] if not metric.startswith("val/") else metric
    return 1 if name.startswith(HIGHER) else -1 if name.startswith(LOWER) else 0


def sampler_key(record: dict[str, Any]) -> str:
    return json.dumps([record.get("sampler"), record.get("guidance")], sort_keys=True, default=str)


def sampler_labels(records: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Of every sampler that was used, a short name: its class, its steps, and what tells it from its like."""
    used = {sampler_key(r): (r.get("sampler") or {}, r.get("guidance")) for r in records}
    labels = {}
    for key, (sampler, guidance) in used.items():
        if not sampler:
            labels[key] = ""
            continue
        like = [s for s, _ in used.values() if s and s.get("name") == sampler.get("name")]
        differing = [k for k in sampler if k != "name" and len({json.dumps(s.get(k), default=str) for s in like}) > 1]
        steps = sampler.get("steps")
        words = [str(sampler.get("name", "sampler"))] + ([str(steps)] if steps is not None else [])
        words += [
            f"{k}={_short(sampler[k])}" for k in differing if k != "steps" and not (steps is None and k == "steps")
        ]
        if isinstance(guidance, dict):
            words.append(f"{option(guidance.get('_target_', 'guidance'))} {show(guidance.get('scale', ''))}".strip())
        labels[key] = " ".join(words)
    return labels


def _short(value: Any) -> str:
    return str(value.get("name", "…")) if isinstance(value, dict) else show(value)


def is_own(record: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether a record was drawn by the sampler of the run's own config, without guidance."""
    own, used = config.get("sampler"), record.get("sampler")
    if not isinstance(own, dict) or not isinstance(used, dict) or record.get("guidance"):
        return False
    if str(own.get("_target_", "")).rpartition(".")[2] != used.get("name"):
        return False
    own = {k: v for k, v in own.items() if k in used and k not in ("_target_", "name")}
    if any(value is None and used[k] is not None for k, value in own.items()):  # null: the class chooses
        own |= {
            k: v for k, v in _chosen(str(used["name"]), json.dumps(own, sort_keys=True)).items() if own.get(k) is None
        }
    return all(_same(value, used[k]) for k, value in own.items() if k in used)


@functools.cache
def _chosen(name: str, settings: str) -> dict[str, Any]:
    """What a sampler makes of these settings; nothing if today's sampler does not know them."""
    from triptych import sampler  # here, since a report needs no torch otherwise

    try:
        return describe_sampler(getattr(sampler, name)(**json.loads(settings)))
    except (AttributeError, TypeError, ValueError):
        return {}


def _same(wanted: Any, had: Any) -> bool:
    if isinstance(had, dict):  # a grid or a predictor, described by its name and arguments
        return not isinstance(wanted, str) or _plain(wanted) == _plain(str(had.get("name")))
    if isinstance(wanted, (int, float)) and isinstance(had, (int, float)):
        return abs(wanted - had) <= 1e-9 * max(abs(wanted), abs(had))
    return wanted == had or str(wanted) == str(had)


def _plain(name: str) -> str:
    """ReverseDiffusion and reverse_diffusion are one."""
    return name.replace("_", "").lower()
