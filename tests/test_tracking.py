import csv
import threading
import types

import pytest
import torch
from lightning.pytorch.loggers import WandbLogger

from triptych import tracking
from triptych.tracking import AXIS, MetricsCSV, read_csv, weights_and_biases


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_is_a_step_and_gathers_whatever_is_logged_there(tmp_path):
    log = MetricsCSV(tmp_path / "new" / "metrics.csv")
    log.log_metrics({"train/loss": 1.0, AXIS: 10}, 1)
    log.log_metrics({"val/loss": 2.0, AXIS: 10}, 1)
    log.log_metrics({"train/loss": 0.5, AXIS: 20}, 2)
    log.finalize("success")
    first, second = read_csv(log.path)
    assert (first["step"], first[AXIS], first["train/loss"], first["val/loss"]) == (1, 10, 1.0, 2.0)
    assert (second["step"], second["train/loss"]) == (2, 0.5) and "val/loss" not in second
    assert list(rows(log.path)[0])[:3] == [AXIS, "step", "time"]


def test_a_new_column_keeps_every_earlier_row(tmp_path):
    log = MetricsCSV(tmp_path / "metrics.csv")
    for step in range(1, 4):
        log.log_metrics({"a": step, f"column_{step}": step}, step)
        log.save()
    written = read_csv(log.path)
    assert [r["a"] for r in written] == [1, 2, 3]
    assert [r[f"column_{k}"] for k, r in zip((1, 2, 3), written, strict=True)] == [1, 2, 3]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_later_process_appends_to_the_same_columns(tmp_path):
    for start in (1, 3):
        log = MetricsCSV(tmp_path / "metrics.csv")
        for step in (start, start + 1):
            log.log_metrics({"b": step, "a": -step}, step)
        log.finalize("success")
    assert [(r["step"], r["a"], r["b"]) for r in read_csv(log.path)] == [(k, -k, k) for k in (1, 2, 3, 4)]


def test_cutting_forgets_what_comes_after_the_checkpoint_and_no_more(tmp_path):
    log = MetricsCSV(tmp_path / "metrics.csv")
    for step in (10, 20, 30, 40):
        log.log_metrics({"a": step}, step)
    log.finalize("success")
    again = MetricsCSV(log.path)
    again.cut(20)
    again.log_metrics({"a": 31, "new": 1}, 30)
    again.finalize("success")
    assert [(r["step"], r["a"]) for r in read_csv(log.path)] == [(10, 10), (20, 20), (30, 31)]


def test_cutting_a_file_whose_last_line_is_half_written_keeps_the_whole_ones(tmp_path):
    """A machine that loses power while a row is being written."""
    path = tmp_path / "metrics.csv"
    path.write_text("images_seen,step,time,a\n10,1,0.0,5\n20,2,0.0,6\n30,")
    assert len(read_csv(path)) == 2
    log = MetricsCSV(path)
    log.cut(2)
    assert [(r["step"], r["a"]) for r in read_csv(path)] == [(1, 5), (2, 6)]


def test_cutting_where_there_is_nothing_does_nothing(tmp_path):
    MetricsCSV(tmp_path / "metrics.csv").cut(5)
    (tmp_path / "empty.csv").touch()
    log = MetricsCSV(tmp_path / "empty.csv")
    log.cut(5)
    log.log_metrics({"a": 1}, 6)
    log.finalize("success")
    assert read_csv(log.path) == [{"step": 6, "a": 1, "time": pytest.approx(read_csv(log.path)[0]["time"])}]


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_MODE", "WANDB_DATA_DIR", "WANDB_SILENT"):  # `connect` sets them: what they were comes back
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path


def test_logged_in_means_a_key_in_the_environment_or_in_netrc(no_key, monkeypatch):
    assert not tracking.logged_in()
    (no_key / "netrc").write_text("machine elsewhere.org login user password x\n")
    assert not tracking.logged_in()
    (no_key / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert tracking.logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://elsewhere.net")
    assert not tracking.logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert tracking.logged_in()


def test_disabled_means_no_run_and_no_folder(no_key, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert tracking.connect({}, no_key / "run", "abc", {}) is None
    assert not (no_key / "run").exists()
    assert "metrics.csv" in tracking.how_to_look(None, no_key)


@pytest.mark.slow
def test_a_server_that_cannot_be_reached_at_the_start_leaves_an_offline_run(no_key, monkeypatch, capsys):
    """W&B itself: once it has tried, its process calls the run's id one that is in use."""
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(weights_and_biases, "INIT_TIMEOUT", 1)
    logger = tracking.connect({"project": "p"}, no_key / "run", "unreachable", {"a": 1})
    tracking.log_scalars([logger], {"a": 1.0}, 1, 10)
    tracking.finish(logger)
    wandb.teardown()  # writes what is left
    assert capsys.readouterr().out.count("W&B cannot be reached (Failed to get resume status") == 1
    (folder,) = (no_key / "run" / "wandb").glob("offline-run-*-unreachable")
    assert b"images_seen" in (folder / "run-unreachable.wandb").read_bytes()


class OfflineRun:
    """What W&B hands out, without its background process."""

    def __init__(self, folder):
        self.dir, self.url, self.logged, self.axes = str(folder / "files"), None, [], {}
        self.settings = type("Settings", (), {"_offline": True})()

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, values):
        self.logged.append(values)


def test_without_network_a_run_with_a_key_goes_on_offline_with_one_line(no_key, monkeypatch, capsys):
    """The real thing takes W&B's whole patience, so what it would raise is raised at once."""
    import wandb
    from wandb.errors import CommError

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    asked = []

    def unreachable(**arguments):
        asked.append(arguments)
        if arguments["mode"] == "online":
            raise CommError("Run initialization has timed out\nand more lines")
        return OfflineRun(no_key / "run" / "wandb" / "offline-run-1-abc")

    monkeypatch.setattr(wandb, "init", unreachable)
    logger = tracking.connect({"project": "p", "_target_": "x"}, no_key / "run", "abc", {"a": 1})
    assert [a["mode"] for a in asked] == ["online", "offline"]
    assert all(a["settings"].init_timeout <= 60 and a["dir"] == no_key / "run" and a["id"] == "abc" for a in asked)
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1 and "timed out" in out and "offline" in out
    assert "wandb sync" in tracking.how_to_look(logger, no_key) and "offline-run-1-abc" in tracking.how_to_look(
        logger, no_key
    )
    assert logger.experiment.axes == {AXIS: None, "*": AXIS}  # T-D13
    tracking.log_picture([logger], "samples", torch.zeros(1, 8, 8, dtype=torch.uint8), 1, 10)
    assert tracking.aside.wait()
    assert logger.experiment.logged[0][AXIS] == 10


def test_without_a_key_nobody_is_asked_for_one(no_key, monkeypatch):
    import wandb

    asked = []
    monkeypatch.setattr(wandb, "init", lambda **arguments: asked.append(arguments) or OfflineRun(no_key))
    tracking.connect({}, no_key / "run", "abc", {})
    assert [a["mode"] for a in asked] == ["offline"]


class Failing(OfflineRun):
    def log(self, values, step=None):
        raise ConnectionError("the server\nsays no")


def test_a_slow_logger_delays_nobody_and_a_failing_one_is_left_out(tmp_path, capsys):
    """T-F10: rank 0 logs while the others wait for it at the next step."""
    slow, failing = tracking.Wandb(experiment=OfflineRun(tmp_path)), WandbLogger(experiment=Failing(tmp_path))
    table = MetricsCSV(tmp_path / "metrics.csv")
    logs = threading.Event()
    slow.experiment.log = lambda values, step=None: (logs.wait(20), slow.experiment.logged.append(values))
    for step in (1, 2, 3):
        tracking.log_scalars([failing, slow, table], {"a": step}, step, 10 * step)  # would block, or raise
        tracking.log_picture([failing, slow], "grid", torch.zeros(1, 4, 4, dtype=torch.uint8), step, 10 * step)
    table.save()
    assert [row["a"] for row in read_csv(table.path)] == [1, 2, 3] and not slow.experiment.logged
    assert not tracking.aside.wait(0.05)
    logs.set()
    assert tracking.aside.wait(20)
    assert [v["a"] for v in slow.experiment.logged if "a" in v] == [1, 2, 3]  # in order, none lost
    said = capsys.readouterr().out
    assert said.count("left out") == 1 and "the server" in said and "says no" not in said


def test_a_server_that_is_gone_at_the_end_is_said_with_what_to_type(no_key, capsys):
    run = OfflineRun(no_key / "run" / "wandb" / "run-1-abc")
    run.finish = lambda: (_ for _ in ()).throw(TimeoutError("Timed out finishing run."))
    tracking.finish(tracking.Wandb(save_dir=no_key, experiment=run))
    out = capsys.readouterr().out
    assert "did not take everything in 120 s" in out and "wandb sync --include-online " in out and "run-1-abc`" in out


def test_the_name_of_a_number_without_a_sampler():
    """evaluate.py metric=bits_per_dim asks for it once its record is written."""
    fields = {"weights": "ema(half_life=500000 images, ramp=0.1)", "reference": {"split": "test"}}
    likelihood = types.SimpleNamespace(metric="bits_per_dim_32", sampler=None, **fields)
    assert tracking.name_of(likelihood, {}) == "evaluation/bits_per_dim_32/test"
    distance = types.SimpleNamespace(metric="fd_digits_1k", sampler={"name": "DDIM", "steps": 20}, **fields)
    assert tracking.name_of(distance, {}) == "evaluation/fd_digits_1k/DDIM steps 20/test"


def test_a_run_of_several_segments_is_brought_there_one_by_one(no_key):
    """`wandb sync` stops at the segment of a run that was killed."""
    run = OfflineRun(no_key / "run" / "wandb" / "offline-run-2-abc")
    logger = tracking.Wandb(save_dir=no_key, experiment=run)
    (no_key / "run" / "wandb" / "offline-run-2-abc").mkdir(parents=True)
    assert ":  wandb sync " in tracking.how_to_look(logger, no_key / "run")
    (no_key / "run" / "wandb" / "offline-run-1-abc").mkdir()
    assert "run/wandb/offline-run-*; do wandb sync $run; done" in tracking.how_to_look(logger, no_key / "run")
