"""The page of a study: its plots by Optuna and plotly, in one file that needs no network."""

import html
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna import visualization
from optuna.trial import TrialState

from triptych import disk


def page(study: optuna.Study, objectives: Sequence[str], path: Path) -> tuple[Path, list[str]]:
    """Writes the page; returns its path, and the names of the plots that these trials are too few for."""
    single = len(objectives) == 1
    plots: list[tuple[str, Callable[[], Any]]] = []
    if not single:
        plots.append(("Pareto front", lambda: visualization.plot_pareto_front(study, target_names=list(objectives))))
    for i, name in enumerate(objectives):
        target: dict[str, Any] = {"target_name": name}
        if not single:
            target["target"] = lambda trial, i=i: trial.values[i]
        plots += [
            (f"History of {name}", lambda t=target: visualization.plot_optimization_history(study, **t)),
            (
                f"Importance of the settings for {name}",
                lambda t=target: visualization.plot_param_importances(study, **t),
            ),
            (f"Parallel coordinates of {name}", lambda t=target: visualization.plot_parallel_coordinate(study, **t)),
            (f"Slices of {name}", lambda t=target: visualization.plot_slice(study, **t)),
        ]
    if any(t.intermediate_values for t in study.trials):
        plots.append(("Measurements during training", lambda: visualization.plot_intermediate_values(study)))
    parts, left_out, library = [], [], True
    enough = sum(t.state == TrialState.COMPLETE for t in study.trials) > 1
    for title, plot in plots:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                figure = plot()
                if not enough and "mportance" in title:
                    raise ValueError("two finished trials at least")
        except (ValueError, RuntimeError, ImportError):
            left_out.append(title)
            continue
        figure.update_layout(title=title, template="plotly_white")
        parts.append(figure.to_html(full_html=False, include_plotlyjs=library))  # the library once, for all
        library = False
    title = html.escape(study.study_name)
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
    style = "<style>body{font-family:sans-serif;max-width:1100px;margin:2em auto}</style>"
    with disk.replacing(path) as file:
        file.write(f"{head}{style}<h1>{title}</h1>{''.join(parts)}</html>\n")
    return path, left_out
