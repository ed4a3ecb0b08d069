"""`train.py -m …`: every trial a process of its own. First with a stand-in for train.py, then with the real one."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripts import ROOT, TINY, call

from triptych import status
from triptych.sweep import grid
from triptych.sweep.pool import Pool
from triptych.sweep.trial import FAILED, FINISHED, STOPPED, Trial

STAND_IN = """
import json, os, sys, time
from pathlib import Path
given = dict(a.split("=", 1) for a in sys.argv[1:])
folder = Path(given["hydra.run.dir"].strip("'"))
started = time.time()
names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MASTER_PORT")
time.sleep(0.5)
seen = {n: os.environ.get(n) for n in names} | {"given": given, "group": os.getpgrp() == os.getpid()}
(folder / "seen.json").write_text(json.dumps(seen | {"started": started, "ended": time.time()}))
if given["seed"] == "1" and not (folder.parent / "mended").exists():
    print("what went wrong")
    sys.exit(1)
(folder / "metrics.csv").write_text("step,images_seen,time,fd_digits_32\\n5,80,1.0,0.25\\n")
(folder / "status.json").write_text(json.dumps({"state": "finished"}))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(grid, "_command", lambda config: [sys.executable, str(script)])
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(*given):
        where = (f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra.launcher.estimate=false")
        return call("train.py", "-m", *given, *where, cwd=tmp_path)

    return run


def ledger(folder):
    with (folder / "ledger.csv").open(newline="") as file:
        return {row["trial"]: row for row in csv.DictReader(file)}


def seen(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/seen.json"))]


@pytest.mark.slow
def test_the_impossible_is_listed_first_a_failure_stops_nothing_and_what_is_finished_is_not_run_again(
    stand_in, tmp_path
):
    given = ["schedule=cosine,geometric", "seed=0,1", "hydra.launcher.n_jobs=2"]
    done = stand_in(*given)
    sweep = tmp_path / "sweep"
    assert done.code == 1
    assert "2 of 4 combinations are impossible" in done.out
    assert "  schedule=geometric (2 trials): DDPM does not work with schedule=geometric" in done.out
    assert done.out.index("impossible") < done.out.index("2 trials to run, 2 at a time") < done.out.index("running")
    assert "what went wrong" in done.out and "1 finished, 1 failed, 2 impossible" in done.out
    assert f"-m resume={os.path.relpath(sweep, tmp_path)}" in done.out
    states = [row["state"] for row in ledger(sweep).values()]
    assert sorted(states) == ["failed", "finished", "impossible", "impossible"]
    assert ledger(sweep)[next(f.name for f in sweep.glob("cosine-seed0-*"))]["result"] == "fd_digits_32 0.25"
    for trial in seen(sweep):
        assert trial["given"]["resume"] == "auto" and trial["group"] and trial["MASTER_PORT"] is None
        assert set(trial["given"]) == {"schedule", "seed", "hydra.run.dir", "resume"}
        assert int(trial["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    (sweep / "mended").touch()
    again = call("train.py", "-m", f"resume={sweep}", cwd=tmp_path)
    assert again.code == 0 and "1 trial to run (1 finished earlier)" in again.out
    attempts = {row["overrides"][-1]: row["attempts"] for row in ledger(sweep).values() if row["state"] == "finished"}
    assert attempts == {"0": "1", "1": "2"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "together", "given"),
    [("auto", 8, {str(gpu) for gpu in range(8)}), ("ddp", 1, {"0,1,2,3,4,5,6,7"})],
)
def test_eight_gpus_are_for_eight_trials_at_once_or_for_one_after_another(
    stand_in, tmp_path, monkeypatch, trainer, together, given
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mended").touch()
    seeds = range(9 if together > 1 else 2)
    done = stand_in(f"seed={','.join(map(str, seeds))}", f"trainer={trainer}")
    assert done.code == 0 and f"{len(seeds)} trials to run, {together} at a time" in done.out, done
    trials = seen(tmp_path / "sweep")
    assert len(trials) == len(seeds) and {one["CUDA_VISIBLE_DEVICES"] for one in trials} == given
    for one in trials:
        at_once = [o for o in trials if o["started"] <= one["started"] < o["ended"]]
        assert len({o["CUDA_VISIBLE_DEVICES"] for o in at_once}) == len(at_once) <= together


def test_every_trial_has_gpus_of_its_own(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mended").touch()
    done = stand_in("seed=0,1,2", "trainer=ddp", "trainer.devices=2", "hydra.launcher.gpus_per_trial=2")
    assert done.code == 0 and "3 trials to run, 2 at a time" in done.out, done
    trials = seen(tmp_path / "sweep")
    for one in trials:
        assert one["CUDA_VISIBLE_DEVICES"] in ("4,5", "6,7")
        for other in trials:
            together = one["started"] < other["ended"] and other["started"] < one["ended"]
            assert one is other or not together or one["CUDA_VISIBLE_DEVICES"] != other["CUDA_VISIBLE_DEVICES"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["formulation=ncsn", "schedule=vp,cosine"], "None of these trials can run"),
        (["seed=0,1", "hydra.launcher.n_jobs=0"], "n_jobs"),
        (["seed=0,1", "trainer=gpu"], "None of these trials can run"),
        (["seed=0,1", "formulation=ddmp"], "no formulation=ddmp"),
    ],
)
def test_bad_input_gets_a_sentence_and_leaves_nothing(stand_in, tmp_path, given, words):
    done = stand_in(*given)
    assert done.code == 2 and words in done.err and len(done.err.splitlines()) == 1, done
    assert not (tmp_path / "sweep").exists()


def ending(pool, trial):
    for _ in range(200):
        if list(pool.ended()):
            return trial
        time.sleep(0.05)
    raise AssertionError("it did not end")


@pytest.mark.parametrize(
    ("code", "asked", "state"),
    [("", False, FINISHED), ("raise SystemExit(3)", False, FAILED), ("import time; time.sleep(60)", True, STOPPED)],
)
def test_how_a_process_ends_is_how_its_trial_stands(tmp_path, code, asked, state):
    pool, trial = Pool([sys.executable, "-c", code], 1, ["7"]), Trial("t", (), tmp_path / "t", gpus=1)
    pool.start(trial, [])
    assert not pool.fits(trial) and pool.free == []
    if asked:
        pool.stop(trial)
    assert ending(pool, trial).state == state and pool.free == ["7"]
    assert ("exit code 3" in trial.reason) == (state == FAILED)


def test_a_trial_that_failed_says_why_in_its_own_words(tmp_path):
    """Unless they are of an earlier attempt."""
    said = json.dumps({"state": "failed", "reason": "The loss was not finite (see guard/)."})
    trial = Trial("t", (), tmp_path / "t", result="train/loss 0.5")
    for code, told in (
        (f"open({str(trial.folder / 'status.json')!r}, 'w').write({said!r}); exit(3)", "The loss was not finite."),
        ("exit(2)", "ended with exit code 2"),
    ):
        pool = Pool([sys.executable, "-c", code], 1, [])
        pool.start(trial, [])
        assert ending(pool, trial).told == told
        os.utime(trial.folder / "status.json", (1e9, 1e9))


def test_what_a_trial_leaves_behind_is_ended_too(tmp_path):
    """A rank whose first rank has died would wait for it for ever."""
    code = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid)"
    pool, trial = Pool([sys.executable, "-c", code], 1, []), Trial("t", (), tmp_path / "t")
    pool.start(trial, [])
    ending(pool, trial)
    child = int(trial.log.read_text())
    for _ in range(100):
        stat = Path(f"/proc/{child}/stat")
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("its child is alive")


def test_a_signal_that_comes_twice_is_one_wish_and_a_later_ctrl_c_is_another(monkeypatch):
    """`timeout` signals a process and its group: trials would be killed before they have saved."""
    now = [100.0]
    monkeypatch.setattr(grid.time, "monotonic", lambda: now[0])
    with grid.stop_signals() as received:
        signal.raise_signal(signal.SIGTERM)
        now[0] += 0.5
        signal.raise_signal(signal.SIGINT)
        now[0] += 60
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGTERM, signal.SIGINT]


# With the real train.py.

KEPT = ("trainer.acc", "trainer.log", "callback.samples", "callback.evaluate", "global_batch")
TOY = (
    *("dataset=toy", "logger=none", "sampler.steps=4", "callback.likelihood.num_images=0"),
    *[t for t in TINY if t.startswith(KEPT)],
)


def start(*given):
    command = [sys.executable, str(ROOT / "train.py"), "-m", *map(str, given), "hydra.launcher.estimate=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on(tmp_path):
    """kill -9 of the launcher: its trial saves and ends; the same sweep takes it up where it was."""
    sweep = tmp_path / "sweep"
    launcher = start(*TOY, "trainer.max_steps=600", f"hydra.sweep.dir={sweep}")
    try:
        for _ in range(3000):
            cut = next(sweep.glob("*/metrics.csv"), None)
            if cut is not None or launcher.poll() is not None:
                break
            time.sleep(0.1)
        assert cut is not None
    finally:
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
    for _ in range(1200):
        found = status.read(cut.parent)
        if found is not None and found.state != "running":
            break
        time.sleep(0.1)
    assert found is not None and found.state == "interrupted" and 0 < found.step < 600
    assert [row["state"] for row in ledger(sweep).values()] == ["running"]
    again = call("train.py", "-m", f"resume={sweep}")
    assert again.code == 0 and "1 trial to run, 1 at a time" in again.out, again
    assert [row["state"] for row in ledger(sweep).values()] == ["finished"]
    assert f"from step {found.step}" in (cut.parent / "log.txt").read_text()


@pytest.mark.slow
def test_the_ranks_of_a_trial_are_its_own(tmp_path, monkeypatch):
    """T-D12: two trials of two ranks each, at once: two run folders, and no rank sweeps again."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sweep = tmp_path / "sweep"
    two = ("trainer=ddp", "trainer.devices=2", "trainer.max_steps=10", "hydra.launcher.n_jobs=2")
    where = (f"hydra.sweep.dir={sweep}", "hydra.launcher.estimate=false")
    done = call("train.py", "-m", *TOY, *two, "seed=0,1", *where, cwd=tmp_path)
    assert done.code == 0 and "2 finished" in done.out, done
    folders = [path for path in sweep.iterdir() if path.is_dir()]
    assert len(folders) == 2 and not list(tmp_path.glob("*/multirun.yaml/*"))
    for folder in folders:
        log = (folder / "log.txt").read_text()
        assert "2 processes" in log and log.count("Trained") == 1 and "trials to run" not in log
        known = status.read(folder)
        assert known.step == 10 and known.environment["devices"] == "2 x cpu" and known.environment["torch"]


@pytest.mark.slow
def test_submitit_runs_the_same_trials(tmp_path):
    """In jobs of its own, which were pickled; what is finished is not run again."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep = tmp_path / "sweep"
    given = (*TOY, "trainer.max_steps=10", "seed=3", "hydra/launcher=submitit_local", f"hydra.sweep.dir={sweep}")
    for _ in range(2):
        command = [sys.executable, str(ROOT / "train.py"), "-m", *given]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert status.read(sweep / "0").state == "finished"
    logs = "".join(path.read_text() for path in sweep.glob(".submitit/*/*.out"))
    assert logs.count("Trained") == 1 and logs.count("Nothing is left to train") == 1
