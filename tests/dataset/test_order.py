import numpy as np
import pytest
import torch

from triptych.dataset.order import AUGMENT, DEQUANTISE, Order, flips, held_out, mix, uniforms


def rows(order, start, stop):
    return order(start, stop).numpy()


def test_splitmix64_reference():
    """The first outputs of SplitMix64 seeded with 0 and with 1234567, as published with its C source."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    assert mix(np.array([golden])).tolist() == [0xE220A8397B1DCDAF]
    with np.errstate(over="ignore"):
        states = np.uint64(1234567) + golden * np.arange(1, 4, dtype=np.uint64)
    assert mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_every_index_once_an_epoch_in_another_order_each():
    order = Order(0, np.arange(3, 40, 2), 40)
    count = len(order.rows)
    epochs = [rows(order, e * count, (e + 1) * count) for e in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(3, 40, 2))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert not np.array_equal(epochs[0], rows(Order(1, np.arange(3, 40, 2), 40), 0, count))


def test_random_access_equals_the_stream():
    order, stream = Order(7, np.arange(10), 10, flip=True), rows(Order(7, np.arange(10), 10, flip=True), 0, 200)
    for start in (150, 3, 77, 0, 199, 42):
        stop = min(start + 33, 200)  # batches that span four epochs, in no order
        assert np.array_equal(rows(order, start, stop), stream[start:stop])


def test_flips_are_fair_reproducible_and_new_each_epoch():
    order = Order(5, np.arange(1000), 1000, flip=True)
    mirrored = np.stack([np.sort(rows(order, e * 1000, (e + 1) * 1000) % 1000 * 2) for e in range(2)])
    assert np.array_equal(mirrored[0], mirrored[1])  # the images themselves are all there
    by_image = [np.isin(np.arange(1000) + 1000, rows(order, epoch * 1000, (epoch + 1) * 1000)) for epoch in range(20)]
    counts = np.sum(by_image, 0)  # Binomial(20, 1/2) an image
    assert abs(counts.mean() - 10) < 5 * np.sqrt(5 / 1000)
    assert abs(counts.var() - 5) < 5 * 5 * np.sqrt(2 / 1000)
    assert np.array_equal(flips(5, np.arange(9, 12)), flips(5, np.arange(20))[9:12])


def test_uniforms():
    u = uniforms(3, AUGMENT, np.arange(20000), 5)
    assert u.dtype == np.float32 and 0 < u.min() and u.max() < 1
    assert np.abs(u.mean(0) - 0.5).max() < 5 * np.sqrt(1 / 12 / 20000)
    assert np.abs(np.corrcoef(u.T) - np.eye(5)).max() < 5 / np.sqrt(20000)
    assert np.array_equal(uniforms(3, AUGMENT, np.array([17]), 5), u[17:18])  # a function of the position alone
    for other in (uniforms(4, AUGMENT, np.arange(20000), 5), uniforms(3, DEQUANTISE, np.arange(20000), 5)):
        assert abs(np.corrcoef(u.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(100000)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_held_out_share(fraction):
    kept = held_out(20000, fraction)
    assert abs(kept.mean() - fraction) < 5 * np.sqrt(fraction * (1 - fraction) / 20000)
    assert np.array_equal(held_out(500, fraction), kept[:500])  # more images do not move the old ones
    assert kept[held_out(20000, fraction / 2)].all()  # a larger share keeps the smaller


def test_nothing_held_out():
    assert not held_out(1000, 0.0).any()


def test_an_epoch_is_on_the_device_asked_for():
    assert Order(0, np.arange(4), 4, device="meta")(0, 3).device == torch.device("meta")
