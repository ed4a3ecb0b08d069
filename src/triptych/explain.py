"""Why two numbers differ: every way in which their protocols do, and what that is known to do to a value."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VALUES = ("value", "values", "spread", "minimum", "standard_error", "created", "images_per_second", "run")
EFFECTS = (  # beginning of a field's name -> what a difference there is known to do; the first that fits
    ("metric", "another quantity, or another N: see the other rows"),
    (
        "num_samples",
        "fewer samples raise a Fréchet distance, by about a constant over N; compare at one N, or use "
        "fid_infinity or kid (T-F4)",
    ),
    ("extractor", "another network's features: the two numbers are not on one scale (T-F8)"),
    ("reference.dataset", "compared with other images: the numbers do not compare"),
    ("reference.split", "DDPM's CIFAR-10 FID is 3.17 against train and 5.24 against test (T-F5)"),
    ("reference.transform", "the real images were cropped, resized or decoded differently (T-F6, T-F7)"),
    ("reference.num_images", "fewer real images raise a Fréchet distance just as fewer samples do (T-F4)"),
    ("reference", "compared with something else: the numbers do not compare"),
    ("quantisation", "truncation darkens by half a grey level; no rounding at all is another image (T-F2, T-F3)"),
    ("resize", "antialiasing and pixel centres move Inception's features: a different number, if a close one (T-F1)"),
    ("weights", "raw and averaged weights, or two lengths of the average, make different images (T-E1)"),
    ("sampler.name", "another sampler: its error at this number of steps is part of the value"),
    ("sampler.steps", "fewer steps leave more discretisation error"),
    ("sampler.denoise", "noise left in the last step: 33 -> 38 FID at N = 1k if it stays (T-S1)"),
    ("sampler.clip", "clipping x_0 changes every step where it acts"),
    ("sampler.grid", "other times, other discretisation error"),
    ("sampler", "another setting of the sampler"),
    ("guidance", "guidance trades variety for fidelity; its scale must be stated (T-F13)"),
    ("nfe", "more network calls a sample: less discretisation error, more time"),
    ("seeds", "other noise: see ± over seed blocks, and the minimum, which EDM's papers report"),
    ("labels", "random and balanced labels differ for class-conditional models (T-F13)"),
    ("images_seen", "the network was trained for longer, or shorter"),
    ("arguments", "the metric's own settings: subset sizes, splits and k change its value (T-F14)"),
    ("source.format", "how the samples were stored: JPEG artefacts move every distance (T-F7)"),
    ("source", "which file the samples came from, if they were not made on the spot"),
    ("world_size", "nothing: values do not depend on the number of devices (tested to 1e-6)"),
    (
        "computing.precision",
        "half precision rounds every network call: other samples, at few steps a visibly other number",
    ),
    ("computing", "rounding: at most one grey level a sample, and 1e-3 of a distance (tested)"),
    ("code.torch", "rounding: other kernels, the last digits"),
    ("code", "another version of the code"),
)
CHECKPOINT = "of which run: other weights altogether"


def read(path: Path | str) -> dict[str, Any]:
    """A record of an evaluation; refuses what is none."""
    path = Path(path)
    if path.is_dir():
        folder = path / "evaluations" if (path / "evaluations").is_dir() else path
        files = sorted(folder.glob("*.json"))
        if len(files) != 1:
            some = ", ".join(str(f) for f in files[:4])
            hint = f" ({some}, …)" if files else ""
            raise ValueError(f"{path} holds {len(files)} records: name one of them{hint}.")
        path = files[0]
    if not path.exists():
        raise FileNotFoundError(f"There is no record at {path}: records are in <run>/evaluations/*.json.")
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no record of an evaluation: it is not JSON.") from error
    if not isinstance(record, dict) or not {"metric", "value"} <= set(record):
        raise ValueError(f"{path} is no record of an evaluation: it has no metric and value.")
    return record


def differences(one: dict[str, Any], two: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(field, first's, second's, what is known of it) of everything that was not measured the same way."""
    a, b = dict(_flat(one)), dict(_flat(two))
    rows = []
    for name in dict.fromkeys([*a, *b]):
        if a.get(name) != b.get(name):
            rows.append((name, _said(a.get(name)), _said(b.get(name)), effect(name)))
    if one.get("run") != two.get("run"):
        rows.append(("run", _said(one.get("run")), _said(two.get("run")), CHECKPOINT))
    return rows


def effect(name: str) -> str:
    """What a difference in this field is known to do to a value."""
    return next((said for beginning, said in EFFECTS if (name + ".").startswith(beginning)), "")


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        name = f"{prefix}{key}"
        if name in VALUES:
            continue
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _said(value: Any) -> str:
    return "-" if value is None else str(value)


def page(one: dict[str, Any], two: dict[str, Any]) -> str:
    """Both numbers, then a table of what was different, the gravest first."""
    import io

    from rich.console import Console
    from rich.table import Table

    lines = []
    for name, record in (("A", one), ("B", two)):
        plus_minus = f" ± {record['spread']:.3g}" if record.get("spread") is not None else ""
        lines.append(f"{name}  {record['metric']} {record['value']:.4g}{plus_minus}   {record.get('created', '')}")
    rows = differences(one, two)
    if not rows:
        return "\n".join([*lines, "Both were measured in exactly the same way."])
    order = {beginning: i for i, (beginning, _) in enumerate(EFFECTS)}
    rows.sort(key=lambda row: min((i for b, i in order.items() if (row[0] + ".").startswith(b)), default=99))
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title, width in (("measured differently", None), ("A", 26), ("B", 26), ("what that does", 46)):
        shown.add_column(title, overflow="fold", max_width=width)
    for row in rows:
        shown.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=130).print(shown)
    return "\n".join([*lines, "", out.getvalue().rstrip()])
