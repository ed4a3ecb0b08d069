"""KID, precision and recall, Inception score, extrapolated distance; several metrics on one pass."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from triptych.metric import (
    FrechetDistance,
    FrechetInfinity,
    FrozenExtractor,
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
    Statistics,
    feature_metrics,
)
from triptych.metric.precision_recall import neighbour_radii_sq, share_inside


class Pixels(nn.Module):
    """The values of an image; its classes are told apart by the first four of them."""

    num_features = 12

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(12))
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images.flatten(1).float() / 255 * self.weight

    def logits(self, features: Tensor) -> Tensor:
        return 5 * features[:, :4]


def images(n: int, seed: int, high: int = 256) -> Tensor:
    return torch.randint(0, high, (n, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def normal(n: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, 12, generator=torch.Generator().manual_seed(seed))


def filled(metric, real: Tensor, fake: Tensor):
    metric.update_features(real, real=True)
    metric.update_features(fake, real=False)
    return metric


# Kernel distance


def naive_mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased estimator by three double loops over k(x, y) = (x . y / D + 1)^3."""
    x_rows, y_rows = x.double().tolist(), y.double().tolist()

    def k(a, b) -> float:
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def within(rows) -> float:
        n = len(rows)
        return sum(k(rows[i], rows[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

    between = sum(k(a, b) for a in x_rows for b in y_rows) / (len(x_rows) * len(y_rows))
    return within(x_rows) + within(y_rows) - 2 * between


def test_kernel_distance_equals_a_double_loop():
    real, fake = normal(17, 1), normal(13, 2, 1.3)
    metric = filled(KernelDistance(Pixels(), subset_size=None), real, fake)
    assert float(metric.compute()) == pytest.approx(naive_mmd(real, fake), rel=1e-10)


def test_kernel_sums_do_not_depend_on_the_blocks():
    from triptych.metric.mmd import unbiased_mmd

    x, y = normal(17, 1).double(), normal(13, 2).double()
    expected = float(unbiased_mmd(KernelDistance.kernel, x, y))
    assert float(unbiased_mmd(KernelDistance.kernel, x, y, block=5)) == pytest.approx(expected, rel=1e-11)


def test_kernel_distance_is_unbiased_at_any_number_of_samples():
    """Both sides from one distribution: zero within five standard errors, at 4 samples as at 64 (T-F4)."""
    for n in (4, 64):
        values = []
        for seed in range(200):
            pair = normal(2 * n, seed)
            metric = filled(KernelDistance(Pixels(), subset_size=None), pair[:n], pair[n:])
            values.append(float(metric.compute()))
        assert abs(np.mean(values)) < 5 * np.std(values) / math.sqrt(len(values))


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_kernel_distance_agrees_with_torchmetrics_on_whole_sets():
    real, fake = images(40, 1), images(40, 2, 200)
    theirs = KernelInceptionDistance(feature=Pixels(), subsets=1, subset_size=40)
    ours = KernelDistance(Pixels(), subsets=1, subset_size=40)
    for metric in (theirs, ours):
        metric.update(real, real=True)
        metric.update(fake, real=False)
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()[0]), rel=1e-3)  # theirs is float32


def test_kernel_distance_averages_its_subsets():
    real, fake = normal(60, 1), normal(50, 2, 1.2)
    metric = filled(KernelDistance(Pixels(), subset_size=20, subsets=400), real, fake)
    values = metric.subset_values()
    assert values.shape == (400,) and values.dtype == torch.float64
    error = float(values.std()) / math.sqrt(400)
    assert float(metric.compute()) == pytest.approx(naive_mmd(real, fake), abs=5 * error)


def test_small_sets_make_small_subsets_and_say_so():
    """60 samples where 100 are asked for: subsets of 60, or the whole if both sides are no larger."""
    real, fake = normal(60, 1), normal(120, 2)
    metric = filled(KernelDistance(Pixels(), subset_size=100, subsets=3), real, fake)
    assert torch.equal(metric.subset_values(), filled(KernelDistance(Pixels(), 60, 3), real, fake).subset_values())
    assert metric.arguments == {"subset_size": 60, "subsets": 3, "seed": 0}
    whole = filled(KernelDistance(Pixels(), subset_size=100), real, fake[:60])
    assert whole.compute() == filled(KernelDistance(Pixels(), subset_size=None), real, fake[:60]).compute()
    assert whole.arguments == {"subset_size": "all", "subsets": 1, "seed": 0}
    with pytest.raises(ValueError, match="subset_size must be at least 2"):
        KernelDistance(Pixels(), subset_size=1)


# Precision and recall


def naive_share(points: Tensor, centres: Tensor, k: int) -> float:
    """The share of points that lie no farther from some centre than its k-th nearest fellow."""
    p, c = points.double().numpy(), centres.double().numpy()
    radii = [sorted(np.linalg.norm(c[i] - c[j]) for j in range(len(c)) if j != i)[k - 1] for i in range(len(c))]
    inside = [any(np.linalg.norm(x - c[i]) <= radii[i] for i in range(len(c))) for x in p]
    return sum(inside) / len(inside)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_equal_a_loop(k):
    real, fake = normal(40, 1), normal(30, 2, 1.3)
    got = filled(PrecisionRecall(Pixels(), k=k), real, fake).compute()
    assert float(got["precision"]) == naive_share(fake, real, k)
    assert float(got["recall"]) == naive_share(real, fake, k)
    assert 0 < got["precision"] != got["recall"] > 0


def test_precision_and_recall_in_blocks():
    x, y = normal(40, 1).double(), normal(30, 2, 1.3).double()
    whole, parts = neighbour_radii_sq(x, 3), neighbour_radii_sq(x, 3, block=7)
    torch.testing.assert_close(whole, parts)
    assert share_inside(y, x, whole) == share_inside(y, x, whole, block=7)


def test_precision_and_recall_of_narrow_and_of_equal_samples():
    real = normal(200, 1)
    same = filled(PrecisionRecall(Pixels()), real, real).compute()
    assert float(same["precision"]) == float(same["recall"]) == 1
    narrow = filled(PrecisionRecall(Pixels()), real, normal(200, 2, 0.3)).compute()
    assert float(narrow["precision"]) > 0.95 and float(narrow["recall"]) < 0.2


def test_a_ball_holds_its_surface():
    """Eq. 1 has <=: the k-th neighbour itself is inside."""
    line = torch.arange(4.0, dtype=torch.float64)[:, None]
    radii = neighbour_radii_sq(line, 1)
    assert radii.tolist() == [1, 1, 1, 1]
    assert float(share_inside(torch.tensor([[-1.0], [-1.5]], dtype=torch.float64), line, radii)) == 0.5


# Inception score


def test_inception_score_of_certain_and_of_undecided_predictions():
    """One-hot predictions, evenly over four classes: exp(log 4). Equal predictions: 1."""
    certain = torch.zeros(400, 12)
    certain[torch.arange(400), torch.arange(400) % 4] = 1e3
    metric = InceptionScore(Pixels(), splits=1)
    metric.update_features(certain, real=False)
    assert float(metric.compute()) == pytest.approx(4, rel=1e-12)
    metric.reset()
    metric.update_features(normal(1, 1).expand(400, -1), real=False)
    assert float(metric.compute()) == pytest.approx(1, rel=1e-12)


def test_inception_score_equals_its_definition_on_every_split():
    features = normal(300, 1)
    metric = InceptionScore(Pixels(), splits=3)
    for part in features.split(77):
        metric.update_features(part, real=False)
    metric.update_features(normal(50, 2), real=True)  # ignored
    split = (torch.arange(300) * 2654435769 % 2**32) * 3 // 2**32
    scores = []
    for i in range(3):
        p = (5 * features[split == i][:, :4]).double().softmax(1)
        scores.append((p * (p / p.mean(0)).log()).sum(1).mean().exp())
    torch.testing.assert_close(metric.split_scores(), torch.stack(scores))
    assert int(metric.split_n.min()) > 60  # the splits are about even
    assert float(metric.compute()) == pytest.approx(float(torch.stack(scores).mean()), rel=1e-12)


def test_splits_of_the_inception_score_do_not_line_up_with_the_classes():
    """T-F14: labels that go round with the sample's number give every split all classes."""
    certain = torch.zeros(1000, 12)
    certain[torch.arange(1000), torch.arange(1000) % 4] = 1e3
    metric = InceptionScore(Pixels(), splits=4)
    metric.update_features(certain, real=False)
    assert float(metric.split_scores().min()) > 3.9


@pytest.mark.parametrize("splits", [1, 2, 7, 10])
def test_as_many_samples_as_are_asked_for_leave_no_split_empty(splits):
    """`fewest` is what a command checks before it draws anything: any consecutive numbers."""
    for first in (0, 1, 999, 50_000, 2**31):
        score = InceptionScore(Pixels(), splits=splits)
        n = score.fewest
        score.update_features(torch.zeros(n, 12), real=False, index=first + torch.arange(n))
        assert (score.split_n > 0).all()


def test_inception_score_refuses_what_has_no_classes_and_empty_splits():
    class Plain(nn.Module):
        num_features = 12

    with pytest.raises(ValueError, match="no `logits"):
        InceptionScore(Plain())
    metric = InceptionScore(Pixels(), splits=10)
    metric.update_features(normal(3, 1), real=False)
    with pytest.raises(ValueError, match="10 splits for 3 generated"):
        metric.compute()


# Extrapolation to infinitely many samples


def test_extrapolated_distance_has_less_bias():
    """Both sides from one distribution whose moments are known: the true distance is 0 (T-F4)."""
    known = Statistics(0, torch.zeros(12, dtype=torch.float64), torch.eye(12, dtype=torch.float64))
    plain, extrapolated = [], []
    for seed in range(20):
        fake = normal(600, seed)
        distance = FrechetDistance(Pixels())
        infinity = FrechetInfinity(Pixels(), points=10, smallest=0.2)
        for metric in (distance, infinity):
            metric.use_reference(known)
            metric.update_features(fake, real=False)
        plain.append(float(distance.compute()))
        extrapolated.append(float(infinity.compute()))
    assert np.mean(plain) > 0.05
    assert abs(np.mean(extrapolated)) < 0.15 * np.mean(plain)


def test_extrapolation_ends_at_the_plain_distance():
    real, fake = normal(400, 1), normal(300, 2, 1.2)
    n, distances = filled(FrechetInfinity(Pixels(), points=5, seed=3), real, fake).curve()
    assert n.tolist() == [30, 98, 165, 232, 300]
    plain = filled(FrechetDistance(Pixels()), real, fake).compute()
    assert float(distances[-1]) == pytest.approx(float(plain), rel=1e-9)
    with pytest.raises(ValueError, match="points >= 2"):
        FrechetInfinity(Pixels(), points=1)


# One pass for all


def suite(extractor: nn.Module):
    return feature_metrics(
        extractor,
        {
            "fd": FrechetDistance,
            "kid": lambda shared: KernelDistance(shared, subset_size=20, subsets=3),
            "score": lambda shared: InceptionScore(shared, splits=2),
            "pr": PrecisionRecall,
        },
    )


def test_metrics_share_one_pass_through_the_network():
    network = Pixels()
    metrics = suite(network)
    metrics.update(images(50, 1), real=True)
    metrics.update(images(40, 2), real=False)
    assert network.calls == 2
    values = metrics.compute()
    assert set(values) == {"fd", "kid", "score", "precision", "recall"}
    alone = FrechetDistance(Pixels())
    alone.update(images(50, 1), real=True)
    alone.update(images(40, 2), real=False)
    assert float(values["fd"]) == float(alone.compute())


def test_a_changed_batch_is_not_taken_for_the_last_one():
    extractor = FrozenExtractor(Pixels())
    batch = images(5, 1)
    first = extractor(batch)
    assert extractor(batch) is first
    batch[0] = 0
    second = extractor(batch)
    assert not torch.equal(first, second) and float(second[0].sum()) == 0
    extractor(batch.clone())
    with torch.inference_mode():
        fresh = images(5, 2)
        extractor(fresh)
        fresh[:] = 0
        assert float(extractor(fresh).sum()) == 0


def test_large_batches_are_handed_over_in_parts():
    network = Pixels()
    expected = FrozenExtractor(network)(images(50, 1))
    network.max_batch, network.calls = 20, 0
    torch.testing.assert_close(FrozenExtractor(network)(images(50, 1)), expected)
    assert network.calls == 3


# Order and reference


def test_subsets_follow_the_index_and_not_the_order_of_arrival():
    """So that neither the batch size nor the number of processes changes the value (T-F11)."""
    real, fake = normal(60, 1), normal(50, 2, 1.2)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    for make in (
        lambda: KernelDistance(Pixels(), subset_size=20, subsets=5),
        lambda: FrechetInfinity(Pixels(), points=4),
        lambda: InceptionScore(Pixels(), splits=3),
    ):
        straight = filled(make(), real, fake).compute()
        shuffled = make()
        shuffled.update_features(real, real=True)
        for part in order.split(13):
            shuffled.update_features(fake[part], real=False, index=part)
        assert float(shuffled.compute()) == pytest.approx(float(straight), rel=1e-9)
    with pytest.raises(ValueError, match="50 samples, but the index"):
        shuffled.update_features(fake, real=False, index=torch.arange(3))


def test_reference_features_and_kept_real_ones():
    real, fake = normal(60, 1), normal(50, 2, 1.2)
    expected = filled(PrecisionRecall(Pixels()), real, fake).compute()
    cached = PrecisionRecall(Pixels())
    cached.use_reference(real)
    kept = PrecisionRecall(Pixels(), reset_real=False)
    kept.update_features(real, real=True)
    for metric in (cached, kept):
        for _ in range(2):
            metric.update_features(fake, real=False)
            assert metric.compute() == expected
            metric.reset()


@pytest.mark.parametrize(
    "make",
    [
        lambda: FrechetDistance(Pixels()),
        lambda: FrechetInfinity(Pixels(), points=4),
        lambda: KernelDistance(Pixels(), subset_size=20, subsets=2),
        lambda: InceptionScore(Pixels(), splits=2),
    ],
)
def test_frozen_reference_gives_the_same_value(make):
    real, fake = normal(60, 1), normal(70, 2, 1.2)
    expected = filled(make(), real, fake).compute()
    metric = make()
    metric.update_features(real, real=True)
    metric.freeze_reference()
    for _ in range(2):
        metric.update_features(fake, real=False)
        assert float(metric.compute()) == pytest.approx(float(expected), rel=1e-9)
        metric.reset()


def test_too_few_samples_are_refused():
    metric = filled(PrecisionRecall(Pixels(), k=3), normal(60, 1), normal(3, 2))
    with pytest.raises(ValueError, match="at least 4 generated samples, but has seen 3"):
        metric.compute()
