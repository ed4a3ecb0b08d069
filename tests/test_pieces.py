"""Checkpoints that several processes write, each its own share: whole or not at all, and safe to read."""

import os
import pickle
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from processes import in_two, queue
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from triptych import disk, pieces, run
from triptych.callback.checkpoint import AtomicIO, keep, write
from triptych.layout import checkpoint_of, checkpoints

SHAPE = (5, 3)  # not divisible by two


def values(step):
    return torch.arange(15.0).view(SHAPE) + 100 * step


def refuse(*_):
    raise OSError(28, "No space left on device")


def save(rank, folder, said):
    """In each of two processes: two checkpoints, and a third for which the second process has no room."""
    from lightning.pytorch.utilities import rank_zero_only

    rank_zero_only.rank = rank
    mesh = init_device_mesh("cpu", (2,))
    io, path = AtomicIO(), folder / "checkpoints" / "last.ckpt"

    def checkpoint(step):
        weight = distribute_tensor(values(step), mesh, [Shard(0)])
        state = {"weight": weight, "buffer": torch.ones(2), "count": 7}
        return {"state_dict": state, "optimizer_states": [{"state": {0: {"m": weight + 1}}}], "global_step": step}

    for step, name in ((1, "step=1.ckpt"), (2, None)):
        content = checkpoint(step)
        io.also = [name] if name else []
        io.save_checkpoint(content, path)
        content["state_dict"]["weight"].to_local().zero_()  # training goes on
        content["state_dict"]["buffer"].zero_()
        io.join()
        assert not io.failed and io.written == step
    with mock.patch.object(disk, "forgiving", remember(said, disk.forgiving)):
        with mock.patch.object(FileSystem, "create_stream", refuse) if rank else mock.patch.dict({}):
            io.save_checkpoint(checkpoint(3), path)
            io.join()
        assert io.failed and io.written == 2


def remember(said, original):
    def forgiving(what):
        said.put(what)
        return original(what)

    return forgiving


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    said = queue()
    in_two(save, folder, said)
    assert said.get(timeout=5) == "A checkpoint cannot be written" and said.empty()  # by the first process alone
    return folder


@pytest.fixture
def copy(written, tmp_path):
    shutil.copytree(written, tmp_path / "run")
    return tmp_path / "run" / "checkpoints"


pytestmark = pytest.mark.slow


def test_one_process_reads_what_two_have_written(written):
    """The state of the moment it was saved; a save that one of them could not make has changed nothing."""
    folder = written / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["last.ckpt", "step=1.ckpt"]
    for name, step in (("last.ckpt", 2), ("step=1.ckpt", 1)):
        stored = run.read_checkpoint(folder / name)
        assert torch.equal(stored["state_dict"]["weight"], values(step)) and stored["global_step"] == step
        assert torch.equal(stored["optimizer_states"][0]["state"][0]["m"], values(step) + 1)
        assert torch.equal(stored["state_dict"]["buffer"], torch.ones(2)) and stored["state_dict"]["count"] == 7
    names = [{p.name for p in (folder / f).iterdir()} - {pieces.META} for f in ("last.ckpt", "step=1.ckpt")]
    assert len(names[0]) == len(names[1]) == 2 and not names[0] & names[1]  # one is never mixed with the next
    assert run.newest(written) == (folder / "last.ckpt", 2) and run.newest_step(written) == 2


def test_one_that_is_cut_off_is_named_and_the_one_before_is_taken(copy, capsys):
    share = next(p for p in (copy / "last.ckpt").iterdir() if p.suffix == ".distcp")
    share.write_bytes(share.read_bytes()[:-100])
    assert run.newest(copy.parent) == (copy / "step=1.ckpt", 1)
    assert f"only a part of a checkpoint: {share.name}" in capsys.readouterr().err
    share.unlink()
    with pytest.raises(ValueError, match="missing or cut off"):
        run.read_checkpoint(copy / "last.ckpt")
    (copy / "last.ckpt" / pieces.META).unlink()
    assert checkpoint_of(copy.parent) == copy / "step=1.ckpt"
    assert "last.ckpt is only a part of a checkpoint" in capsys.readouterr().err


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


def test_no_piece_of_it_can_hold_code(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = copy / "last.ckpt"
    meta = torch.load(path / pieces.META, weights_only=True)
    torch.save({**meta, "checkpoint": Bomb()}, path / pieces.META)
    with pytest.raises(ValueError, match="is not a checkpoint, or only a part of one"):
        run.read_checkpoint(path)
    torch.save(meta, path / pieces.META)
    piece = meta["index"]["state_dict/weight"]["pieces"][0]
    torch.save(Bomb(), path / "bomb.distcp")
    for content in ((path / "bomb.distcp").read_bytes(), pickle.dumps(Bomb())):
        (path / "bomb.distcp").write_bytes(content)
        piece.update(file="bomb.distcp", begin=0, length=len(content))
        torch.save(meta, path / pieces.META)
        with pytest.raises(ValueError, match="cannot be read"):
            run.read_checkpoint(path)
    (path / ".metadata").write_bytes(pickle.dumps(Bomb()))  # torch's own index, which is a pickle, is not looked at
    assert not (tmp_path / "exploded").exists()


def test_it_refers_to_no_file_but_its_own(copy):
    path = copy / "last.ckpt"
    meta = torch.load(path / pieces.META, weights_only=True)
    piece = meta["index"]["state_dict/weight"]["pieces"][0]
    name = piece["file"]
    for other in (f"../step=1.ckpt/{name}", str(copy / "step=1.ckpt" / name)):
        piece["file"] = other
        torch.save(meta, path / pieces.META)
        with pytest.raises(ValueError, match="not a file of its own"):
            run.read_checkpoint(path)
    piece["file"] = "link.distcp"
    (path / "link.distcp").symlink_to(copy / "step=1.ckpt" / name)
    torch.save(meta, path / pieces.META)
    with pytest.raises(ValueError, match="not a file of its own"):
        run.read_checkpoint(path)


@pytest.mark.parametrize("dies_at", range(4))
def test_at_every_moment_of_a_save_a_whole_checkpoint_has_a_name(copy, tmp_path, dies_at):
    """The process is gone before any of the renames, or before what was there is removed."""
    new, calls = disk.temporary_of(copy / "last.ckpt"), []
    shutil.copytree(copy / "step=1.ckpt", new)
    original = os.replace

    def replace(source, target):
        calls.append(source)
        if len(calls) > dies_at:
            raise KeyboardInterrupt
        original(source, target)

    with mock.patch.object(os, "replace", replace):
        try:
            disk.put(new, copy / "last.ckpt")
        except KeyboardInterrupt:
            assert dies_at < 3
    path, step = run.newest(copy.parent)
    assert step == (2 if dies_at < 2 else 1) and path.name == ("previous-last.ckpt" if dies_at == 1 else "last.ckpt")
    if new.exists():
        shutil.rmtree(new)
    shutil.copytree(copy / "step=1.ckpt", new)  # the next save
    disk.put(new, copy / "last.ckpt")
    assert sorted(p.name for p in copy.iterdir()) == ["last.ckpt", "step=1.ckpt"]


def test_a_file_and_a_folder_take_each_others_place(copy):
    """A run that goes on with another number of processes."""
    path = copy / "last.ckpt"
    write({"state_dict": {}, "global_step": 5}, path)
    assert path.is_file() and run.newest(copy.parent) == (path, 5)
    keep(path, "step=1.ckpt")
    assert run.read_checkpoint(copy / "step=1.ckpt")["global_step"] == 5
    assert sorted(p.name for p in copy.iterdir()) == ["last.ckpt", "step=1.ckpt"]


def test_a_folder_is_kept_under_another_name_without_a_copy_of_its_shares(copy):
    path = copy / "last.ckpt"
    keep(path, "best.ckpt")
    keep(path, "best.ckpt")
    assert torch.equal(run.read_checkpoint(copy / "best.ckpt")["state_dict"]["weight"], values(2))
    assert all(p.stat().st_nlink == 2 for p in (copy / "best.ckpt").iterdir())
    assert checkpoints(copy.parent)[0] == Path(path)
