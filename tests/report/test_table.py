import csv
import io
import statistics

import pytest
import synthetic

from triptych import report
from triptych.report.table import BEST, NEAR, OWN, UNTESTED, with_error


def read(folder):
    folders = report.find(str(folder))
    return [report.read(*pair) for pair in zip(folders, report.names(folders), strict=True)]


def column(table, sampler, metric="fd_digits_1k", mark=""):
    wanted = [n for n, c in enumerate(table.columns) if (c.metric, c.sampler, c.mark) == (metric, sampler, mark)]
    assert len(wanted) == 1, [c.title for c in table.columns]
    return wanted[0]


def test_a_group_of_seeds_has_the_mean_and_deviation_of_its_seeds(tmp_path):
    values = {"ddpm": (1.0, 1.1, 1.3), "edm": (0.5, 0.9, 0.7)}
    for name, of in values.items():
        for seed, quality in enumerate(of):
            synthetic.run(
                tmp_path / name / str(seed), [f"formulation={name}"], seed=seed, quality=quality, pictures=False
            )
    table = report.build(read(tmp_path))
    assert [row.label for row in table.groups] == ["edm", "ddpm"]  # the best first
    assert [s.label for s in table.settings] == ["formulation", "schedule", "sampler"]
    number = column(table, "DPMSolver 10")
    for row in table.groups:
        sample = row.cells[number].sample
        assert sample.mean == pytest.approx(statistics.mean(values[row.label]))
        assert sample.std == pytest.approx(statistics.stdev(values[row.label]))
    own = column(table, OWN)
    assert {row.cells[own].sampler for row in table.groups} == {"Ancestral 250", "Heun 18"}
    assert table.columns[number].calls == 10 and len(table.singles) == 6


def test_best_and_within_the_noise_of_it_are_marked_by_the_test(tmp_path):
    means = {"formulation=ddpm": 1.0, "formulation=edm": 1.05, "formulation=flow_matching": 3.0}
    for number, (choice, mean) in enumerate(means.items()):
        for seed in range(3):
            quality = mean + 0.1 * (seed - 1)
            synthetic.run(tmp_path / f"{number}{seed}", [choice], seed=seed, quality=quality, pictures=False)
    table = report.build(read(tmp_path))
    marks = {row.label: row.cells[column(table, "DPMSolver 10")].mark for row in table.groups}
    assert marks == {"ddpm": BEST, "edm": NEAR, "flow_matching": ""}
    marks = {row.cells[column(table, "DPMSolver 10")].mark for row in table.singles}
    assert marks == {BEST, UNTESTED}


def test_another_protocol_is_another_column_with_a_mark(tmp_path):
    """The trap of every table: N = 1000 beside N = 50,000, raw beside averaged weights."""
    for seed in range(2):
        synthetic.run(tmp_path / f"a{seed}", ["formulation=edm"], seed=seed, pictures=False)
        folder = tmp_path / f"b{seed}"
        synthetic.run(folder, ["formulation=ddpm"], seed=seed, pictures=False)
        synthetic.write_record(folder, 0.1, sampler=synthetic.dpm_solver(10), nfe=10, weights="raw")
    table = report.build(read(tmp_path))
    shown = {(c.mark, c.difference) for c in table.columns if c.sampler == "DPMSolver 10"}
    assert shown == {("A", "weights ema"), ("B", "weights raw")}
    cells = [row.cells.get(column(table, "DPMSolver 10", mark="B")) for row in table.groups]
    assert sum(c is not None for c in cells) == 1 and not any(c.mark for c in cells if c)
    written = report.to_csv(table)
    assert "fd_digits_1k [B], DPMSolver 10 (weights raw): mean" in written
    assert "[B]" in report.to_markdown(table, report.TEST)


def test_a_resumed_run_counts_with_its_latest_number(tmp_path):
    synthetic.run(tmp_path / "run", ["formulation=edm"], quality=1.0, pictures=False)
    synthetic.write_record(tmp_path / "run", 0.2, sampler=synthetic.dpm_solver(10), nfe=10, images_seen=99_999)
    synthetic.write_record(tmp_path / "run", 7.0, sampler=synthetic.dpm_solver(10), nfe=10, images_seen=10)
    table = report.build(read(tmp_path))
    assert table.groups[0].cells[column(table, "DPMSolver 10")].sample.values == (0.2,)


def test_seeds_that_differ_in_more_than_their_seed_are_warned_of(tmp_path):
    for seed in range(2):
        synthetic.run(tmp_path / str(seed), ["formulation=edm"], seed=seed, pictures=False)
    synthetic.write_record(tmp_path / "0", 0.2, sampler=synthetic.dpm_solver(10), nfe=10, images_seen=99_999)
    changed = {"code": synthetic.CODE | {"commit": "beef"}}
    synthetic.write_record(tmp_path / "1", 0.2, sampler=synthetic.dpm_solver(20), nfe=20, images_seen=6401, **changed)
    table = report.build(read(tmp_path))
    row = table.groups[0]
    assert "different numbers of images" in row.cells[column(table, "DPMSolver 10")].warnings[0]
    assert any("versions of the code" in w for w in row.cells[column(table, "DPMSolver 20")].warnings)
    assert not row.cells[column(table, "DPMSolver 50")].warnings
    written = report.to_markdown(table, report.TEST)
    seen = "the seeds have seen different numbers of images: 6,400 to 99,999"
    assert f"\n‡ {seen}: {row.label} (fd_digits_1k, DPMSolver 10); " in written
    assert f"different versions of the code: {row.label} (fd_digits_1k, DPMSolver 20)." in written


def test_a_copy_of_a_run_is_no_second_seed(tmp_path):
    for name, seed in {"one": 0, "copy": 0, "other": 1}.items():
        synthetic.run(tmp_path / name, ["formulation=edm"], seed=seed, pictures=False)
    (told,) = report.build(read(tmp_path)).warnings
    assert told.startswith("seed 0 counts 2 times: ")


def test_a_warning_of_many_cells_names_a_few_of_them(tmp_path):
    for seed in range(2):
        synthetic.run(tmp_path / str(seed), ["formulation=edm"], seed=seed, pictures=False)
    for steps in range(60, 66):
        synthetic.write_record(tmp_path / "0", 0.2, sampler=synthetic.dpm_solver(steps), nfe=steps)
    table = report.build(read(tmp_path))
    (told,) = table.warnings
    assert told.startswith(f"1 of 2 seeds measured: {table.groups[0].label} (fd_digits_1k, DPMSolver 60), ")
    assert told.endswith("DPMSolver 63), and 2 more")


def test_runs_that_crashed_or_were_never_measured_keep_their_row(tmp_path):
    synthetic.run(tmp_path / "good", ["formulation=edm"], pictures=False)
    synthetic.write_config(tmp_path / "crashed", ["formulation=ddpm"], seed=3)
    synthetic.write_status(tmp_path / "crashed", "failed", reason="out of memory")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    table = report.build(read(tmp_path))
    assert sorted(row.status for row in table.groups) == ["failed", "finished", "unknown"]
    assert table.groups[0].status == "finished"
    rows = list(csv.DictReader(io.StringIO(report.to_csv(table))))
    assert {row["status"] for row in rows} == {"failed", "finished", "unknown"}
    assert "2 without evaluation" in report.summary(table)


def test_a_number_and_its_error_end_at_the_same_place():
    assert with_error(1.11, 0.0382) == "1.110 ± 0.038"
    assert with_error(123.456, 12.3) == "123 ± 12"
    assert with_error(0.5, 0.0) == "0.5 ± 0"


def test_a_table_that_a_spreadsheet_opens_holds_no_formula(tmp_path):
    synthetic.run(tmp_path / "run", ["formulation=edm"], pictures=False, name="x")
    run = read(tmp_path)[0]
    run.name = '=HYPERLINK("x")'
    rows = list(csv.reader(io.StringIO(report.to_csv(report.build([run])))))
    assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row)
