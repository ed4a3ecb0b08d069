import pytest
import synthetic

from triptych import report
from triptych.report import runs
from triptych.report.runs import Run, add_scalars


@pytest.fixture
def several(tmp_path):
    for name in ("a/one", "a/two", "b/one"):
        synthetic.run(tmp_path / "runs" / name, ["formulation=ddpm"], pictures=False)
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("pattern", "count"), [("", 3), ("/**", 3), ("/*", 3), ("/a", 2), ("/a/one", 1), ("/*/one", 2), ("/**/one", 2)]
)
def test_runs_are_found_by_folder_and_by_glob(several, pattern, count):
    assert len(runs.find(f"{several}{pattern}")) == count


def test_a_run_that_two_patterns_find_is_one_run(several):
    assert len(runs.find([f"{several}/a", f"{several}/*/one"])) == 3


@pytest.mark.parametrize("pattern", ["/notes", "/nothing", "/*/three"])
def test_a_place_without_runs_is_refused_in_words(several, pattern):
    with pytest.raises(FileNotFoundError, match="There are no runs at .*give runs="):
        runs.find(f"{several}{pattern}")


def test_names_are_what_tells_folders_apart(several):
    assert report.names(runs.find(str(several))) == ["a/one", "a/two", "b/one"]
    assert report.names(runs.find(f"{several}/b")) == ["one"]


def test_a_run_that_has_nothing_but_a_config_is_read_and_says_so(tmp_path):
    synthetic.write_config(tmp_path / "run", ["formulation=edm"])
    run = report.read(tmp_path / "run", "run")
    assert run.status == "unknown" and run.config["choices"]["formulation"] == "edm" and not run.scalars
    assert {"no metrics.csv", "no evaluation"} <= set(run.notes)
    assert any("older version" in note for note in run.notes)


def test_files_that_are_broken_become_notes(tmp_path):
    folder = tmp_path / "run"
    synthetic.run(folder, ["formulation=edm"], pictures=False)
    (folder / "config.yaml").write_text("model: [1, 2\n")
    (folder / "metrics.csv").write_text("images_seen,time,loss\n1,2,x\n")
    (folder / "status.json").write_text("{")
    (folder / "evaluations" / "odd.json").write_text('[{"metric": 3}]')
    (folder / "evaluations" / "infinite.json").write_text('{"metric": "fid_1k", "value": Infinity}')
    run = report.read(folder, "run")
    text = "; ".join(run.notes)
    for part in ("config.yaml cannot be read", "metrics.csv cannot", "status.json cannot", "is not a record"):
        assert part in text, text
    assert len(run.records) == 5
    table = report.build([run])
    assert table.groups[0].cells and table.groups[0].settings == []


def test_a_state_is_shown_as_the_run_wrote_it(tmp_path):
    folder = tmp_path / "run"
    synthetic.run(folder, ["formulation=edm"], pictures=False)
    synthetic.write_status(folder, "failed", reason="The loss is not finite.", exit_code=1, environment={"torch": "3"})
    run = report.read(folder, "run")
    assert run.status == "failed" and "The loss is not finite." in run.notes and run.environment["exit code"] == 1
    assert run.environment["trained with"] == {"torch": "3"}


def test_pauses_are_no_training_time():
    run = Run("run")
    rows = [
        {"images_seen": 64 * k, "time": 10.0 * k + (90_000 if k > 5 else 0), "loss": 1.0 / (k + 1)} for k in range(10)
    ]
    add_scalars(run, [*rows, {"images_seen": 640, "time": 90_100.0, "loss": float("inf")}])
    assert run.seconds == pytest.approx(80 + 10)
    assert len(run.scalars["loss"]) == 10 and run.images_seen == 640
