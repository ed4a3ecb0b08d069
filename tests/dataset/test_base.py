import io
import types
import warnings

import lightning
import numpy as np
import pytest
import torch

from triptych.dataset import Dataset, Digits, Toy
from triptych.image import dequantise

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6.6 on torch 2.13
DIGITS = {"name": "digits", "channels": 1, "resolution": 8, "num_classes": 10, "holdout": 0.1}


class Counted(Dataset):
    """Image i is filled with the number i, its label is i % 5."""

    def __init__(self, size=100, test=20, **options):
        self.sizes = {"train": size, "test": test}
        super().__init__(**{"name": "counted", "channels": 1, "resolution": 2, "num_classes": 5} | options)

    def arrays(self, split):
        number = np.arange(self.sizes[split], dtype=np.uint8)
        return np.broadcast_to(number[:, None, None, None], (len(number), 1, 2, 2)).copy(), number % 5


class Recorder(lightning.LightningModule):
    """Remembers which images each optimizer step saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.validated, self.conds = [], [], []

    def training_step(self, batch, index):
        x, cond = batch
        self.seen.append((self.global_step, ((x[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()))
        self.conds.append(cond)
        return (self.weight * x.mean()).sum()

    def validation_step(self, batch, index):
        self.validated += ((batch[0][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(data, steps, tmp_path, resume=None, **options):
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        check_val_every_n_epoch=None,
        **{"val_check_interval": 1000, "num_sanity_val_steps": 0} | options,
    )
    model = Recorder()
    trainer.fit(model, data, ckpt_path=resume, weights_only=True)
    path = tmp_path / f"{steps}.ckpt"
    trainer.save_checkpoint(path)
    return model, path


def steps_seen(model, offset=0):
    grouped = {}
    for step, numbers in model.seen:
        grouped.setdefault(step, []).extend(numbers)
    return grouped


def test_resumed_in_mid_epoch_equals_straight(tmp_path):
    """T-D4, T-D5: 100 images, 24 a step; the stop is inside the second epoch. The checkpoint holds plain values."""
    straight, _ = fit(Counted(global_batch_size=24), 14, tmp_path)
    first, path = fit(Counted(global_batch_size=24), 6, tmp_path)
    second, _ = fit(Counted(global_batch_size=24), 14, tmp_path, resume=path)
    assert steps_seen(first) | steps_seen(second) == steps_seen(straight)
    assert len(steps_seen(straight)) == 14 and not steps_seen(first).keys() & steps_seen(second).keys()


def test_accumulation_does_not_change_the_global_batches(tmp_path):
    """T-D1."""
    whole, _ = fit(Counted(global_batch_size=24), 8, tmp_path)
    parts, path = fit(Counted(global_batch_size=24), 4, tmp_path, accumulate_grad_batches=3)
    rest, _ = fit(Counted(global_batch_size=24), 8, tmp_path, resume=path, accumulate_grad_batches=2)
    assert [len(numbers) for _, numbers in parts.seen] == [8] * 12
    assert steps_seen(parts) | steps_seen(rest) == steps_seen(whole)


def test_another_global_batch_after_resume_continues_where_the_data_stopped(tmp_path):
    straight, _ = fit(Counted(global_batch_size=10), 20, tmp_path)
    first, path = fit(Counted(global_batch_size=20), 3, tmp_path)
    second, path = fit(Counted(global_batch_size=40), 5, tmp_path, resume=path)
    third, _ = fit(Counted(global_batch_size=10), 11, tmp_path, resume=path)
    flat = lambda *models: [n for model in models for _, numbers in model.seen for n in numbers]  # noqa: E731
    assert flat(first, second, third) == flat(straight)


def test_a_short_epoch_of_the_trainer_is_no_epoch_of_the_data(tmp_path):
    """limit_train_batches makes Lightning ask for a new iterator: the stream goes on."""
    straight, _ = fit(Counted(global_batch_size=24), 10, tmp_path)
    short, _ = fit(Counted(global_batch_size=24), 10, tmp_path, limit_train_batches=3, val_check_interval=3)
    assert steps_seen(short) == steps_seen(straight)


def test_validation_sees_each_held_out_image_once(tmp_path):
    data = Counted(global_batch_size=24)
    model, _ = fit(data, 2, tmp_path, val_check_interval=2)
    assert model.validated == list(range(20))
    data = Counted(global_batch_size=24, holdout=0.2)
    model, _ = fit(data, 5, tmp_path, val_check_interval=5)
    assert model.validated == data.images("val")[:, 0, 0, 0].tolist()
    seen = {n for _, numbers in model.seen for n in numbers}
    assert not seen & set(model.validated) and seen | set(model.validated) == set(range(100))


def test_the_seed_moves_the_order_and_not_the_splits():
    a, b = Counted(holdout=0.3, seed=0), Counted(holdout=0.3, seed=1)
    assert np.array_equal(a.images("val"), b.images("val")) and np.array_equal(a.images("train"), b.images("train"))
    x, y = (next(iter(data.train_dataloader()))[0] for data in (a, b))
    assert not torch.equal(x, y)


def test_splits():
    """T-F6: raw arrays in the files' order, whatever training does to them."""
    data = Counted(holdout=0.25, flip=True, limit=80)
    train, val = data.images("train"), data.images("val")
    assert sorted([*train[:, 0, 0, 0], *val[:, 0, 0, 0]]) == list(range(80))
    assert (np.diff(train[:, 0, 0, 0].astype(int)) > 0).all() and train.dtype == np.uint8
    assert np.array_equal(data.labels("val"), val[:, 0, 0, 0] % 5) and data.labels("val").dtype == np.int64
    assert len(data.images("test")) == 20 and np.array_equal(data.test_images(), data.images("test"))
    without = Counted()
    assert np.array_equal(without.images("val"), without.images("test")) and len(without.images("train")) == 100
    digits = Digits(**DIGITS)  # no test split of its own
    assert np.array_equal(digits.images("test"), digits.images("val"))
    assert len(digits.images("train")) + len(digits.images("val")) == 1797
    with pytest.raises(ValueError, match="one of train, val, test"):
        data.images("dev")


def test_labels_are_cond_only_if_asked_for(tmp_path):
    model, _ = fit(Counted(), 2, tmp_path)
    assert model.conds == [None, None]
    model, _ = fit(Counted(conditional=True), 2, tmp_path)
    for (_, numbers), cond in zip(model.seen, model.conds, strict=True):
        assert cond.dtype == torch.int64 and cond.tolist() == [n % 5 for n in numbers]


def test_augmentation_reaches_the_network_and_depends_on_the_position_alone(tmp_path):
    options = {"global_batch_size": 12, "augment": 0.5, "resolution": 8, "channels": 1, "num_classes": 10}

    class Noise(Digits):
        splits = ("train", "test")

    make = lambda **more: Noise(name="digits", **options, **more)  # noqa: E731
    straight, _ = fit(make(conditional=True), 4, tmp_path)
    split, _ = fit(make(conditional=True), 4, tmp_path, accumulate_grad_batches=3)
    for k in range(4):
        parts = split.conds[3 * k : 3 * k + 3]
        for name in ("label", "augment"):
            assert torch.equal(torch.cat([part[name] for part in parts]), straight.conds[k][name])
    assert straight.conds[0]["augment"].shape == (12, 9)
    unconditional, _ = fit(make(), 1, tmp_path)
    assert list(unconditional.conds[0]) == ["augment"]


def test_dequantised_training(tmp_path):
    """T-K7: what is trained on is what likelihoods are computed on; the levels are still legible."""
    model, _ = fit(Counted(dequantise=True, global_batch_size=50), 4, tmp_path)
    again, _ = fit(Counted(dequantise=True, global_batch_size=50), 4, tmp_path)
    assert model.seen == again.seen
    data = Counted(dequantise=True)
    batch = next(iter(data.train_dataloader()))
    x, _ = data.on_after_batch_transfer(batch)
    assert torch.equal(((x + 1) * 128).floor().to(torch.uint8), batch[0])
    assert not torch.equal(x, data.on_after_batch_transfer((batch[0], None))[0])


def test_dequantise_fills_each_bin_evenly():
    """T-K7: (k + u) / 128 - 1."""
    k = torch.arange(256, dtype=torch.uint8).repeat(400, 1)
    x = dequantise(k, torch.rand(k.shape, generator=torch.Generator().manual_seed(0)))
    assert x.min() >= -1 and x.max() < 1 and x.dtype == torch.float32
    assert torch.equal(((x + 1) * 128).floor(), k.float())
    u = (x + 1) * 128 - k
    assert abs(u.mean() - 0.5) < 5 * (1 / 12 / u.numel()) ** 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 3}, "type dataset.channels=1 dataset.resolution=2"),
        ({"num_classes": 4, "conditional": True}, "type dataset.num_classes=5"),
        ({"num_classes": 0, "conditional": True}, "type dataset.conditional=false"),
        ({"holdout": 1.5}, "share of the training images"),
        ({"augment": 0.1, "flip": True}, "type dataset.flip=false"),
        ({"augment": 12}, "probability"),
        ({"device_resident": "yes"}, "auto, true or false"),
        ({"size": 0}, "no images in its train split"),
    ],
)
def test_bad_input_is_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        Counted(**options).images("train")


def test_a_set_without_a_test_split_needs_a_holdout():
    with pytest.raises(ValueError, match="type dataset.holdout=0.1"):
        Digits(**DIGITS | {"holdout": 0})


def test_a_batch_that_does_not_divide_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="type global_batch_size=8 or 12"):
        fit(Counted(global_batch_size=10), 1, tmp_path, accumulate_grad_batches=4)


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("mps", False), ("cuda:1", True)])
def test_batches_from_the_host_are_page_locked_for_cuda_alone(monkeypatch, device, pinned):
    """A run on the CPU of a machine with a GPU does not begin with that GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    data = Counted(device_resident=False)
    strategy = types.SimpleNamespace(root_device=torch.device(device))
    data.trainer = types.SimpleNamespace(strategy=strategy, global_rank=0, world_size=1, global_step=0)
    assert data.train_dataloader().store.pinned == pinned


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    data = Digits(**DIGITS)
    images, labels = data.arrays("train")
    assert images.shape == (1797, 1, 8, 8) and images.max() == 255
    assert np.array_equal(np.rint(images[:, 0] * (16 / 255)), load_digits().images)
    assert np.array_equal(labels, load_digits().target)


def test_shape_and_hash_need_no_files():
    data = Counted(root="nowhere")
    assert data.shape == (1, 2, 2)
    assert data.transform_hash == Counted(root="elsewhere", flip=True, seed=3).transform_hash
    assert data.transform_hash != Counted(resolution=4).transform_hash
    assert Toy(name="toy", channels=2, resolution=None).shape == (2,)


def test_a_read_only_array_makes_no_warning():
    class Frozen(Counted):
        def arrays(self, split):
            images, labels = super().arrays(split)
            images.flags.writeable = False
            return images, labels

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = Frozen(flip=True)
        next(iter(data.train_dataloader()))
        next(iter(data.val_dataloader()))


def test_state_is_plain_values():
    buffer = io.BytesIO()
    torch.save(Counted().state_dict(), buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == {"step": 0, "position": 0}
