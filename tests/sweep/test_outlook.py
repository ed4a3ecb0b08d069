"""What a sweep says beforehand and meanwhile: how long it takes, who still runs a trial, when to give up."""

import json
import os
import socket
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("optuna")

from optuna.trial import TrialState  # noqa: E402

from triptych.sweep import estimate, grid
from triptych.sweep.screen import Screen
from triptych.sweep.search import HOPELESS, Search
from triptych.sweep.trial import FINISHED, RUNNING, Trial


def config(channels, **trainer):
    return {"model": {"channels": channels}, "global_batch_size": 64, "trainer": {"max_steps": 100, **trainer}}


def trials(folder, count=4, steps=100):
    return [Trial(f"t{n}", (), folder / "sweep" / f"t{n}", steps=steps) for n in range(count)]


def test_a_step_of_each_network_times_the_steps_shared_among_trials_at_a_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    def measured(configs, gpus, threads):
        asked.extend(configs)
        return [0.5 if c["model"]["channels"] == 8 else 1.5 for c in configs]

    monkeypatch.setattr(estimate, "measure", measured)
    given = list(zip(trials(tmp_path), [config(8), config(8), config(16), config(16)], strict=True))
    assert "About 3 min in all for training alone" in estimate.sentence(given, 2, [], 1)  # (2 x 50 + 2 x 150) / 2 s
    assert len(asked) == 2
    limited = [(trial, config(16, max_time="00:00:00:20")) for trial in trials(tmp_path)]
    assert "About 40 s in all" in estimate.sentence(limited, 2, [], 1)
    monkeypatch.setattr(estimate, "measure", lambda configs, gpus, threads: [None] * len(configs))
    assert "not known" in estimate.sentence(given, 2, [], 1)


def test_earlier_runs_of_the_same_network_tell_and_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimate, "measure", lambda *_: pytest.fail("measured"))
    run = tmp_path / "runs" / "before"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(json.dumps(config(8)))
    (run / "metrics.csv").write_text("step,train/images_per_second\n1,1.0\n2,64.0\n3,64.0\n")
    times = {"started": "2026-01-01T00:00:00+00:00", "updated": "2026-01-01T00:02:10+00:00"}
    (run / "status.json").write_text(json.dumps({"state": "finished", "images_seen": 6400, **times}))
    given = [(trial, config(8)) for trial in trials(tmp_path, 2)]
    said = estimate.sentence(given, 1, [], 1)  # 2 x (100 steps of 1 s, and 30 s beside them)
    assert "About 4 min in all with evaluations (from earlier runs" in said


def test_the_time_left_counts_trials_that_have_not_begun(tmp_path):
    four = trials(tmp_path)
    four[0].state, four[0].seconds, four[1].state = FINISHED, 100.0, RUNNING
    assert Screen(four, lambda trial: 40.0, 1).seconds_left() == pytest.approx(60 + 2 * 100)
    assert Screen(four, lambda trial: 40.0, 2).seconds_left() == pytest.approx((60 + 2 * 100) / 2)
    assert Screen(four[1:], lambda trial: 40.0, 1).seconds_left() is None


def test_a_trial_is_busy_where_another_machine_was_heard_of_lately(tmp_path):
    (trial,) = trials(tmp_path, 1)
    trial.folder.mkdir(parents=True)
    path = trial.folder / "status.json"
    path.write_text(json.dumps({"state": "running", "host": "elsewhere", "pid": 7}))
    assert grid.busy(trial) == "process 7 on elsewhere"
    os.utime(path, (time.time() - 2 * grid.SILENT,) * 2)
    assert not grid.busy(trial)
    here = {"state": "running", "host": socket.gethostname(), "pid": os.getpid()}
    path.write_text(json.dumps(here))
    os.utime(path, (time.time() - 2 * grid.SILENT,) * 2)
    assert grid.busy(trial)  # its process is alive, however long it has said nothing
    path.write_text(json.dumps({"state": "finished", "host": "elsewhere", "pid": 7}))
    assert not grid.busy(trial)


@pytest.mark.parametrize(
    ("states", "hopeless"),
    [
        ([TrialState.FAIL] * HOPELESS, True),
        ([TrialState.FAIL] * (HOPELESS - 1), False),
        ([TrialState.FAIL] * HOPELESS + [TrialState.COMPLETE], False),
        ([TrialState.FAIL] * HOPELESS + [TrialState.RUNNING], True),
    ],
)
def test_a_search_whose_first_trials_all_fail_is_given_up(states, hopeless):
    search = Search.__new__(Search)
    search.study = SimpleNamespace(trials=lambda: [SimpleNamespace(state=state) for state in states])
    assert search._hopeless() == hopeless
