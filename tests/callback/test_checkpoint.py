import os
import threading

import pytest
import torch

from triptych import disk
from triptych.callback import Checkpoint
from triptych.callback.checkpoint import AtomicIO, keep, warning, write


class Unwritable:
    """Fails when it is pickled, in the middle of torch.save."""

    def __reduce__(self):
        raise OSError(28, "No space left on device")


def test_a_save_that_dies_leaves_the_old_checkpoint_and_is_said_once(tmp_path, capsys):
    path, io = tmp_path / "checkpoints" / "last.ckpt", AtomicIO()
    io.save_checkpoint({"global_step": 1}, path)
    io.join()
    for _ in range(2):
        io.save_checkpoint({"big": torch.zeros(1000), "x": Unwritable(), "global_step": 2}, path)
        io.join()
        assert io.failed and io.written == 1
    assert torch.load(path, weights_only=True) == {"global_step": 1}
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]  # and no half of the new one
    assert capsys.readouterr().out.count("No space left on device") == 1
    io.save_checkpoint({"global_step": 3}, path)
    io.join()
    assert not io.failed and io.written == 3


def test_the_new_checkpoint_takes_the_olds_place_only_when_it_is_whole(tmp_path, monkeypatch):
    """At the moment of the rename the file that is renamed can be read."""
    path, seen = tmp_path / "last.ckpt", []
    write({"step": 1}, path)
    replace = os.replace

    def watched(source, target):
        seen.append((torch.load(source, weights_only=True)["step"], torch.load(target, weights_only=True)["step"]))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write({"step": 2}, path)
    assert seen == [(2, 1)] and torch.load(path, weights_only=True)["step"] == 2


def test_what_is_written_beside_training_is_the_state_of_the_moment_and_never_two_at_once(tmp_path, monkeypatch):
    io, at_once, most = AtomicIO(), [0], [0]
    go_on = threading.Event()
    original = torch.save

    def slow(checkpoint, file):
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        go_on.wait(10)
        original(checkpoint, file)
        at_once[0] -= 1

    monkeypatch.setattr(torch, "save", slow)
    weight = torch.zeros(3, requires_grad=True)
    io.save_checkpoint({"state_dict": {"w": weight}, "lists": [torch.ones(2), (1, "a")]}, tmp_path / "a.ckpt")
    with torch.no_grad():
        weight.add_(5)  # training goes on while nothing is on the disk yet
    assert not (tmp_path / "a.ckpt").exists()
    second = threading.Thread(target=io.save_checkpoint, args=({"state_dict": {"w": weight}}, tmp_path / "b.ckpt"))
    second.start()
    go_on.set()
    second.join(10)
    io.teardown()
    assert most == [1]
    a, b = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in "ab")
    assert torch.equal(a["state_dict"]["w"], torch.zeros(3)) and a["lists"][1] == (1, "a")
    assert torch.equal(b["state_dict"]["w"], torch.full((3,), 5.0))


def test_a_checkpoint_is_kept_under_another_name_when_the_next_one_is_written(tmp_path):
    last = tmp_path / "last.ckpt"
    write({"step": 1}, last)
    keep(last, "step=1.ckpt")
    write({"step": 2}, last)
    keep(last, "best.ckpt")
    keep(last, "best.ckpt")
    found = {p.name: torch.load(p, weights_only=True)["step"] for p in tmp_path.iterdir()}
    assert found == {"last.ckpt": 2, "step=1.ckpt": 1, "best.ckpt": 2}


def test_where_there_are_no_links_a_checkpoint_is_copied(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    last = tmp_path / "last.ckpt"
    write({"step": 1}, last)
    keep(last, "best.ckpt")
    write({"step": 2}, last)
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["step"] == 1
    keep(last, "best.ckpt")
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["step"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_temporary_files_of_the_dead_are_removed_and_no_others(tmp_path):
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    path = disk.temporary_of(tmp_path / "last.ckpt")
    stale = path.with_name(path.name.replace(f".{os.getpid()}.", f".{dead}."))
    elsewhere = tmp_path / f".last.ckpt.another-host.{dead}.tmp"
    for p in (path, stale, elsewhere, tmp_path / ".mine.tmp", tmp_path / "last.ckpt"):
        p.touch()
    assert disk.remove_stale(tmp_path) == [stale]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("name", ["every_images", "milestone_images"])
def test_intervals_are_positive(name):
    with pytest.raises(ValueError, match="at least 1, or null for never, got 0"):
        Checkpoint(**{name: 0})


def test_the_best_is_chosen_by_samples_that_are_measured():
    with pytest.raises(ValueError, match="a loss does not rank samples"):  # T-D10
        Checkpoint(best="val/loss")
    with pytest.raises(ValueError, match="is not measured in this run: metrics there end in _1k or _500"):
        Checkpoint(best="fd_digits_50").check({"500", "1k"})
    Checkpoint(best="fd_digits_500").check({"500", "1k"})
    with pytest.raises(ValueError, match="must be min or max"):
        Checkpoint(mode="lowest")


class FakeStrategy:
    @staticmethod
    def broadcast(value):
        return value


class FakeTrainer:
    strategy, is_global_zero, global_step = FakeStrategy(), True, 0

    def __init__(self, folder):
        self.default_root_dir = folder


@pytest.mark.parametrize(("mode", "expected"), [("min", [3, 1]), ("max", [3, 4])])
def test_the_best_is_kept_and_survives_the_process(tmp_path, monkeypatch, mode, expected):
    saved = []
    monkeypatch.setattr("triptych.callback.checkpoint.join", lambda trainer: None)
    trainer = FakeTrainer(tmp_path)
    for values in ((3.0, float("nan")), (1.0, 4.0, 2.0)):  # two processes
        checkpoint = Checkpoint(best="fd_500", mode=mode)
        for value in values:
            checkpoint.save = lambda trainer, name, value=value: saved.append(value)
            checkpoint.consider(trainer, {"fd_500": value, "other": 0.0})
    assert saved == expected


def test_what_cannot_be_exact_is_said():
    before = {"processes": 2, "accumulate": 1, "precision": "32-true"}
    assert "processes 2 -> 4" in warning(before, {**before, "processes": 4}) and "noise" in warning(
        before, {**before, "processes": 4}
    )
    assert "rounding" in warning(before, {**before, "precision": "bf16-mixed"})
