import itertools
import random

import pytest
import synthetic

from triptych import report
from triptych.report.figures import figures, front
from triptych.report.runs import Run


@pytest.mark.parametrize("better", [-1, 1])
def test_the_front_is_what_no_other_point_dominates(better):
    generator = random.Random(0)
    points = [(generator.randint(1, 9), generator.randint(1, 9)) for _ in range(40)]

    def dominated(p):
        return any(q[0] <= p[0] and better * q[1] >= better * p[1] and q != p for q in points)

    assert front(points, better) == sorted({p for p in points if not dominated(p)})


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    of = list(synthetic.FORMULATIONS.items())[:4]
    for number, ((choices, (quality, bits)), seed) in enumerate(itertools.product(of, range(2))):
        values = {"quality": quality + seed / 10, "bits": bits}
        synthetic.run(folder / str(number), choices.split(), seed=seed, pictures=False, **values)
    folders = report.find(str(folder))
    return report.build([report.read(*pair) for pair in zip(folders, report.names(folders), strict=True)])


def choice(table, figure, label):
    return next(c for f in figures(table) if f["id"] == figure for c in f["choices"] if c["label"] == label)


def test_quality_stands_against_the_counted_calls_of_every_sampler(table):
    drawn = choice(table, "nfe", "fd_digits_1k")
    lines = [t for t in drawn["data"] if "group" in t["meta"]]
    assert len(lines) == 4 * 2  # DPM-Solver and the own sampler of each
    solver = next(t for t in lines if t["name"] == "ddpm" and len(t["x"]) == 3)
    assert solver["x"] == [10, 20, 50]
    assert solver["y"] == pytest.approx([0.95, 0.95 * 0.7, 0.95 * 0.6], rel=1e-4)
    best = next(t for t in drawn["data"] if "front" in t["meta"])
    points = [(x, y) for t in lines for x, y in zip(t["x"], t["y"], strict=True)]
    assert list(zip(best["x"], best["y"], strict=True)) == front(points, -1)
    assert "N = 1000" in drawn["caption"]
    colours = {
        name: {t["line"]["color"] for t in lines if t["name"].startswith(name)} for name in ("ddpm", "score_sde")
    }
    assert all(len(c) == 1 for c in colours.values()) and colours["ddpm"] != colours["score_sde"]


def test_curves_are_a_line_a_seed_in_images_and_in_minutes(table):
    drawn = choice(table, "curves", "val/eps_mse")
    assert len(drawn["data"]) == 8
    run = table.runs[drawn["data"][0]["meta"]["run"]]
    assert drawn["data"][0]["x"] == [seen for seen, _, _ in run.scalars["val/eps_mse"]]
    assert drawn["data"][0]["minutes"] == pytest.approx([s / 60 for _, s, _ in run.scalars["val/eps_mse"]], rel=1e-3)
    assert "per noise level" in drawn["caption"]


def test_the_loss_per_noise_level_is_the_last_one_in_every_bin(table):
    drawn = choice(table, "noise", "val/eps_mse")
    assert drawn["data"][0]["x"] == list(range(-9, 10, 2))
    row = table.groups[drawn["data"][0]["meta"]["group"]]
    last = [table.runs[i].scalars["val/eps_mse/log_snr_0_to_2"][-1][2] for i in row.runs]
    assert drawn["data"][0]["y"][5] == pytest.approx(sum(last) / 2, rel=1e-4)


def test_the_open_bins_stand_outside_of_all_others():
    ends = {"below_-10": 4.0, "-10_to_-8": 3.0, "8_to_10": 2.0, "above_10": 1.0}
    run = Run("one", scalars={f"val/eps_mse/log_snr_{name}": [(1.0, 1.0, value)] for name, value in ends.items()})
    (line,) = choice(report.build([run]), "noise", "val/eps_mse")["data"]
    assert line["x"] == [-11, -9, 9, 11] and line["y"] == list(ends.values())


def test_a_sampler_is_as_fast_as_its_records_say(tmp_path):
    synthetic.run(tmp_path / "run", ["formulation=edm"], pictures=False)
    synthetic.write_record(tmp_path / "run", 0.5, sampler=synthetic.dpm_solver(10), nfe=10, images_per_second=321.0)
    table = report.build([report.read(tmp_path / "run", "run")])
    (bar,) = choice(table, "cost", "sampling, images/s, DPMSolver 10")["data"]
    assert bar["x"] == [321.0]


def test_a_curve_of_many_points_is_thinned_and_says_so(table):
    run = Run("long", config=table.runs[0].config)
    run.scalars["train/loss"] = [(float(k), float(k), 1.0 / (k + 1)) for k in range(100_000)]
    drawn = choice(report.build([run]), "curves", "train/loss")
    assert (
        len(drawn["data"][0]["x"]) == 200
        and drawn["data"][0]["x"][-1] == 99_999
        and "thinned to 200" in drawn["caption"]
    )


def test_a_name_is_never_markup_for_plotly(table):
    run = Run("one", config={"name": "<a href='x'>%{y}</a> & co"}, scalars={"train/loss": [(1.0, 1.0, 1.0)]})
    other = Run("two", config={"name": "b"}, scalars=run.scalars)
    names = {t["name"] for t in choice(report.build([run, other]), "curves", "train/loss")["data"]}
    assert all("<" not in name and "%{" not in name for name in names)


def test_runs_that_logged_nothing_are_drawn_as_nothing():
    assert all(not figure["choices"] for figure in figures(report.build([Run("empty")])))
