"""The plots, as plain Plotly figures: the page draws them and filters their traces by row, W&B gets them whole."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from triptych.report.protocol import LIKELIHOOD, QUALITY, direction
from triptych.report.significance import deviation
from triptych.report.table import OWN, Cell, Column, Row, Table, training_summary

# Paul Tol's "bright" scheme, told apart with any colour vision, on white and on black.
COLOURS = ("#4477AA", "#EE6677", "#228833", "#AA3377", "#66CCEE", "#CCBB44", "#BBBBBB")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = (
    *("circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down", "hexagon", "x"),
    *("pentagon", "bowtie", "hourglass"),
)
POINTS = 200_000  # of all curves together; a curve is thinned evenly to its share, its last point kept
MOST_CURVES = 8  # metrics that can be chosen in the plot of curves
FIRST = ("fid", "fd_", "kid", "mmd", "sliced", "val/eps_mse", "val/loss", "train/loss", "train/images_per_second")
BIN = re.compile(r"(?P<metric>.+)/log_snr_(?P<bin>below_-?\d+|above_-?\d+|-?\d+_to_-?\d+)")
NOTES = {
    "val/eps_mse": "Mean squared error of the predicted noise on held-out images, averaged over the noise levels that "
    "each formulation trains on: between formulations, compare it per noise level (below).",
    "val/loss": "Each formulation's own loss on held-out images: compare it within one formulation only.",
    "train/loss": "Each formulation's own training loss: compare it within one formulation only.",
    "train/images_per_second": "Training only; evaluation and pictures are not counted.",
}


def figures(table: Table) -> list[dict[str, Any]]:
    """Every plot that there is something to draw for: {id, title, choices: [{label, caption, data, layout}]}."""
    styles = _styles(table)
    drawn = [
        ("nfe", "Quality against network calls", _quality_against_calls(table, styles)),
        ("curves", "Over training", _curves(table, styles)),
        ("likelihood", "Likelihood against quality", _likelihood_against_quality(table, styles)),
        ("noise", "Loss per noise level", _noise_levels(table, styles)),
        ("cost", "Speed and memory", _cost(table, styles)),
    ]
    found = [{"id": name, "title": title, "choices": choices} for name, title, choices in drawn]
    return sorted(found, key=lambda figure: not figure["choices"])  # what there is nothing to draw for comes last


def _styles(table: Table) -> list[tuple[str, str]]:
    """(colour, dash) of every group: a colour for each formulation, or each value of the first column that differs."""
    position = next((n for n, s in enumerate(table.settings) if s.key == "formulation"), 0)
    families: dict[str, list[int]] = {}
    for number, row in enumerate(table.groups):
        families.setdefault(row.settings[position] if row.settings else row.label, []).append(number)
    styles = [("", "")] * len(table.groups)
    for n, members in enumerate(families.values()):
        for k, number in enumerate(members):
            styles[number] = (COLOURS[n % len(COLOURS)], DASHES[k % len(DASHES)])
    return styles


def plain(text: str) -> str:
    """Text that Plotly shows as it is, and does not take for markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("%{", "% {")


def round_to(value: float, digits: int = 5) -> float:
    """So many significant digits: what a screen can show."""
    return float(f"{value:.{digits}g}")


def front(points: Iterable[tuple[float, float]], better: int) -> list[tuple[float, float]]:
    """The Pareto front of (cost, quality): points that no cheaper one equals, by rising cost."""
    kept: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda p: (p[0], -better * p[1])):
        if not kept or better * quality > better * kept[-1][1]:
            kept.append((cost, quality))
    return kept


def _columns_of(table: Table, starts: Sequence[str]) -> list[tuple[int, Column]]:
    return [(n, c) for n, c in enumerate(table.columns) if c.metric.startswith(tuple(starts))]


def _caption(column: Column, table: Table) -> str:
    mark = f" [{column.mark}]" if column.mark else ""
    name = f"{column.metric}{mark}"
    return f"{name} measured under: {table.protocols.get(name, '')}."


def _quality_against_calls(table: Table, styles: list[tuple[str, str]]) -> list[dict[str, Any]]:
    classes = sorted({c.sampler.split()[0] for row in table.groups for c in row.cells.values() if c.sampler})
    symbols = {name: SYMBOLS[n % len(SYMBOLS)] for n, name in enumerate(classes)}
    choices = []
    shown = [c for _, c in _columns_of(table, QUALITY) if c.sampler]
    for metric, mark in dict.fromkeys((c.metric, c.mark) for c in shown):
        numbers = [n for n, c in enumerate(table.columns) if (c.metric, c.mark) == (metric, mark)]
        traces, points, used = [], [], []
        for group, row in enumerate(table.groups):
            first = True
            cells = {row.cells[n].sampler: row.cells[n] for n in numbers if n in row.cells and row.cells[n].calls}
            for name in classes:
                line = sorted((c for c in cells.values() if c.sampler.split()[0] == name), key=lambda c: c.calls[0])
                if line:
                    traces.append(
                        _calls_trace(group, row, name, line, styles[group], symbols[name]) | {"showlegend": first}
                    )
                    first = False
                    used.append(name)
                    points += [(c.calls[0], c.sample.mean) for c in line]
        if not traces:
            continue
        better = direction(metric)
        best = front(points, better)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "Pareto front",
                "x": [p[0] for p in best],
                "y": [round_to(p[1]) for p in best],
                "line": {"shape": "hv", "width": 1.5, "dash": "dot", "color": "#888888"},
                "hoverinfo": "skip",
                "meta": {"front": better},
            }
        )
        traces += [_key(name, symbols[name]) for name in dict.fromkeys(used)]
        column = next(c for c in table.columns if (c.metric, c.mark) == (metric, mark))
        choices.append(
            {
                "label": column.metric + (f" [{mark}]" if mark else ""),
                "caption": f"Mean over seeds, bars one standard deviation; calls are counted, per sample. A colour a "
                f"formulation, a marker a sampler. {_caption(column, table)}",
                "data": traces,
                "layout": {
                    "xaxis": {"title": {"text": "network calls a sample"}, "type": "log"},
                    "yaxis": {"title": {"text": metric}, "type": "log"},
                },
            }
        )
    return choices


def _calls_trace(
    group: int, row: Row, sampler: str, line: list[Cell], style: tuple[str, str], symbol: str
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plain(row.label),
        "legendgroup": str(group),
        "x": [c.calls[0] for c in line],
        "y": [round_to(c.sample.mean) for c in line],
        "error_y": {"array": [round_to(c.sample.std or 0.0) for c in line], "thickness": 1, "width": 3},
        "text": [f"{plain(c.sampler)}<br>{c.text}, {len(c.sample.values)} seeds" for c in line],
        "hovertemplate": "%{fullData.name}<br>%{text}<br>%{x} calls<extra></extra>",
        "marker": {"color": style[0], "symbol": symbol, "size": 9},
        "line": {"color": style[0], "dash": style[1], "width": 1.5},
        "meta": {"group": group},
    }


def _key(sampler: str, symbol: str) -> dict[str, Any]:
    """An entry of the legend: which marker is which sampler."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(sampler),
        "x": [None],
        "y": [None],
        "marker": {"color": "#888888", "symbol": symbol, "size": 9},
        "meta": {"key": True},
    }


def _curves(table: Table, styles: list[tuple[str, str]]) -> list[dict[str, Any]]:
    available: dict[str, int] = {}
    for run in table.runs:
        for metric, points in run.scalars.items():
            if not BIN.fullmatch(metric) and metric != "train/learning_rate":
                available[metric] = max(available.get(metric, 0), len(points))
    several = [m for m, most in available.items() if most > 1] or list(available)
    chosen = sorted(several, key=_rank)[:MOST_CURVES]
    curves = sum(1 for run in table.runs for m in chosen if m in run.scalars)
    share = max(8, min(200, POINTS // max(1, curves)))
    choices = []
    for metric in chosen:
        traces, thinned = [], False
        for group, row in enumerate(table.groups):
            first = True
            for index in row.runs:
                points = table.runs[index].scalars.get(metric)
                if not points:
                    continue
                kept = _thin(points, share)
                thinned |= len(kept) < len(points)
                traces.append(_curve_trace(kept, group, index, row.label, styles[group], first))
                first = False
        note = NOTES.get(metric) or f"Drawn while training, {_how_drawn(table)}."
        if thinned:
            note += f" Curves are thinned to {share} points."
        choices.append(
            {
                "label": metric,
                "caption": f"A line a seed. {note}",
                "data": traces,
                "layout": {
                    "xaxis": {"title": {"text": "images seen"}},
                    "yaxis": {"title": {"text": metric}, "type": "log" if _positive(traces) else "linear"},
                },
            }
        )
    return choices


def _curve_trace(
    points: list[tuple[float, float, float]], group: int, index: int, label: str, style: tuple[str, str], first: bool
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines" if len(points) > 1 else "markers",
        "name": plain(label),
        "legendgroup": str(group),
        "showlegend": first,
        "x": [int(p[0]) for p in points],
        "minutes": [round_to(p[1] / 60, 4) for p in points],
        "y": [round_to(p[2]) for p in points],
        "line": {"color": style[0], "dash": style[1], "width": 1.5},
        "marker": {"color": style[0], "size": 7},
        "meta": {"group": group, "run": index},
    }


def _rank(metric: str) -> tuple:
    position = next((n for n, start in enumerate(FIRST) if metric.startswith(start)), len(FIRST))
    return position, metric


def _positive(traces: list[dict[str, Any]]) -> bool:
    return all(y > 0 for trace in traces for y in trace["y"])


def _thin(points: list[Any], most: int) -> list[Any]:
    """At most so many, evenly, the last one always."""
    if len(points) <= most:
        return points
    return [points[round(k * (len(points) - 1) / (most - 1))] for k in range(most)]


def _how_drawn(table: Table) -> str:
    """The protocol of the numbers that `callback.evaluate` logs at intervals, from the configs."""
    told = set()
    for run in table.runs:
        callbacks = run.config.get("callback")
        evaluate = callbacks.get("evaluate") if isinstance(callbacks, dict) else None
        if isinstance(evaluate, dict):
            sampler = evaluate.get("fast_sampler")
            sampler = sampler if isinstance(sampler, dict) else {}
            name = str(sampler.get("_target_", "the run's sampler")).rpartition(".")[2]
            told.add(
                f"by {name} in {sampler.get('steps')} steps, averaged weights, seed {evaluate.get('seed')}, "
                f"against {evaluate.get('split')}"
            )
    if not told:
        return "by a protocol that the configs do not tell"
    return next(iter(told)) if len(told) == 1 else "NOT by one protocol: " + "; ".join(sorted(told))


def _likelihood_against_quality(table: Table, styles: list[tuple[str, str]]) -> list[dict[str, Any]]:
    choices = []
    for n, likelihood in _columns_of(table, LIKELIHOOD):
        for m, quality in _columns_of(table, QUALITY):
            traces = []
            for group, row in enumerate(table.groups):
                if n not in row.cells or m not in row.cells:
                    continue
                a, b = row.cells[n], row.cells[m]
                traces.append(
                    {
                        "type": "scatter",
                        "mode": "markers+text",
                        "name": plain(row.label),
                        "text": [plain(row.label)],
                        "textposition": "top center",
                        "cliponaxis": False,
                        "x": [round_to(a.sample.mean)],
                        "y": [round_to(b.sample.mean)],
                        "error_x": {"array": [round_to(a.sample.std or 0.0)], "thickness": 1, "width": 3},
                        "error_y": {"array": [round_to(b.sample.std or 0.0)], "thickness": 1, "width": 3},
                        "hovertemplate": f"%{{fullData.name}}<br>{likelihood.metric} {a.text}<br>{quality.metric} "
                        f"{b.text}<extra></extra>",
                        "marker": {"color": styles[group][0], "size": 11, "symbol": SYMBOLS[group % len(SYMBOLS)]},
                        "meta": {"group": group},
                    }
                )
            if traces:
                choices.append(
                    {
                        "label": f"{likelihood.title} · {quality.title}",
                        "caption": f"{_caption(likelihood, table)} {_caption(quality, table)}",
                        "data": traces,
                        "layout": {
                            "xaxis": {"title": {"text": likelihood.title}},
                            "yaxis": {"title": {"text": quality.title}, "type": "log"},
                        },
                    }
                )
    full = max((len(c["data"]) for c in choices), default=0)
    choices.sort(key=lambda c: (len(c["data"]) < full, "vlb" in c["label"]))
    return choices[:12]


def _noise_levels(table: Table, styles: list[tuple[str, str]]) -> list[dict[str, Any]]:
    metrics = {m["metric"] for run in table.runs for name in run.scalars if (m := BIN.fullmatch(name))}
    captions = {
        "val/eps_mse": "Error of the predicted noise on held-out images by log-SNR, at the end of training: the same "
        "quantity in every formulation, so lines compare. 1 is no better than predicting zero.",
        "val/loss": "Each formulation's own loss on held-out images: shapes compare, heights do not.",
        "train/loss": "Each formulation's own loss over the last rows of training: shapes compare, heights do not.",
    }
    choices = []
    for metric in sorted(metrics, key=lambda m: (list(captions).index(m) if m in captions else 9, m)):
        traces = []
        for group, row in enumerate(table.groups):
            values: dict[float, list[float]] = {}
            for index in row.runs:
                for name, points in table.runs[index].scalars.items():
                    match = BIN.fullmatch(name)
                    if match and match["metric"] == metric:
                        values.setdefault(_centre(match["bin"]), []).append(points[-1][2])
            if values:
                places = sorted(values)
                means = [sum(values[x]) / len(values[x]) for x in places]
                traces.append(
                    {
                        "type": "scatter",
                        "mode": "lines+markers",
                        "name": plain(row.label),
                        "x": places,
                        "y": [round_to(v) for v in means],
                        "error_y": {"array": [round_to(deviation(values[x]) or 0.0) for x in places], "thickness": 1},
                        "line": {"color": styles[group][0], "dash": styles[group][1], "width": 1.5},
                        "marker": {"color": styles[group][0], "symbol": SYMBOLS[group % len(SYMBOLS)], "size": 7},
                        "meta": {"group": group},
                    }
                )
        choices.append(
            {
                "label": metric,
                "caption": f"{captions.get(metric, '')} Mean over seeds, bars one standard deviation; the outermost "
                "bins are open.",
                "data": traces,
                "layout": {
                    "xaxis": {"title": {"text": "log-SNR (noise on the left, data on the right)"}},
                    "yaxis": {"title": {"text": metric}, "type": "log" if _positive(traces) else "linear"},
                },
            }
        )
    return choices


def _centre(name: str) -> float:
    """below_-10 -> -11, -10_to_-8 -> -9, above_10 -> 11."""
    if name.startswith("below_"):
        return float(name[6:]) - 1
    if name.startswith("above_"):
        return float(name[6:]) + 1
    low, _, high = name.partition("_to_")
    return (float(low) + float(high)) / 2


def _cost(table: Table, styles: list[tuple[str, str]]) -> list[dict[str, Any]]:
    told = [training_summary(row, table.runs) for row in table.groups]
    speeds, memory = [t["images/s"] for t in told], [t["memory GiB"] for t in told]
    without = "" if any(m is not None for m in memory) else " No run here has logged its memory: only CUDA runs do."
    note = "Median over training, mean over seeds; whatever else the machine did counts against it."
    bars: list[tuple[str, str, list[float | None]]] = [
        ("training, images/s", note + without, speeds),
        ("peak memory, GiB", "Of the device's allocator, the largest over training, mean over seeds.", memory),
    ]
    for number, column in _columns_of(table, QUALITY):
        if column.sampler and column.sampler != OWN or not bars[2:]:
            speeds = [row.cells[number].speed if number in row.cells else None for row in table.groups]
            bars.append((f"sampling, images/s, {column.sampler}", "A device, evaluation's block size.", speeds))
    choices = []
    for label, caption, values in bars[:8]:
        traces = [
            {
                "type": "bar",
                "orientation": "h",
                "name": plain(row.label),
                "x": [round_to(value)],
                "y": [plain(row.label)],
                "text": [f"{value:.3g}"],
                "showlegend": False,
                "hovertemplate": "%{y}: %{x}<extra></extra>",
                "marker": {"color": styles[group][0]},
                "meta": {"group": group},
            }
            for group, (row, value) in enumerate(zip(table.groups, values, strict=True))
            if value is not None
        ]
        if traces:
            choices.append(
                {
                    "label": label,
                    "caption": caption,
                    "data": traces,
                    "layout": {
                        "xaxis": {"title": {"text": label}},
                        "yaxis": {"automargin": True, "autorange": "reversed"},
                    },
                }
            )
    return choices
