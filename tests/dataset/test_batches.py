import numpy as np
import pytest
import torch

from triptych.dataset.batches import TrainBatches, ValidationBatches, per_device_batch_size
from triptych.dataset.order import Order
from triptych.dataset.pixels import Buffers, normalise
from triptych.dataset.store import MappedStore, Store


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4), dtype=np.uint8)


def loader(images, *, batch, rank=0, world_size=1, start=0, flip=True, labels=None, seed=0):
    order = Order(seed, np.arange(len(images)), len(images), flip)
    return TrainBatches(
        Store(images, flip), order, labels, start=lambda: start, batch=batch, rank=rank, world_size=world_size
    )


def take(loader, count):
    return [batch for _, batch in zip(range(count), loader, strict=False)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_ranks_and_micro_batches_share_out_the_same_global_batch(images, world_size, accumulate):
    """T-D1, T-D2: six optimizer steps of 24 images, over almost three epochs."""
    steps, size = 6, 24
    labels = torch.arange(50)
    whole = take(loader(images, batch=size, labels=labels), steps)
    batch = per_device_batch_size(size, world_size, accumulate)
    ranks = [
        take(loader(images, batch=batch, rank=r, world_size=world_size, labels=labels), steps * accumulate)
        for r in range(world_size)
    ]
    for k in range(steps):
        micro = [ranks[r][k * accumulate + m] for m in range(accumulate) for r in range(world_size)]
        assert torch.equal(torch.cat([x for x, _ in micro]), whole[k][0])
        assert torch.equal(torch.cat([y for _, y in micro]), whole[k][1])
    seen = torch.cat([y for _, y in whole])[:100].view(2, 50)
    assert (seen.sort(1).values == torch.arange(50)).all()  # and each epoch is each image once


def test_a_stream_that_starts_later_is_the_same_stream(images):
    straight = take(loader(images, batch=8), 20)  # 160 positions, 50 an epoch
    later = take(loader(images, batch=8, start=7 * 8), 13)
    for a, b in zip(straight[7:], later, strict=True):
        assert torch.equal(a[0], b[0])


def test_labels_belong_to_their_images(images):
    images = images.copy()
    images[:, 0, 0, 0] = images[:, 0, 0, -1] = np.arange(50)  # legible in either orientation
    for x, y in take(loader(images, batch=9, labels=torch.arange(50) + 100), 12):
        assert torch.equal(x[:, 0, 0, 0].long() + 100, y)


def test_mirrored_rows_whatever_the_store(images, tmp_path, monkeypatch):
    """Both orientations kept, mirrored on the way, or read from a memory map: the same bytes."""
    mapped = np.memmap(tmp_path / "images.bin", np.uint8, "w+", shape=images.shape)
    mapped[:] = images
    doubled = Store(images, flip=True)
    monkeypatch.setattr("triptych.dataset.store.BOTH_ORIENTATIONS", 0)
    single = Store(images, flip=True)
    assert doubled.doubled and not single.doubled
    rows = torch.tensor([3, 53, 49, 99, 0, 50, 3])
    expected = np.stack([images[3], images[3][..., ::-1], images[49], images[49][..., ::-1]] + [images[0]] * 3)
    expected[5], expected[6] = images[0][..., ::-1], images[3]
    for store in (doubled, single, MappedStore(mapped, flip=True)):
        assert np.array_equal(store.take(rows).numpy(), expected)


def test_a_batch_that_is_kept_is_never_overwritten(images):
    """Memory is reused only where nobody looks: not through the tensor, a view, NumPy or autograd."""
    kept = take(loader(images, batch=5), 30)
    again = take(loader(images, batch=5), 30)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(kept, again, strict=True))

    buffers, shape = Buffers(), (5, 7)
    held = buffers.take(shape, torch.float32).fill_(1)
    view = buffers.take(shape, torch.float32).fill_(2)[1:3]
    array = buffers.take(shape, torch.float32).fill_(3).numpy()
    weight = torch.ones(shape, requires_grad=True)
    loss = (weight * buffers.take(shape, torch.float32).fill_(4)).sum()
    for _ in range(10):
        buffers.take(shape, torch.float32).fill_(9)
    loss.backward()
    assert (held == 1).all() and (view == 2).all() and (array == 3).all() and (weight.grad == 4).all()


def test_memory_is_used_again_once_let_go():
    buffers = Buffers()
    pointers = set()
    for _ in range(10):
        pointers.add(buffers.take((100,), torch.float32).data_ptr())
    assert len(pointers) == 1


def test_normalise_is_the_formula_with_and_without_a_buffer():
    x = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(normalise(x), x.float() / 127.5 - 1)
    assert torch.equal(normalise(x, torch.empty(256)), x.float() / 127.5 - 1)
    assert normalise(x)[[0, 255]].tolist() == [-1, 1]
    assert torch.equal((normalise(x) * 127.5 + 128).to(torch.uint8), x)  # every level survives the round trip (T-F2b)
    points = torch.randn(4, 2)
    assert normalise(points) is points


@pytest.mark.parametrize(
    ("size", "world_size", "accumulate", "nearest"), [(100, 8, 1, "96 or 104"), (3, 2, 2, "4"), (0, 1, 1, "1")]
)
def test_a_global_batch_that_does_not_divide_is_refused(size, world_size, accumulate, nearest):
    with pytest.raises(ValueError, match=rf"global_batch_size={size} .* type global_batch_size={nearest}\."):
        per_device_batch_size(size, world_size, accumulate)


@pytest.mark.parametrize("size", [1, 7, 10, 64, 101])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_validation_sees_every_image_once(size, world_size, batch):
    """T-K10, T-K11: nothing padded, nothing dropped, and as many batches on every rank."""
    images = np.arange(size, dtype=np.uint8).reshape(size, 1, 1, 1)
    if size < world_size:
        with pytest.raises(ValueError, match="validation images for"):
            ValidationBatches(images, None, batch=batch, rank=0, world_size=world_size)
        return
    shards = [
        ValidationBatches(images, np.arange(size), batch=batch, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    batches = [list(shard) for shard in shards]
    assert {len(b) for b in batches} == {len(shards[0])}
    assert all(1 <= len(x) <= batch + (world_size > 1) for shard in batches for x, _ in shard)
    labels = torch.cat([y for shard in batches for _, y in shard])
    assert labels.tolist() == list(range(size))
    assert torch.equal(torch.cat([x for shard in batches for x, _ in shard]).flatten().long(), labels)
