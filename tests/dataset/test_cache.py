import multiprocessing
import os
import time

import numpy as np
import pytest

from triptych.dataset import cache
from triptych.dataset.cache import cached, fingerprint

SHAPE = (1, 2, 3)
IMAGES = np.arange(60, dtype=np.uint8).reshape(10, *SHAPE)


def build(writer):
    writer.add(IMAGES[:4], [0, 1, 2, 3])
    writer.add(IMAGES[4:], [4, 5, 6, 7, 8, 9])


def refuse(writer):
    raise AssertionError("must not be built again")


def entries(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def test_built_once_and_mapped(tmp_path):
    for make in (build, refuse):
        images, labels = cached(tmp_path, {"a": 1}, SHAPE, make)
        assert isinstance(images, np.memmap) and not images.flags.writeable
        assert np.array_equal(images, IMAGES) and labels.tolist() == list(range(10))
    images, labels = cached(tmp_path, {"a": 2}, SHAPE, lambda writer: writer.add(IMAGES[:1]))
    assert len(images) == 1 and labels is None
    assert len(entries(tmp_path)) == 2  # another key, another entry


def slowly(folder, barrier, results):
    def once(writer):
        writer.add(IMAGES[:5])
        with open(folder / "built", "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        writer.add(IMAGES[5:])

    barrier.wait()
    images, _ = cached(folder / "cache", {}, SHAPE, once)
    results.put(np.array_equal(images, IMAGES))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_that_start_together_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=slowly, args=(tmp_path, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [True, True]
    for process in processes:
        process.join()
    assert len((tmp_path / "built").read_text().split()) == 1


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_build_leaves_nothing_that_is_read(tmp_path):
    """The process dies at once, as by `kill -9`: no handler runs, its lock falls with it."""

    def die(writer):
        writer.add(IMAGES[:5])
        writer.file.flush()
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=cached, args=(tmp_path, {}, SHAPE, die))
    process.start()
    process.join()
    assert process.exitcode == 9 and len(entries(tmp_path)) == 1  # its private folder
    images, _ = cached(tmp_path, {}, SHAPE, build)
    assert np.array_equal(images, IMAGES) and len(entries(tmp_path)) == 1  # which is swept away


def test_a_failing_build_leaves_nothing(tmp_path):
    def fail(writer):
        writer.add(IMAGES)
        raise ValueError("a picture is corrupt")

    with pytest.raises(ValueError, match="a picture is corrupt"):
        cached(tmp_path, {}, SHAPE, fail)
    assert entries(tmp_path) == []


def test_a_full_disk_is_one_sentence(tmp_path):
    def full(writer):
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\): make room, or give"):
        cached(tmp_path, {}, SHAPE, full)
    assert entries(tmp_path) == []


@pytest.mark.parametrize("name", ["images.bin", "labels.npy", "about.json"])
def test_a_truncated_cache_is_named(tmp_path, name):
    cached(tmp_path, {}, SHAPE, build)
    file = next(tmp_path.glob(f"*/{name}"))
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ValueError, match=f"The cache {file.parent} is damaged.*elete it"):
        cached(tmp_path, {}, SHAPE, refuse)


def test_a_symlinked_cache_is_refused(tmp_path):
    cached(tmp_path, {}, SHAPE, build)
    entry = tmp_path / entries(tmp_path)[0]
    entry.rename(tmp_path.with_name("elsewhere"))
    entry.symlink_to(tmp_path.with_name("elsewhere"))
    with pytest.raises(ValueError, match="symbolic link"):
        cached(tmp_path, {}, SHAPE, refuse)


def test_a_read_only_place(tmp_path, monkeypatch):
    """What is there is used; what is not goes to the user's own cache."""
    cached(tmp_path / "shared", {"a": 1}, SHAPE, build)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    access = os.access
    monkeypatch.setattr(cache.os, "access", lambda path, mode: "shared" not in str(path) and access(path, mode))
    cached(tmp_path / "shared", {"a": 1}, SHAPE, refuse)
    assert not (tmp_path / "own").exists()
    for make in (build, refuse):
        cached(tmp_path / "shared", {"a": 2}, SHAPE, make)
    assert list((tmp_path / "own").glob("triptych/*/*/images.bin"))


def test_fingerprint_sees_names_sizes_and_times(tmp_path):
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    a.write_bytes(b"1234")
    b.write_bytes(b"5678")
    seen = {fingerprint([a, b], tmp_path), fingerprint([a], tmp_path)}
    a.write_bytes(b"12345")
    seen.add(fingerprint([a, b], tmp_path))
    os.utime(b, ns=(1, 1))
    seen.add(fingerprint([a, b], tmp_path))
    b.rename(tmp_path / "c.png")
    seen.add(fingerprint([a, tmp_path / "c.png"], tmp_path))
    assert len(seen) == 5
    assert fingerprint([a], tmp_path) == fingerprint([a], tmp_path)
