"""python compare.py, as a user types it."""

import csv
import subprocess
import sys

import pytest
import synthetic
from scripts import ROOT, call

from triptych import refusal

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name, choice in {"a": "formulation=ddpm", "b": "formulation=edm"}.items():
        for seed in range(2):
            synthetic.run(tmp_path / "runs" / name / str(seed), [choice], seed=seed, quality=1 + seed / 10)
    return tmp_path


def test_a_page_two_tables_and_the_same_on_the_screen(runs):
    done = call("compare.py", "runs=runs/**", "out=report", "summary=null", cwd=runs)
    assert done.code == 0, done.err
    assert sorted(p.name for p in (runs / "report").iterdir()) == ["index.html", "table.csv", "table.md"]
    markdown = (runs / "report" / "table.md").read_text()
    assert markdown in done.out and "4 runs in 2 rows; 4 finished" in done.out and "report: index.html" in done.out
    with (runs / "report" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["ddpm", "edm"] and rows[0]["seeds"] == "0 1"
    assert float(rows[0]["fd_digits_1k, DPMSolver 10: mean"]) == pytest.approx(1.05)
    assert rows[0]["fd_digits_1k, DPMSolver 10: n"] == "2"


def test_an_earlier_report_is_replaced_and_nothing_else_is(runs):
    for _ in range(2):
        assert call("compare.py", "runs=runs", "out=report", "summary=null", cwd=runs).code == 0
    (runs / "report" / "thesis.tex").write_text("years of work")
    done = call("compare.py", "runs=runs", "out=report", "summary=null", cwd=runs)
    assert done.code == refusal.BAD_INPUT and "thesis.tex" in done.err and len(done.err.splitlines()) == 1
    (runs / "site").mkdir()
    (runs / "site" / "index.html").write_text("<html>mine</html>")
    done = call("compare.py", "runs=runs", "out=site", "summary=null", cwd=runs)
    assert done.code == refusal.BAD_INPUT and (runs / "site" / "index.html").read_text() == "<html>mine</html>"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["runs=", "wandb="]),
        (["runs=nothing"], ["no runs at nothing"]),
        (["runs=runs", "wandb=a/b"], ["runs=", "wandb="]),
        (["wandb=project"], ["<entity>/<project>", "'project'"]),
        pytest.param(["wandb=a/b"], ["wandb login"], marks=pytest.mark.slow),
        (["runs=runs", "pictures=-1"], ["pictures=", "-1"]),
        (["runs=runs", "out=runs/a/0/config.yaml"], ["is a file"]),
        (["runs=runs", "summary=true"], ["summary=null"]),
        (["runs=runs", "outt=x"], ["'outt'", "did you mean out"]),
        (["runs/**"], ["is not a setting"]),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(runs, monkeypatch, arguments, parts):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(runs / "netrc"))
    done = call("compare.py", *arguments, cwd=runs)
    assert done.code == refusal.BAD_INPUT and not done.out, done
    assert len(done.err.splitlines()) == 1, done.err
    assert all(part in done.err for part in parts), done.err
    assert sorted(p.name for p in runs.iterdir()) == ["runs"]


def test_help_and_the_report_itself_import_nothing_heavy():
    heavy = ("torch", "lightning", "wandb", "matplotlib", "sklearn", "torchmetrics", "pandas")
    code = f"import sys, triptych.report; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    done = call("compare.py", "--help")
    assert done.code == 0 and "runs='runs/**'" in done.out and str(ROOT) not in done.out
