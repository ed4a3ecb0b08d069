import io
import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from triptych.metric import FrechetDistance, FrozenExtractor, Statistics, frechet_distance
from triptych.metric.statistics import add_outer


class Pixels(nn.Module):
    """The first `num_features` values of an image, through a weight of one and, in train mode, dropout."""

    def __init__(self, num_features: int = 12) -> None:
        super().__init__()
        self.num_features = num_features
        self.weight = nn.Parameter(torch.ones(num_features))
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        kept = images.flatten(1)[:, : self.num_features].float() / 255 * self.weight
        return nn.functional.dropout(kept, 0.5, self.training)


def images(n: int, seed: int, low: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, 256, (n, 3, 4, 4), dtype=torch.uint8, generator=generator)


def features(n: int, d: int, seed: int, decay: float = 0.0) -> Tensor:
    """float64 [n, d] with standard deviations from 1 to 10^decay and a mean of 0.5."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x * torch.logspace(0, decay, d, dtype=torch.float64) + 0.5


def distance(x: Tensor, y: Tensor) -> float:
    a, b = Statistics.from_features(x), Statistics.from_features(y)
    return float(frechet_distance(a.mean, a.cov, b.mean, b.cov))


def filled(real: Tensor, fake: Tensor, extractor: nn.Module | None = None) -> FrechetDistance:
    metric = FrechetDistance(extractor or Pixels())
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric


# The distance


def test_scalar_gaussians_in_closed_form():
    """(m_1 - m_2)^2 + (s_1 - s_2)^2"""
    value = frechet_distance(torch.tensor([1.5]), torch.tensor([[4.0]]), torch.tensor([-0.5]), torch.tensor([[9.0]]))
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(4 + 1, rel=1e-14)


def test_commuting_covariances_in_closed_form():
    """S_i = Q diag(s_i^2) Q^T: the trace term is sum (s_1 - s_2)^2."""
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64)).Q
    s_1, s_2 = (0.1 + torch.rand(2, 40, generator=generator, dtype=torch.float64)).unbind()
    mean = torch.linspace(-1, 1, 40, dtype=torch.float64)
    value = frechet_distance(mean, (q * s_1**2) @ q.T, 0 * mean, (q * s_2**2) @ q.T)
    assert float(value) == pytest.approx(float(mean @ mean + (s_1 - s_2).square().sum()), rel=1e-12)


def test_two_by_two_covariances_in_closed_form():
    """tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for 2 x 2 matrices, here ones that do not commute."""
    cov_1 = torch.tensor([[2.0, 0.7], [0.7, 0.5]], dtype=torch.float64)
    cov_2 = torch.tensor([[0.3, -0.2], [-0.2, 1.9]], dtype=torch.float64)
    product = cov_1 @ cov_2
    root = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.linalg.det(product))))
    zero = torch.zeros(2, dtype=torch.float64)
    expected = float(cov_1.trace() + cov_2.trace()) - 2 * root
    assert float(frechet_distance(zero, cov_1, zero, cov_2)) == pytest.approx(expected, rel=1e-13)


def test_symmetric_in_its_arguments():
    a, b = Statistics.from_features(features(90, 30, 1)), Statistics.from_features(features(70, 30, 2, -2))
    there = frechet_distance(a.mean, a.cov, b.mean, b.cov)
    assert float(there) == pytest.approx(float(frechet_distance(b.mean, b.cov, a.mean, a.cov)), rel=1e-12)


def test_a_set_has_no_distance_from_itself():
    for n, d in ((400, 64), (40, 64)):
        x = features(n, d, 3, -2)
        assert distance(x, x) < 1e-10


@pytest.mark.parametrize(
    ("n", "m", "d", "decay"), [(30, 30, 64, 0), (30, 200, 64, -1), (150, 20, 96, -2), (40, 64, 64, 0)]
)
def test_fewer_samples_than_features_is_exact(n, m, d, decay):
    """T-F9: tr (S_1 S_2)^(1/2) is the sum of the singular values of A B^T, A and B the centred features."""
    x, y = features(n, d, 4, decay), features(m, d, 5, decay)
    a = (x - x.mean(0)) / math.sqrt(n - 1)
    b = (y - y.mean(0)) / math.sqrt(m - 1)
    nuclear = torch.linalg.svdvals(a @ b.T).sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * nuclear
    assert distance(x, y) == pytest.approx(float(expected), rel=1e-9)
    metric = FrechetDistance(Pixels(d))
    metric.update_features(x, real=True)
    metric.update_features(y, real=False)
    with pytest.warns(UserWarning, match="samples for"):
        assert float(metric.compute()) == pytest.approx(float(expected), rel=1e-9)


def test_dead_features():
    x, y = features(300, 20, 6), features(300, 20, 7, -1)
    alive = distance(x, y)
    dead = torch.zeros(300, 3, dtype=torch.float64)
    assert distance(torch.cat([x, dead], 1), torch.cat([y, dead], 1)) == pytest.approx(alive, rel=1e-9)
    assert distance(dead, dead) == 0


def test_refuses_statistics_that_do_not_fit():
    a, b = Statistics.from_features(features(30, 5, 1)), Statistics.from_features(features(30, 6, 1))
    with pytest.raises(ValueError, match="differ in size"):
        frechet_distance(a.mean, a.cov, b.mean, b.cov)
    with pytest.raises(ValueError, match="NaN or Inf"):
        frechet_distance(a.mean * torch.nan, a.cov, a.mean, a.cov)


# The metric


def test_agrees_with_torchmetrics_on_the_same_features():
    real, fake = images(300, 1), images(250, 2, low=60)
    theirs = FrechetInceptionDistance(feature=Pixels().eval())
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    value = filled(real, fake).compute()
    assert value.dtype == torch.float64 and value.shape == ()
    assert float(value) == pytest.approx(float(theirs.compute()), rel=1e-5)  # theirs ends in float32


def test_statistics_are_those_of_numpy():
    real = images(200, 1)
    metric = filled(real, real)
    x = Pixels().eval()(real).double().numpy(force=True)
    torch.testing.assert_close(metric.real_statistics.cov, torch.from_numpy(np.cov(x.T)), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(metric.real_statistics.mean, torch.from_numpy(x.mean(0)))
    assert metric.real_statistics.n == 200


def test_value_does_not_depend_on_the_batches():
    real, fake = images(200, 1), images(150, 2)
    whole = filled(real, fake).compute()
    parts = FrechetDistance(Pixels())
    for batch in fake.split(7):
        parts.update(batch, real=False)
    for batch in real.split(64):
        parts.update(batch, real=True)
    assert float(parts.compute()) == pytest.approx(float(whole), rel=1e-11)


def test_two_halves_add_up_to_the_whole():
    """T-F10: what a sum over processes gives."""
    real, fake = images(201, 1), images(150, 2)
    whole = filled(real, fake)
    first, second = filled(real[:80], fake[:100]), filled(real[80:], fake[100:])
    for name, reduction in first._reductions.items():
        both = torch.stack([getattr(first, name), getattr(second, name)])
        assert reduction is not None
        setattr(first, name, reduction(both))
    assert float(first.compute()) == pytest.approx(float(whole.compute()), rel=1e-11)
    assert first.real_statistics.n == 201


def test_outer_products_are_added_in_place():
    x = features(50, 7, 1)
    outer = x.T @ x
    memory = outer.data_ptr()
    add_outer(outer, x)
    add_outer(outer, x.T.contiguous().T)  # column-major
    assert outer.data_ptr() == memory
    torch.testing.assert_close(outer.tril(), (3 * x.T @ x).tril(), rtol=1e-12, atol=0)


def test_train_mode_does_not_leak_into_the_extractor():
    real, fake = images(100, 1), images(100, 2)
    expected = filled(real, fake).compute()
    metric = FrechetDistance(Pixels())
    metric.train()
    metric.extractor.network.train()
    metric.update(real, real=True)
    metric.update(fake, real=False)
    assert float(metric.compute()) == float(expected)


def test_extractor_stays_out_of_the_module():
    holder = nn.Module()
    holder.metric = FrechetDistance(Pixels())
    assert list(holder.parameters()) == [] and holder.state_dict() == {}
    assert not any(isinstance(module, Pixels) for module in holder.modules())
    assert not any(p.requires_grad for p in holder.metric.extractor.network.parameters())


def test_sums_stay_float64():
    metric = filled(images(50, 1), images(50, 2)).to(torch.bfloat16).half().float()
    expected = filled(images(50, 1), images(50, 2)).compute()
    assert float(metric.compute()) == float(expected)


def test_runs_outside_of_autocast():
    real, fake = images(50, 1), images(50, 2)

    class Linear(nn.Module):
        num_features = 4

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).float() @ torch.linspace(-1, 1, 192).view(48, 4)

    expected = filled(real, fake, Linear()).compute()
    with torch.autocast("cpu", torch.bfloat16):
        assert float(filled(real, fake, Linear()).compute()) == float(expected)


def test_runs_without_tf32():
    """Which CUDA's convolutions use by default; what others do with it stays as it is."""
    seen, before = [], torch.backends.cudnn.conv.fp32_precision

    class Asking(Pixels):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.backends.cudnn.conv.fp32_precision)
            return super().forward(x)

    filled(images(50, 1), images(50, 2), Asking())
    assert set(seen) == {"ieee"} and torch.backends.cudnn.conv.fp32_precision == before
    assert torch.backends.cudnn.allow_tf32 == (before == "tf32")


def test_reset_keeps_the_real_images_if_asked():
    real, fake = images(100, 1), images(100, 2)
    metric = FrechetDistance(Pixels(), reset_real=False)
    metric.update(real, real=True)
    metric.update(real[:50], real=False)
    metric.reset()
    metric.update(fake, real=False)
    assert float(metric.compute()) == float(filled(real, fake).compute())
    metric.reset_real = True
    metric.reset()
    with pytest.raises(ValueError, match="at least 2 real images"):
        metric.real_statistics  # noqa: B018


def test_reference_replaces_the_real_images(tmp_path):
    real, fake = images(100, 1), images(100, 2)
    expected = filled(real, fake)
    expected.real_statistics.save(tmp_path / "reference.npz")
    metric = FrechetDistance(Pixels())
    metric.use_reference(Statistics.load(tmp_path / "reference.npz"))
    for _ in range(2):
        metric.update(fake, real=False)
        assert float(metric.compute()) == pytest.approx(float(expected.compute()), rel=1e-12)
        metric.reset()
    with pytest.raises(ValueError, match="loaded from a cache"):
        metric.update(real, real=True)


def test_reference_of_another_extractor_is_refused():
    statistics = Statistics.from_features(features(30, 12, 1), extractor="digits")
    with pytest.raises(ValueError, match="built with digits, but this metric reads Pixels"):
        FrechetDistance(Pixels()).use_reference(statistics)
    with pytest.raises(ValueError, match="has 13 features, but Pixels has 12"):
        FrechetDistance(Pixels()).use_reference(Statistics.from_features(features(30, 13, 1)))


def test_reads_files_of_the_adm_evaluator_and_edm(tmp_path):
    """Both keep mu and sigma; the ADM evaluator's hold other arrays besides."""
    x = features(30, 5, 1).numpy()
    np.savez(tmp_path / "adm.npz", arr_0=np.zeros(3), mu=x.mean(0), sigma=np.cov(x.T), mu_s=0, sigma_s=0)
    loaded = Statistics.load(tmp_path / "adm.npz")
    torch.testing.assert_close(loaded.cov, torch.from_numpy(np.cov(x.T)))
    assert loaded.n == 0 and loaded.extractor == ""
    metric = FrechetDistance(Pixels(5))
    metric.use_reference(loaded)
    metric.update_features(torch.from_numpy(x), real=False)
    assert float(metric.compute()) < 1e-10
    with pytest.raises(FileNotFoundError, match="no reference statistics"):
        Statistics.load(tmp_path / "absent.npz")
    np.savez(tmp_path / "other.npz", arr_0=np.zeros(3))
    with pytest.raises(ValueError, match="need mu and sigma"):
        Statistics.load(tmp_path / "other.npz")


def test_few_samples_are_warned_about():
    """T-F4"""
    metric = filled(images(12, 1), images(200, 2))
    with pytest.warns(UserWarning, match="12 samples for 12 features"):
        metric.compute()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filled(images(13, 1), images(200, 2)).compute()


def test_metric_survives_a_checkpoint():
    metric = filled(images(50, 1), images(50, 2))
    buffer = io.BytesIO()
    torch.save(metric, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert float(again.compute()) == float(metric.compute())


def test_persistent_states_travel_in_a_state_dict():
    metric = filled(images(50, 1), images(50, 2))
    assert metric.state_dict() == {}
    metric.persistent(True)
    again = FrechetDistance(metric.extractor)
    again.persistent(True)
    again.load_state_dict(metric.state_dict())
    with pytest.warns(UserWarning, match="before the ``update``"):  # torchmetrics' own, of any loaded metric
        assert float(again.compute()) == float(metric.compute())


def test_one_batch_has_no_value_and_costs_what_was_there_nothing():
    metric = filled(images(50, 1), images(50, 2))
    value = float(metric.compute())
    with pytest.raises(ValueError, match="call update"):
        metric(images(50, 3), real=False)
    metric._computed = None
    assert float(metric.compute()) == value
    with pytest.raises(ValueError, match="FrechetDistance needs an extractor"):
        FrechetDistance(None)


# Refusals


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(4, 3, 4, 4), "float32, but a metric reads uint8"),
        (torch.full((4, 3, 4, 4), torch.nan), "NaN or Inf"),
        (torch.full((4, 3, 4, 4), -torch.inf), "NaN or Inf"),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), "N >= 1"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "batch"),
        (torch.zeros(4, 3, 5, 4, dtype=torch.uint8), "3x5x4 .* 3x4x4"),
        (torch.zeros(4, 1, 4, 4, dtype=torch.uint8), "1x4x4 .* 3x4x4"),
    ],
)
def test_bad_images_are_refused(bad, message):
    metric = FrechetDistance(Pixels())
    metric.update(images(20, 1), real=True)
    with pytest.raises(ValueError, match=message):
        metric.update(bad, real=False)


def test_bad_features_are_refused():
    metric = FrechetDistance(Pixels())
    with pytest.raises(ValueError, match=r"\[N, 12\]"):
        metric.update_features(torch.zeros(4, 11), real=True)
    with pytest.raises(ValueError, match="NaN or Inf"):
        metric.update_features(torch.full((4, 12), torch.inf), real=True)
    with pytest.raises(ValueError, match="either images or features"):
        metric.update(None, real=True)

    class Diverged(Pixels):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.nan

    with pytest.raises(ValueError, match="NaN or Inf"):
        FrechetDistance(Diverged()).update(images(4, 1), real=True)


def test_single_sample_is_refused():
    with pytest.raises(ValueError, match="at least 2 generated images, but has seen 1"):
        filled(images(20, 1), images(1, 2)).compute()
    metric = FrechetDistance(Pixels())
    metric.update(images(20, 1), real=False)
    with pytest.raises(ValueError, match="at least 2 real images, but has seen 0"):
        metric.compute()


def test_extractor_without_num_features_is_refused():
    with pytest.raises(ValueError, match="no attribute num_features"):
        FrozenExtractor(nn.Flatten())
