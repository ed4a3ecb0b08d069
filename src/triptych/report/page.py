"""One static page out of a table: data, style, script and Plotly inside, no request to anywhere."""

import json
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from triptych import __version__
from triptych.report import pictures
from triptych.report.figures import figures
from triptych.report.protocol import describe
from triptych.report.runs import Run
from triptych.report.settings import flatten, shapes, show
from triptych.report.significance import TEST
from triptych.report.table import BEST, OWN, Cell, Column, Row, Table, _calls, training_summary

HERE = Path(__file__).parent


def write(path: Path, table: Table, title: str, most_pictures: int) -> list[dict[str, Any]]:
    """Writes the page; gives back its figures."""
    drawn = figures(table)
    path.write_text(page(data(table, drawn, title, path.parent, most_pictures), title), encoding="utf-8")
    return drawn


def page(content: dict[str, Any], title: str) -> str:
    """The template, filled in one pass: nothing that is put in is looked at again."""
    from plotly.offline import get_plotlyjs

    parts = {
        "title": title.replace("&", "&amp;").replace("<", "&lt;"),
        "style": (HERE / "page.css").read_text(),
        "data": harmless(content),
        "script": (HERE / "page.js").read_text(),
        "plotly": get_plotlyjs(),
    }
    first, *rest = (HERE / "page.html").read_text().split("{{")
    return first + "".join(parts[name] + text for name, _, text in (piece.partition("}}") for piece in rest))


def harmless(content: Any) -> str:
    """JSON that cannot end the element that it stands in, whatever a run is called."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def data(table: Table, drawn: list[dict[str, Any]], title: str, out: Path, most_pictures: int) -> dict[str, Any]:
    """Everything that the page's script reads."""
    embedded, note = pictures.embed(table, most_pictures)
    group_of = {index: number for number, row in enumerate(table.groups) for index in row.runs}
    lines = _lines(drawn)
    keys, naming, values, configs = _configs(table.runs)
    training = list(training_summary(table.groups[0], table.runs))
    groups = [_row(row, table, number) | _style(lines.get(number)) for number, row in enumerate(table.groups)]
    singles = [_row(row, table, group_of[row.runs[0]]) for row in table.singles]
    empty = [name for n, name in enumerate(training) if all(row["training"][n] is None for row in singles)]
    return {
        "title": title,
        "summary": summary(table),
        "own": OWN,
        "best": BEST,
        "test": TEST,
        "settings": [{"label": s.label, "key": s.key, "same": s.same} for s in table.settings],
        "columns": [_column(c) for c in table.columns],
        "training": training,
        "empty": empty,
        "groups": groups,
        "singles": singles,
        "warnings": table.warnings,
        "marks": sorted({f"{c.metric} [{c.mark}]: {c.difference}" for c in table.columns if c.mark}),
        "constant": table.constant,
        "protocols": table.protocols,
        "figures": drawn,
        "pictures": embedded,
        "pictures_note": note,
        "keys": keys,
        "naming": naming,
        "values": values,
        "runs": [
            _run(run, group_of[i], config, out) for i, (run, config) in enumerate(zip(table.runs, configs, strict=True))
        ],
    }


def summary(table: Table) -> str:
    """How many runs there are and how they ended, in one line."""
    ended: dict[str, int] = {}
    for run in table.runs:
        ended[run.status] = ended.get(run.status, 0) + 1
    count = len(table.runs)
    without = sum(1 for run in table.runs if not run.records)
    parts = [f"{count} run{'s' * (count != 1)} in {len(table.groups)} row{'s' * (len(table.groups) != 1)}"]
    parts += [", ".join(f"{n} {status}" for status, n in sorted(ended.items()))]
    parts += [f"{without} without evaluation"] if without else []
    return "; ".join(parts) + f". Triptych {__version__}, {time.strftime('%Y-%m-%d %H:%M')}."


def _lines(drawn: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The line of every group that is drawn anywhere."""
    traces = [t for figure in drawn for choice in figure["choices"] for t in choice["data"] if "group" in t["meta"]]
    return {t["meta"]["group"]: t["line"] for t in traces if "line" in t}


def _style(line: dict[str, Any] | None) -> dict[str, str]:
    """How the page draws a row's line: dashes as style sheets know them."""
    line = line or {"color": "#888888", "dash": "solid"}
    return {
        "colour": line["color"],
        "dash": {"solid": "solid", "dash": "dashed", "dot": "dotted"}.get(line["dash"], "double"),
    }


def _column(column: Column) -> dict[str, Any]:
    return {
        "metric": column.metric,
        "mark": column.mark,
        "sampler": column.sampler,
        "title": column.title,
        "calls": column.calls,
        "direction": column.direction,
        "protocol": describe(column.protocol),
    }


def _row(row: Row, table: Table, group: int) -> dict[str, Any]:
    cells = {n: _cell(cell, table.columns[n]) for n, cell in row.cells.items()}
    told = training_summary(row, table.runs).values()
    return {
        "label": row.label,
        "group": group,
        "runs": row.runs,
        "settings": row.settings,
        "status": row.status,
        "evaluated": bool(row.cells),
        "cells": cells,
        "training": [None if v is None else float(f"{v:.5g}") for v in told],
    }


def _cell(cell: Cell, column: Column) -> dict[str, Any]:
    count = len(cell.sample.values)
    said = [f"{count} seed{'s' * (count != 1)}: " + ", ".join(f"{v:.4g}" for v in cell.sample.values)]
    said += [cell.test] if cell.test else []
    said += [cell.sampler, _calls(cell)] if cell.sampler else []
    said += [f"after {cell.images_seen[-1]:,} images"] if cell.images_seen else []
    small = f"{cell.sampler}, {_calls(cell)}" if column.sampler == OWN else ""
    if not small and column.calls is None and cell.calls:
        small = _calls(cell)
    shown = {"text": cell.text, "value": cell.sample.mean, "mark": cell.mark, "title": "; ".join(said + cell.warnings)}
    return shown | ({"small": small} if small else {}) | ({"warned": True} if cell.warnings else {})


def _run(run: Run, group: int, config: list[int], out: Path) -> dict[str, Any]:
    links, shown = {}, {}
    for name, address in run.links.items():
        if name == "folder":
            relative = os.path.relpath(address, out)
            links[name] = quote(relative if relative.startswith(".") else f"./{relative}")
        else:
            links[name] = address
        shown[name] = address
    return {
        "name": run.name,
        "seed": show(run.seed),
        "group": group,
        "status": run.status,
        "notes": run.notes,
        "command": command(run),
        "environment": {k: _readable(v) for k, v in run.environment.items()},
        "links": links,
        "shown_links": shown,
        "how": pictures.how_drawn(run),
        "config": config,
    }


def command(run: Run) -> str:
    """What was typed to start it."""
    if not run.overrides and "no overrides.yaml" in run.notes:
        return "(its command line was not kept)"
    return shlex.join(["python", "train.py", *run.overrides])


def _readable(value: Any) -> str:
    return ", ".join(f"{k} {show(v)}" for k, v in value.items()) if isinstance(value, dict) else show(value)


def _configs(runs: Sequence[Run]) -> tuple[list[str], list[bool], list[str], list[list[int]]]:
    """(keys, which of them are names, places or seeds, distinct values, of each run the value at each key)."""
    flats = [flatten(run.config) for run in runs]
    keys = list(dict.fromkeys(k for flat in flats for k in flat))
    numbers: dict[str, int] = {}
    rows = []
    for flat in flats:
        rows.append([numbers.setdefault(show(flat[k]), len(numbers)) if k in flat else -1 for k in keys])
    return keys, [not shapes(k) for k in keys], list(numbers), rows
