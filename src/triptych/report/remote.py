"""Weights & Biases: runs that are kept there, read as if they were folders, and the summary run of a report."""

from collections.abc import Callable, Iterable
from typing import Any

from triptych.record import short_count
from triptych.report.figures import plain
from triptych.report.pictures import largest
from triptych.report.protocol import direction
from triptych.report.runs import Run, add_scalars
from triptych.report.settings import show
from triptych.report.table import Table, training_summary

STATES = {"crashed": "failed", "failed": "failed", "killed": "interrupted", "preempted": "interrupted"}
MOST = 40  # rows in a plot or in a set of pictures of the summary run
TIMEOUT = 30  # seconds that W&B may take to answer
UNTOLD = "as the run logged it to W&B: its config tells the sampler and the seed, and no more"
Track = Callable[[Iterable[Any], int], Iterable[Any]]


def fetch(path: str, track: Track = lambda found, n: found, api: Any = None) -> list[Run]:
    """The runs of <entity>/<project>: configs, histories, states; no pictures, and no records but what was logged.

    Args:
        track: wraps the iteration over so many runs, to show how far it is.
        api: a `wandb.Api`; tests give their own.

    Raises:
        ConnectionError: in a sentence, where W&B does not answer or does not know the project.
    """
    try:
        if api is None:
            import wandb

            api = wandb.Api(timeout=TIMEOUT)
        found = list(api.runs(path, order="+created_at", lazy=False))
    except Exception as error:  # W&B's own, requests', and what it raises without a key
        raise ConnectionError(f"W&B gives no runs of {path}: {_first_line(error)}") from error
    if not found:
        raise ConnectionError(f"W&B has no runs in {path}.")
    try:
        return [_adopt(one) for one in track(found, len(found))]
    except (OSError, TimeoutError) as error:
        raise ConnectionError(f"W&B stopped answering: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _adopt(found: Any) -> Run:
    run = Run(f"{found.name} ({found.id})")
    run.config = {k: v for k, v in dict(found.config).items() if not k.startswith("_")}
    code = run.config.pop("code", None)
    run.status = STATES.get(str(found.state), str(found.state))
    run.links["W&B"] = found.url
    metadata = getattr(found, "metadata", None) or {}
    run.overrides = [str(a) for a in metadata.get("args") or []]
    told = ("host", "os", "python", "gpu", "gpu_count", "cpu_count", "startedAt")
    run.environment = {k: metadata[k] for k in told if metadata.get(k)}
    run.environment |= {"group": found.group} if getattr(found, "group", None) else {}
    run.environment |= {"tags": ", ".join(found.tags)} if getattr(found, "tags", None) else {}
    run.environment |= {"trained with": code} if isinstance(code, dict) else {}
    add_scalars(run, [_row(row) for row in found.scan_history()])
    run.records = list(_records(run))
    if not run.scalars:
        run.notes.append("nothing was logged")
    if not run.records:
        run.notes.append("no evaluation")
    if "choices" not in run.config:
        run.notes.append("from an older version, or not a run of ours: its config does not name what was chosen")
    if not run.overrides:
        run.notes.append("no overrides.yaml")
    return run


def _row(row: dict[str, Any]) -> dict[str, float]:
    """Numbers only: pictures and tables are dicts."""
    numbers = {k: float(v) for k, v in row.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    if "_timestamp" in numbers:
        numbers["time"] = numbers["_timestamp"]
    return {k: v for k, v in numbers.items() if not k.startswith(("_", "trainer/"))}


def _records(run: Run) -> Iterable[dict[str, Any]]:
    """The last value of every metric of samples or likelihood, under a protocol that no folder's record has."""
    callbacks = run.config.get("callback")
    evaluate = callbacks.get("evaluate") if isinstance(callbacks, dict) else None
    for metric, points in run.scalars.items():
        if not metric.startswith(("train/", "val/")) and direction(metric):
            of_samples = not metric.startswith(("bits_per_dim", "vlb"))
            seen, _, value = points[-1]
            yield {
                "metric": metric,
                "value": value,
                "values": [value],
                "sampler": _drawn_by(evaluate, metric) if of_samples else None,
                "images_seen": int(seen),
                "protocol": UNTOLD,
            }


def _drawn_by(evaluate: Any, metric: str) -> dict[str, Any] | None:
    """The sampler of a logged number, as a record describes it: at the end another one than during training."""
    if not isinstance(evaluate, dict):
        return None
    few, all_of_them = (evaluate.get(name) for name in ("fast_num_samples", "num_samples"))
    fast = few and few != all_of_them and metric.endswith(f"_{short_count(few)}")
    sampler = evaluate.get("fast_sampler" if fast else "sampler")
    if not isinstance(sampler, dict):
        return None
    name = str(sampler.get("_target_", "")).rpartition(".")[2]
    return {"name": name} | {k: v for k, v in sampler.items() if k != "_target_"}


def log(experiment: Any, table: Table, figures: list[dict[str, Any]]) -> None:
    """The table, every plot and the latest pictures of each row into a started W&B run."""
    import wandb

    training = list(training_summary(table.groups[0], table.runs))
    heads: list[Any] = ["row", *(s.label for s in table.settings), "seeds", "status", *training]
    heads += [f"{c.title}{end}" for c in table.columns for end in ("", " std", " n", " mark")]
    rows = wandb.Table(columns=heads, allow_mixed_types=True)
    for row in table.groups:
        values: list[Any] = [row.label, *row.settings, len(row.runs), row.status]
        values += training_summary(row, table.runs).values()
        for number in range(len(table.columns)):
            cell = row.cells.get(number)
            shown = (cell.sample.mean, cell.sample.std, len(cell.sample.values), cell.mark) if cell else (None,) * 4
            values += shown
        rows.add_data(*values)
    content: dict[str, Any] = {"comparison": rows}
    for figure in figures:
        for number, choice in enumerate(figure["choices"]):
            label = figure["id"] if number == 0 else f"{figure['id']}_{number}"
            content[f"plots/{label}"] = wandb.Plotly(_plotly(figure["title"], choice))
    for row in table.groups[:MOST]:
        for index in row.runs[:1]:
            for kind in ("grids", "strips"):
                if picture := largest(getattr(table.runs[index], kind)):
                    content.setdefault(f"pictures/{kind}", []).append(wandb.Image(str(picture), caption=row.label))
    experiment.log(content)
    for name, told in table.protocols.items():
        experiment.summary[f"protocol/{name}"] = told
    experiment.summary["runs"] = [show(run.name) for run in table.runs]


def _plotly(title: str, choice: dict[str, Any]) -> Any:
    from plotly.graph_objects import Figure

    shown = [t for t in choice["data"] if t["meta"].get("group", 0) < MOST]
    traces = [{k: v for k, v in trace.items() if k != "minutes"} for trace in shown]
    cut = f" (the first {MOST} rows)" if len(shown) < len(choice["data"]) else ""
    heading = {"text": f"{title}: {plain(choice['label'])}{cut}"}
    return Figure({"data": traces, "layout": {"title": heading, **choice["layout"]}})
