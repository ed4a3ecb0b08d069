from types import SimpleNamespace

import pytest
import synthetic

from triptych import report
from triptych.report import remote
from triptych.report.figures import figures


def kept(number, choices, state="finished", rows=3, **changes):
    """A run as W&B's public API hands it out."""
    history = []
    for k in range(rows):
        row = {"_step": k, "_timestamp": 1.7e9 + k, "images_seen": 640 * k, "train/loss": 1 / (k + 1), "flag": True}
        history.append(row | {"trainer/global_step": k, "samples": {"_type": "image-file"}})
    if history:
        history[-1]["fd_digits_1k"] = 0.5 + number
    return SimpleNamespace(
        **{
            "id": f"id{number}",
            "name": f"run{number}",
            "state": state,
            "url": f"https://wandb.ai/me/project/runs/id{number}",
            "group": "digits_ddpm",
            "tags": ["digits"],
            "config": synthetic.changed(choices, seed=number) | {"code": synthetic.CODE, "_wandb": {}},
            "metadata": {"args": choices.split(), "host": "machine", "gpu": "H100"},
            "scan_history": lambda: iter(history),
        }
        | changes
    )


def api(*found, error=None):
    def runs(path, **_):
        if error:
            raise error
        assert path == "me/project"
        return list(found)

    return SimpleNamespace(runs=runs)


def test_runs_kept_there_are_read_like_folders():
    there = [kept(0, "formulation=ddpm"), kept(1, "formulation=ddpm"), kept(2, "formulation=edm", state="crashed")]
    found = remote.fetch("me/project", api=api(*there))
    assert [run.status for run in found] == ["finished", "finished", "failed"]
    run = found[0]
    assert [seen for seen, _, _ in run.scalars["train/loss"]] == [0, 640, 1280] and run.seconds == 2
    assert set(run.scalars) == {"train/loss", "fd_digits_1k"} and run.links["W&B"].startswith("https://")
    assert run.overrides == ["formulation=ddpm"] and run.environment["gpu"] == "H100" and "code" not in run.config
    table = report.build(found)
    assert [(row.label, len(row.runs)) for row in table.groups] == [("ddpm", 2), ("edm", 1)]
    (column,) = table.columns
    assert column.metric == "fd_digits_1k" and remote.UNTOLD in next(iter(table.protocols.values()))
    assert table.groups[0].cells[0].sample.values == (0.5, 1.5) and table.groups[0].cells[0].sampler == "Ancestral 250"


def test_what_was_logged_there_never_shares_a_column_with_a_record(tmp_path):
    synthetic.run(tmp_path / "run", ["formulation=ddpm"], pictures=False)
    runs = [report.read(tmp_path / "run", "here"), *remote.fetch("me/project", api=api(kept(0, "formulation=ddpm")))]
    marks = {c.mark for c in report.build(runs).columns if c.metric == "fd_digits_1k"}
    assert marks == {"A", "B"}


def test_a_number_has_the_sampler_that_it_was_drawn_by():
    """During training another one than at the end; of a metric with several numbers too."""
    there = kept(0, "formulation=ddpm")
    there.config["callback"]["evaluate"] |= {"num_samples": 1000, "fast_num_samples": 500}
    row = {
        "images_seen": 1280,
        "fd_digits_500": 2.0,
        "precision_recall/recall_1k": 0.4,
        "val/eps_mse/log_snr_0_to_2": 0.3,
    }
    history = [*there.scan_history(), row]
    there.scan_history = lambda: iter(history)
    (run,) = remote.fetch("me/project", api=api(there))
    fast = there.config["callback"]["evaluate"]["fast_sampler"]
    name = fast["_target_"].rpartition(".")[2]
    drawn = {"fd_digits_1k": "Ancestral", "precision_recall/recall_1k": "Ancestral", "fd_digits_500": name}
    assert {r["metric"]: r["sampler"]["name"] for r in run.records} == drawn
    assert next(r for r in run.records if r["metric"] == "fd_digits_500")["sampler"]["steps"] == fast["steps"]


def test_a_run_that_logged_nothing_and_one_that_is_not_ours_are_shown():
    bare = kept(0, "formulation=ddpm", rows=0, config={"lr": 1}, metadata=None, state="killed")
    (run,) = remote.fetch("me/project", api=api(bare))
    assert run.status == "interrupted" and {"nothing was logged", "no evaluation"} <= set(run.notes)
    assert report.build([run]).groups[0].runs == [0]


@pytest.mark.parametrize("error", [ValueError("Could not find project\nand more"), TimeoutError()])
def test_a_server_that_does_not_answer_is_one_sentence(error):
    with pytest.raises(ConnectionError) as caught:
        remote.fetch("me/project", api=api(error=error))
    assert "me/project" in str(caught.value) and "\n" not in str(caught.value)


def test_a_project_without_runs_is_refused():
    with pytest.raises(ConnectionError, match="no runs in me/project"):
        remote.fetch("me/project", api=api())


class Experiment:
    def __init__(self):
        self.logged, self.summary = {}, {}

    def log(self, content):
        self.logged |= content


def test_the_summary_run_holds_the_table_every_plot_and_pictures(tmp_path):
    for seed in range(2):
        synthetic.run(tmp_path / f"a{seed}", ["formulation=ddpm"], seed=seed, quality=1.0 + seed)
        synthetic.run(tmp_path / f"b{seed}", ["formulation=edm"], seed=seed, quality=0.5)
    folders = report.find(str(tmp_path))
    table = report.build([report.read(*pair) for pair in zip(folders, report.names(folders), strict=True)])
    experiment = Experiment()
    drawn = figures(table)
    remote.log(experiment, table, drawn)
    rows = experiment.logged["comparison"]
    assert len(rows.data) == 2
    first = dict(zip(rows.columns, rows.data[1], strict=True))
    assert first["row"] == "ddpm" and first["fd_digits_1k, DPMSolver 10"] == 1.5 and first["seeds"] == 2
    assert {f"plots/{f['id']}" for f in drawn if f["choices"]} <= set(experiment.logged)
    assert len(experiment.logged["pictures/grids"]) == len(experiment.logged["pictures/strips"]) == 2
    assert "digits/train" in experiment.summary["protocol/fd_digits_1k"]
