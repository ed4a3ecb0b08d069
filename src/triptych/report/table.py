"""Rows and columns: one row a run or a group of seeds, what differs between them, and what was measured."""

import csv
import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from triptych.report import settings
from triptych.report.protocol import (
    LIKELIHOOD,
    QUALITY,
    describe,
    differences,
    direction,
    is_own,
    key_of,
    protocol,
    sampler_key,
    sampler_labels,
)
from triptych.report.runs import Run
from triptych.report.settings import ABSENT, Setting, show
from triptych.report.significance import LEVEL, Sample, compare, deviation

OWN = "own sampler"
BEST, NEAR, UNTESTED = "★", "≈", "?"
SHOWN = 4  # cells that a warning names
FAMILY = ("formulation", "schedule", "model", "dataset")  # what a row is called after, if it differs


@dataclass
class Row:
    """One run, or those that differ by their seed only."""

    label: str
    runs: list[int]
    settings: list[str]
    status: str
    cells: dict[int, "Cell"] = field(default_factory=dict)  # by number of the column


@dataclass
class Column:
    """One metric under one protocol and one sampler.

    Attributes:
        sampler: label; OWN for whatever sampler each run's config names; "" where none was used.
        mark: letter of the protocol, where a metric was measured under several.
        calls: network calls of every cell, if they agree.
    """

    metric: str
    sampler: str
    protocol: dict[str, str]
    mark: str = ""
    difference: str = ""
    calls: int | None = None

    @property
    def title(self) -> str:
        mark = f" [{self.mark}]" if self.mark else ""
        return f"{self.metric}{mark}" + (f", {self.sampler}" if self.sampler else "")

    @property
    def direction(self) -> int:
        return direction(self.metric)


@dataclass
class Cell:
    """What was measured of a row in a column, and how it stands to the best."""

    sample: Sample
    calls: list[int]
    sampler: str
    images_seen: list[int]
    speed: float | None
    mark: str = ""
    test: str = ""
    warnings: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        mean, std = self.sample.mean, self.sample.std
        if std is not None:
            return with_error(mean, std)
        if (spread := deviation(self.sample.blocks)) is not None:
            return f"{with_error(mean, spread)} (blocks)"
        if self.sample.standard_error:
            return f"{with_error(mean, self.sample.standard_error)} (s.e.)"
        return f"{mean:.4g}"


def with_error(value: float, error: float) -> str:
    """Both to the same place: two significant digits of the error. 1.11, 0.0382 -> 1.110 ± 0.038."""
    if not 1e-6 < error < 1e6:
        return f"{value:.4g} ± {error:.2g}"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{places}f} ± {error:.{places}f}"


@dataclass
class Table:
    """Both tables of a set of runs, which share their columns."""

    runs: list[Run]
    flats: list[dict[str, Any]]
    settings: list[Setting]
    constant: dict[str, str]
    columns: list[Column]
    groups: list[Row]
    singles: list[Row]

    @property
    def protocols(self) -> dict[str, str]:
        """Column title -> its protocol in words, one for all samplers of a metric and mark."""
        told = {}
        for column in self.columns:
            mark = f" [{column.mark}]" if column.mark else ""
            told.setdefault(f"{column.metric}{mark}", describe(column.protocol))
        return told

    @property
    def warnings(self) -> list[str]:
        """What ‡ stands for in the table of groups: each warning once, with the cells that have it."""
        places: dict[str, list[str]] = defaultdict(list)
        for row in self.groups:
            for number, cell in sorted(row.cells.items()):
                for warning in cell.warnings:
                    places[warning].append(f"{row.label} ({self.columns[number].title})")
        cut = {w: f", and {len(at) - SHOWN} more" if len(at) > SHOWN else "" for w, at in places.items()}
        return [f"{warning}: {', '.join(at[:SHOWN])}{cut[warning]}" for warning, at in places.items()]


def build(runs: Sequence[Run]) -> Table:
    """Everything that the tables show, from the runs alone."""
    runs = list(runs)
    flats = [settings.flatten(run.config) for run in runs]
    differing, constant = settings.compare([r.config for r in runs], flats)
    members: dict[str, list[int]] = defaultdict(list)
    for index, flat in enumerate(flats):
        members[settings.identity(flat) if flat else f"lost {index}"].append(index)
    columns, records = _columns(runs)
    groups = [_row(members_, runs, differing) for members_ in members.values()]
    singles = [_row([index], runs, differing) for index in range(len(runs))]
    _name(groups, runs, differing)
    group_of = {index: group for group in groups for index in group.runs}
    for row in singles:
        group = group_of[row.runs[0]]
        row.label = f"{group.label} · seed {show(runs[row.runs[0]].seed)}" if len(group.runs) > 1 else group.label
    for rows in (groups, singles):
        for row in rows:
            row.cells = _cells(row, columns, records, runs)
        for number, column in enumerate(columns):
            _judge([row.cells[number] for row in rows if number in row.cells], column.direction)
    for rows in (groups, singles):
        _best_first(rows, columns)
    for number, column in enumerate(columns):
        calls = {c for row in groups if number in row.cells for c in row.cells[number].calls}
        column.calls = calls.pop() if len(calls) == 1 else None
    return Table(runs, flats, differing, constant, columns, groups, singles)


def _best_first(rows: list[Row], columns: list[Column]) -> None:
    """By the column that most rows have a number in, the first of those; rows without one come last."""
    filled = [sum(number in row.cells for row in rows) for number in range(len(columns))]
    known = [number for number, column in enumerate(columns) if column.direction]
    if known:
        chosen = max(known, key=lambda number: filled[number])
        better = columns[chosen].direction
        rows.sort(key=lambda r: -better * r.cells[chosen].sample.mean if chosen in r.cells else float("inf"))


def _row(members: list[int], runs: list[Run], differing: list[Setting]) -> Row:
    values = [show(setting.values[members[0]]) for setting in differing]
    counted = Counter(runs[i].status for i in members)
    status = next(iter(counted)) if len(members) == 1 else ", ".join(f"{n} {s}" for s, n in counted.items())
    return Row("", members, values, status)


def _name(groups: list[Row], runs: list[Run], differing: list[Setting]) -> None:
    """A row is called after as few of its settings as tell it from the others, the formulation first."""

    def tell(rows: list[Row], position: int, words: tuple[str, ...]) -> None:
        if position == len(differing) or len(rows) == 1 and words:
            for row in rows:
                row.label = " ".join(words)
            return
        setting, alike = differing[position], defaultdict(list)
        for row in rows:
            alike[row.settings[position]].append(row)
        for value, same in alike.items():
            word = value if setting.key in FAMILY else f"{setting.label} {value}"
            tell(same, position + 1, (*words, word) if len(alike) > 1 and value != ABSENT else words)

    tell(groups, 0, ())
    seen = Counter(row.label for row in groups)
    for row in groups:
        first = runs[row.runs[0]]
        if not row.label:
            row.label = str(first.config.get("name") or first.name)
        elif seen[row.label] > 1:
            row.label = f"{row.label} ({first.name})"


def _columns(runs: list[Run]) -> tuple[list[Column], dict[int, dict[tuple[str, str, str], dict[str, Any]]]]:
    """The columns, and of each run its latest record for (metric, protocol, sampler)."""
    everything = [r for run in runs for r in run.records]
    labels = sampler_labels(everything)
    latest: dict[int, dict[tuple[str, str, str], dict[str, Any]]] = {}
    protocols: dict[tuple[str, str], dict[str, str]] = {}
    used: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for index, run in enumerate(runs):
        mine: dict[tuple[str, str, str], dict[str, Any]] = {}
        for record in run.records:
            flat = protocol(record)
            place = record["metric"], key_of(flat)
            protocols[place] = flat
            own = is_own(record, run.config)
            sampler = labels[sampler_key(record)]
            for name in {OWN, sampler} if own else {sampler}:
                key = (*place, name)
                before = mine.get(key)
                if before is None or (record.get("images_seen") or 0) >= (before.get("images_seen") or 0):
                    mine[key] = record | {"sampler_label": sampler}
                if name == OWN or not own:
                    used[key].append(index)
        latest[index] = mine
    marks: dict[tuple[str, str], tuple[str, str]] = {}
    for metric in dict.fromkeys(m for m, _ in protocols):
        keys = [k for k in protocols if k[0] == metric]
        if len(keys) > 1:
            told = differences([protocols[k] for k in keys])
            marks |= {k: (_letter(n), told[n]) for n, k in enumerate(keys)}
    columns = []
    for metric, key, sampler in used:
        mark, difference = marks.get((metric, key), ("", ""))
        columns.append(Column(metric, sampler, protocols[metric, key], mark, difference))
    columns.sort(key=_order)
    return columns, latest


def _letter(n: int) -> str:
    return chr(ord("A") + n) if n < 26 else f"A{n}"


def _order(column: Column) -> tuple:
    kind = 0 if column.metric.startswith(QUALITY) else 1 if column.metric.startswith(LIKELIHOOD) else 2
    name, _, rest = column.sampler.partition(" ")
    steps = int(rest.split()[0]) if rest and rest.split()[0].isdigit() else 0
    return kind, column.metric, column.mark, column.sampler == OWN, name, steps, column.sampler


def _cells(
    row: Row, columns: list[Column], records: dict[int, dict[tuple[str, str, str], dict[str, Any]]], runs: list[Run]
) -> dict[int, Cell]:
    cells = {}
    for number, column in enumerate(columns):
        key = column.metric, key_of(column.protocol), column.sampler
        found = [records[i][key] for i in row.runs if key in records[i]]
        if found:
            cells[number] = _cell(found, len(row.runs))
            often = Counter(show(runs[i].seed) for i in row.runs if key in records[i])
            twice = [f"seed {seed} counts {n} times" for seed, n in often.items() if n > 1]
            cells[number].warnings += [", ".join(twice)] if twice else []
    return cells


def _cell(found: list[dict[str, Any]], expected: int) -> Cell:
    single = found[0] if len(found) == 1 else None
    blocks = tuple(single.get("values") or ()) if single and len(single.get("values") or ()) > 1 else ()
    error = single.get("standard_error") if single else None
    cell = Cell(
        Sample(tuple(float(r["value"]) for r in found), blocks, error),
        sorted({int(r["nfe"]) for r in found if isinstance(r.get("nfe"), (int, float))}),
        found[0]["sampler_label"],
        sorted({int(r["images_seen"]) for r in found if r.get("images_seen") is not None}),
        median(speeds) if (speeds := [r["images_per_second"] for r in found if r.get("images_per_second")]) else None,
    )
    if len(cell.images_seen) > 1:
        seen = " to ".join(f"{n:,}" for n in (cell.images_seen[0], cell.images_seen[-1]))
        cell.warnings.append(f"the seeds have seen different numbers of images: {seen}")
    if len(found) < expected:
        cell.warnings.append(f"{len(found)} of {expected} seeds measured")
    commits = {json.dumps([(r.get("code") or {}).get(k) for k in ("triptych", "commit")]) for r in found}
    if len(commits) > 1:
        cell.warnings.append("the seeds were measured by different versions of the code")
    return cell


def _judge(cells: list[Cell], better: int) -> None:
    """Marks the best cell of a column and those that a test does not tell from it."""
    if len(cells) < 2 or not better:
        return
    best = max(cells, key=lambda c: better * c.sample.mean)
    best.mark, best.test = BEST, "best of its column"
    for cell in cells:
        if cell is not best:
            p, how = compare(best.sample, cell.sample)
            cell.mark = UNTESTED if p is None else NEAR if p >= LEVEL else ""
            cell.test = how if p is None else f"p = {p:.2g} against the best, {how}"


def training_columns(run: Run) -> dict[str, float | int | None]:
    """What training itself tells: images seen, minutes, images/s and peak memory."""
    speed = [v for _, _, v in run.scalars.get("train/images_per_second", [])]
    memory = [v for _, _, v in run.scalars.get("train/memory_gib", [])]  # of the allocator, on CUDA only
    return {
        "images seen": run.images_seen,
        "minutes": None if run.seconds is None else run.seconds / 60,
        "images/s": median(speed[1:] or speed) if speed else None,
        "memory GiB": max(memory) if memory else None,
    }


def training_summary(row: Row, runs: list[Run]) -> dict[str, float | None]:
    """The mean over the row's runs of what each tells."""
    told = [training_columns(runs[i]) for i in row.runs]
    means: dict[str, float | None] = {}
    for name in told[0]:
        values = [t[name] for t in told if t[name] is not None]
        means[name] = sum(values) / len(values) if values else None  # pyright: ignore
    return means


def to_csv(table: Table) -> str:
    """One row a group of seeds: settings, then mean, std, n, mark and network calls of every column."""
    out = io.StringIO()
    writer = csv.writer(out)
    heads = ["mean", "std", "n", "mark", "network calls"]
    told = [*training_columns(table.runs[0])] if table.runs else []
    titles = [f"{c.title}{_protocol_note(c)}" for c in table.columns]
    writer.writerow(
        ["row", *(s.label for s in table.settings), "seeds", "status", *told, "runs"]
        + [f"{title}: {head}" for title in titles for head in heads]
    )
    for row in table.groups:
        values: list[Any] = [row.label, *row.settings]
        values += [" ".join(show(table.runs[i].seed) for i in row.runs), row.status]
        values += ["" if v is None else f"{v:.6g}" for v in training_summary(row, table.runs).values()]
        values.append(" ".join(str(table.runs[i].name) for i in row.runs))
        for number in range(len(table.columns)):
            if (cell := row.cells.get(number)) is None:
                values += [""] * len(heads)
                continue
            std = cell.sample.std
            calls = "-".join(map(str, sorted({cell.calls[0], cell.calls[-1]}))) if cell.calls else ""
            values += [repr(cell.sample.mean), "" if std is None else repr(std), len(cell.sample.values)]
            values += [cell.mark, calls]
        writer.writerow([_harmless(v) for v in values])
    return out.getvalue()


def _harmless(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula, as text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "@", "\t") else value


def _protocol_note(column: Column) -> str:
    return f" ({column.difference})" if column.difference else ""


def to_markdown(table: Table, test: str) -> str:
    """The table of groups, what the marks mean, and every protocol."""
    heads = [s.label for s in table.settings] or ["run"]
    heads += ["seeds", "status"] + [_head(c) for c in table.columns]
    lines = ["| " + " | ".join(map(_escape, heads)) + " |", "|" + " --- |" * len(heads)]
    for row in table.groups:
        cells = list(row.settings) or [row.label]
        cells += [str(len(row.runs)), row.status]
        cells += [_in_words(row.cells.get(n), column) for n, column in enumerate(table.columns)]
        lines.append("| " + " | ".join(map(_escape, cells)) + " |")
    lines += ["", "± is the standard deviation over seeds. " + test, ""]
    if table.warnings:
        lines += [f"‡ {_escape('; '.join(table.warnings))}.", ""]
    lines += [f"- {_escape(name)}: {_escape(told)}" for name, told in table.protocols.items()]
    return "\n".join(lines) + "\n"


def _head(column: Column) -> str:
    calls = f" ({column.calls} calls)" if column.calls and column.sampler != OWN else ""
    return column.title + calls


def _in_words(cell: Cell | None, column: Column) -> str:
    if cell is None:
        return ABSENT
    text = f"**{cell.text}**" if cell.mark == BEST else cell.text
    text = f"{text} {cell.mark}".strip()
    if column.sampler == OWN:
        text += f" ({cell.sampler}, {_calls(cell)})"
    elif column.calls is None and cell.calls:
        text += f" ({_calls(cell)})"
    return text + (" ‡" if cell.warnings else "")


def _calls(cell: Cell) -> str:
    if not cell.calls:
        return "no calls counted"
    first, last = cell.calls[0], cell.calls[-1]
    return f"{first} calls" if first == last else f"{first} to {last} calls"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
