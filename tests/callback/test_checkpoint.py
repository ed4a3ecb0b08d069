import pytest
import torch

from triptych.callback import Checkpoint
from triptych.callback.checkpoint import AtomicIO


class Unwritable:
    """Fails when it is pickled, in the middle of torch.save."""

    def __reduce__(self):
        raise OSError("disk full")


def test_a_save_that_dies_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicIO().save_checkpoint({"step": 1}, path)
    with pytest.raises(OSError, match="disk full"):
        AtomicIO().save_checkpoint({"big": torch.zeros(1000), "x": Unwritable()}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]  # and no half of the new one


def test_the_new_checkpoint_takes_the_olds_place_only_when_it_is_whole(tmp_path, monkeypatch):
    """At the moment of the rename the file that is renamed can be read."""
    import os

    path, seen = tmp_path / "last.ckpt", []
    AtomicIO().save_checkpoint({"step": 1}, path)
    replace = os.replace

    def watched(source, target):
        seen.append((torch.load(source, weights_only=True)["step"], torch.load(target, weights_only=True)["step"]))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    AtomicIO().save_checkpoint({"step": 2}, path)
    assert seen == [(2, 1)] and torch.load(path, weights_only=True)["step"] == 2


def test_the_trainers_plugin_is_the_atomic_one():
    assert isinstance(Checkpoint.io(), AtomicIO)


@pytest.mark.parametrize("name", ["every_images", "milestone_images"])
def test_intervals_are_positive(name):
    with pytest.raises(ValueError, match="at least 1, or null for never, got 0"):
        Checkpoint(**{name: 0})
