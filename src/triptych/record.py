"""A number with its protocol: a value without it is not a result, so an incomplete record cannot be written."""

import dataclasses
import functools
import hashlib
import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych import __version__, disk

QUANTISATION = "uint8, floor(127.5 x + 128)"  # of samples that are images (image.to_uint8)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One evaluation.

    Attributes:
        metric: name with its number of samples, e.g. fid_50k, fd_digits_1k. `fid` alone is the 2015 Inception.
        values: over seed blocks; `value` is their mean, `spread` their standard deviation (None for one block).
        extractor: name and sha256 of the feature network; None where a metric has none.
        reference: dataset, split, transform hash and number of images compared with.
        quantisation, resize: how samples became what the extractor saw.
        weights: "raw", or the EMA profile.
        sampler: all its arguments.
        guidance: all its arguments, or None.
        nfe: network calls per sample, counted.
        seeds: first and last index of each seed block, and the seed.
        labels: how labels were chosen, or None.
        images_seen: by the network in training.
        world_size: number of processes; it must not change the value.
        computing: what sums are rounded by: precision, batch_size, compile, device; None if not known.
        arguments: of the metric, where it has any that shape the number: subset size, splits, k.
        source: of samples that were not made here: file, format, its checksum.
    """

    metric: str
    values: list[float]
    num_samples: int
    extractor: dict[str, Any] | None
    reference: dict[str, Any] | None
    quantisation: str
    resize: str
    weights: str
    sampler: dict[str, Any] | None
    guidance: dict[str, Any] | None
    nfe: int | None
    images_per_second: float | None
    seeds: dict[str, Any] | None
    labels: Any
    images_seen: int | None
    world_size: int
    computing: dict[str, Any] | None
    run: str
    standard_error: float | None = None
    arguments: dict[str, Any] | None = None
    source: dict[str, Any] | None = None
    code: dict[str, Any] = field(default_factory=lambda: code_version())
    created: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))

    def __post_init__(self) -> None:
        for name in ("metric", "quantisation", "resize", "weights", "run"):
            if not getattr(self, name):
                raise ValueError(f"An evaluation record needs its {name}.")
        if not self.values or any(v != v or v in (float("inf"), float("-inf")) for v in self.values):
            raise ValueError(f"An evaluation record needs finite values, got {self.values}.")

    @property
    def value(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seed blocks (n - 1)."""
        n = len(self.values)
        return (sum((v - self.value) ** 2 for v in self.values) / (n - 1)) ** 0.5 if n > 1 else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values; `value`, `spread` and `minimum` come first."""
        shown = {"metric": self.metric, "value": self.value, "spread": self.spread, "minimum": min(self.values)}
        return shown | dataclasses.asdict(self)

    @property
    def key(self) -> str:
        """A short name of everything that shaped the number, except when it was made and how fast."""
        shaping = dataclasses.asdict(self)
        for name in ("values", "created", "images_per_second", "world_size", "standard_error"):
            shaping.pop(name)
        digest = hashlib.sha256(json.dumps(shaping, sort_keys=True, default=str).encode()).hexdigest()[:8]
        return f"{self.metric}-{digest}"

    def write(self, folder: Path | str) -> Path:
        """Writes `<key>.json` in the folder, by a rename."""
        path = Path(folder) / f"{self.key}.json"
        write_json(path, self.as_dict())
        return path

    def describe(self) -> str:
        """One line for people: the value and what it was measured with."""
        return "; ".join(self.parts())

    def parts(self) -> list[str]:
        """The value, and in a phrase each what it was measured with."""
        plus_minus = ""
        if self.spread is not None:
            plus_minus = f" ± {self.spread:.3g} over {len(self.values)} seed blocks (minimum {min(self.values):.4g})"
        if self.spread is None and self.standard_error is not None:
            plus_minus = f" ± {self.standard_error:.2g} (s.e.)"
        parts = [f"{self.metric} {self.value:.4g}{plus_minus}"]
        if self.sampler:
            parts.append(f"{self.sampler.get('name', 'sampler')}, {self.nfe} network calls")
        if self.source:
            parts.append(f"of {self.source.get('file')}")
        if self.reference:
            parts.append(f"against {self.reference.get('dataset')}/{self.reference.get('split')}")
        if self.arguments:
            parts.append(", ".join(f"{key} {value}" for key, value in self.arguments.items()))
        parts.append(f"weights {self.weights}")
        return parts


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON by a rename, so that no reader sees half a file."""
    text = json.dumps(content, indent=2, default=str, allow_nan=False) + "\n"
    with disk.replacing(path) as file:
        file.write(text)


def read(folder: Path | str) -> list[dict[str, Any]]:
    """Every record in a folder, oldest first; files that are none are left out."""
    found = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        found += [content] if isinstance(content, dict) else []
    return sorted(found, key=lambda r: str(r.get("created", "")))


def short_count(n: int) -> str:
    """50000 -> 50k, 1000 -> 1k, 1797 -> 1797."""
    return f"{n // 1000}k" if n % 1000 == 0 and n else str(n)


def describe_sampler(sampler: Any) -> dict[str, Any]:
    """A sampler, or any frozen dataclass, as plain values with its name."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return describe_sampler(value)
        if isinstance(value, functools.partial):
            return {"name": value.func.__name__, **value.keywords}
        return value.__name__ if callable(value) else value

    fields = {f.name: plain(getattr(sampler, f.name)) for f in dataclasses.fields(sampler)}
    return {"name": type(sampler).__name__} | fields


def of_samples(job: Any, **more: Any) -> dict[str, Any]:
    """What is written beside kept samples, so that a later measurement of them knows how they were made.

    Args:
        job: the `generate.Job` that has made them. more: what it does not know: run, weights, guidance, computing, ...
    """
    return {
        "num_samples": job.count,
        "seed": job.seed,
        "first": job.first,
        "batch_size": job.block,
        "sampler": describe_sampler(job.sampler),
        "labels": job.labels,
        "nfe": job.nfe,
        "images_per_second": job.images_per_second,
        "quantisation": QUANTISATION if len(job.shape) == 3 else "none",
        "device": str(job.device),
        "code": code_version(),
    } | more


@functools.cache
def code_version() -> dict[str, Any]:
    """Version of the package, commit if it is a checkout, and of torch."""
    import torch  # here, since reading records should not need it

    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=5, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return result.stdout.strip()

    commit = git("rev-parse", "HEAD") if (root / ".git").exists() else None
    changed = bool(git("status", "--porcelain", "--untracked-files=no")) if commit else None
    return {"triptych": __version__, "commit": commit, "changed": changed, "torch": torch.__version__}
